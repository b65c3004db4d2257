"""A tour, in the words of E2B's documentation."""

from e2b import PtySize
from e2b_code_interpreter import Sandbox

# Quick start: a sandbox, and code in it.
sandbox = Sandbox.create()
execution = sandbox.run_code("print('hello world')")
print(execution.logs)

# Code keeps its state, and its last line is its result.
sandbox.run_code("x = 1")
print(sandbox.run_code("x += 1; x").text)
print(sandbox.run_code("1 / 0").error.name)
figure = sandbox.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()")
print(figure.results[0].formats())

# Commands, streamed and with an environment.
result = sandbox.commands.run("echo $NAME; echo done >&2", envs={"NAME": "E2B"})
print([result.exit_code, result.stdout, result.stderr])
sandbox.commands.run("for i in 1 2 3; do echo $i; done", on_stdout=lambda data: print(data, end=""))

# Files.
sandbox.files.write("/home/user/notes/a.txt", "file content")
print(sandbox.files.read("/home/user/notes/a.txt"))
print([entry.name for entry in sandbox.files.list("/home/user/notes")])

# A terminal, that shows what is typed and what comes of it.
terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=300)
sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
shown = []
terminal.wait(on_pty=lambda data: shown.append(data.decode()))
print("24 80\r\n" in "".join(shown))

# Paused, with all that is in its memory, and come back to.
sandbox.pause()
print(sandbox.get_info().state.value)
same = Sandbox.connect(sandbox.sandbox_id)
print(same.run_code("x").text, same.files.read("notes/a.txt"))

print(same.kill())
