"""What a program does with the code interpreter; it prints a line for each thing that works.

Nothing in it knows where it is pointed.
"""

from e2b_code_interpreter import NotFoundException, Sandbox, SandboxException, TimeoutException

BARS = """
    import matplotlib.pyplot as plt
    plt.bar(["ann", "bob"], [3, 4], label="books")
    plt.title("Books")
    plt.ylabel("Sold (k)")
    plt.show()
"""
LINES = """
import datetime, matplotlib.pyplot as plt
days = [datetime.date(2026, 9, day) for day in (1, 2)]
fig, (left, right) = plt.subplots(1, 2)
left.plot(days, [1, 2], label="rain")
right.pie([1, 3], labels=["some", "most"])
plt.show()
"""
FRAME = """
import pandas as pd
pd.DataFrame({"n": [1, 2], "day": pd.to_datetime(["2026-01-01", "2026-01-02"])})
"""


def check(what, holds):
    """Say that something works, or fail."""
    if not holds:
        raise AssertionError(what)
    print(what, flush=True)


def refused(error, call):
    """Return what a call was refused with."""
    try:
        call()
    except error as err:
        return str(err)
    raise AssertionError(f"{error.__name__} was not raised")


def output(sandbox):
    """What code prints, shows and is worth comes as it goes."""
    check("a value", sandbox.run_code("x = 41; x + 1").text == "42")
    printed, failed, shown = [], [], []

    def hear(message):
        printed.append(message.line)
        sandbox.files.write("/tmp/heard", "")

    execution = sandbox.run_code(
        "import os, sys, time\nprint('one', flush=True)\nbegan = time.monotonic()\n"
        "while not os.path.exists('/tmp/heard') and time.monotonic() < began + 240:\n"
        "    time.sleep(0.05)\n"
        "print('zwei ü' if os.path.exists('/tmp/heard') else 'nobody heard', file=sys.stderr)\n"
        "'grüße'",
        on_stdout=hear,
        on_stderr=lambda message: failed.append(message.line),
        on_result=shown.append,
        timeout=300,
    )
    # The second comes only after the first was heard: output is told as it comes.
    check("callbacks", (printed, failed) == (["one\n"], ["zwei ü\n"]))
    check("text", [result.text for result in shown] == ["grüße"])
    check("logs", execution.logs.stdout == ["one\n"] and not execution.error)
    raised = []
    execution = sandbox.run_code("def f():\n  raise ValueError('bad')\nf()", on_error=raised.append)
    check("an error", (raised[0].name, raised[0].value) == ("ValueError", "bad"))
    check("its traceback", "in f" in execution.error.traceback)
    check("a shell line", sandbox.run_code("!whoami").logs.stdout == ["user\n"])


def results(sandbox):
    """Figures come with their charts, frames with their data."""
    (shown,) = sandbox.run_code(BARS).results
    check("a figure", shown.png.startswith("iVBOR") and not shown.is_main_result)
    chart = shown.chart
    check("a chart", (chart.type, chart.title, chart.y_unit) == ("bar", "Books", "k"))
    bars = [(bar.label, bar.value, bar.group) for bar in chart.elements]
    check("its bars", bars == [("ann", 3, "books"), ("bob", 4, "books")])
    (shown,) = sandbox.run_code(LINES).results
    line, pie = shown.chart.elements
    check("two charts in one", (line.type, line.x_scale, pie.type) == ("line", "datetime", "pie"))
    check("points", line.elements[0].points == [("2026-09-01", 1), ("2026-09-02", 2)])
    check("slices", [part.angle for part in pie.elements] == [90, 270])
    (shown,) = sandbox.run_code(FRAME).results
    days = ["2026-01-01T00:00:00", "2026-01-02T00:00:00"]
    check("a frame", shown.data == {"n": [1, 2], "day": days} and "<table" in shown.html)
    (shown,) = sandbox.run_code("{'a': [1, None]}").results
    check("a document", shown.json == {"a": [1, None]} and shown.is_main_result)


def contexts(sandbox):
    """Contexts keep their state, each its own."""
    context = sandbox.create_code_context(cwd="/tmp")
    check("a directory", sandbox.run_code("import os; os.getcwd()", context=context).text == "/tmp")
    check("home", sandbox.run_code("import os; os.getcwd()").text == "/home/user")
    sandbox.run_code("own = 1", context=context)
    check("apart", sandbox.run_code("'own' in dir()").text == "False")
    listed = [one.id for one in sandbox.list_code_contexts()]
    check("a list", listed[-1] == context.id and len(listed) > 2)
    sandbox.restart_code_context(context)
    check("a restart", sandbox.run_code("own", context=context).error.name == "NameError")
    sandbox.remove_code_context(context)
    said = refused(NotFoundException, lambda: sandbox.run_code("1", context=context))
    check("an end", "not found" in said)
    told = "os.environ.get('OWN'), os.environ['GIVEN'], os.environ['E2B_SANDBOX']"
    with_own = sandbox.run_code(told, envs={"OWN": "1"}).text
    check("an environment for once", with_own == "('1', 'everywhere', 'true')")
    check("and then no more", sandbox.run_code(told).text == "(None, 'everywhere', 'true')")


def languages(sandbox):
    """Other languages keep their state as well."""
    sandbox.run_code("y=42", language="bash")
    printed = sandbox.run_code("echo $y $GIVEN", language="bash").logs.stdout
    check("bash", printed == ["42 everywhere\n"])
    if sandbox.commands.run("command -v node || true").stdout:
        awaited = "import os from 'node:os'; const f = async () => typeof os; await f()"
        check("javascript", sandbox.run_code(awaited, language="js").text == "object")
        printed = sandbox.run_code("console.log(typeof os)", language="javascript").logs.stdout
        check("its state", printed == ["object\n"])
    else:
        said = refused(SandboxException, lambda: sandbox.run_code("1", language="js"))
        check("no javascript", "the image has no node" in said)
    said = refused(SandboxException, lambda: sandbox.run_code("1", language="r"))
    check("no others", "python, bash, javascript" in said)


def time_is_up(sandbox):
    """Code whose client waits no longer is interrupted, and its state stays."""
    sandbox.run_code("kept = 1")
    endless = "import time\nwhile True: time.sleep(1)"
    refused(TimeoutException, lambda: sandbox.run_code(endless, timeout=1))
    check("an interrupt", sandbox.run_code("kept").text == "1")
    lost = sandbox.run_code("import os; os._exit(3)").error
    check("a loss", lost.name == "ContextLost" and "code 3" in lost.value)
    check("a beginning", sandbox.run_code("1 + 1").text == "2")


def git(sandbox):
    """The helpers for git find what they need."""
    sandbox.git.init("repo", initial_branch="main")
    sandbox.git.configure_user("Ann", "ann@example.org")
    sandbox.files.write("repo/a.txt", "one")
    check("changes", [file.name for file in sandbox.git.status("repo").file_status] == ["a.txt"])
    sandbox.git.add("repo")
    sandbox.git.commit("repo", "First")
    sandbox.git.create_branch("repo", "work")
    check("git", sandbox.git.branches("repo").current_branch == "work")
    sandbox.git.clone("/home/user/repo", "copy")
    check("a clone", sandbox.files.read("copy/a.txt") == "one")


def main():
    """Do all of it in one sandbox."""
    with Sandbox.create(timeout=600, envs={"GIVEN": "everywhere"}) as sandbox:
        for part in (output, results, contexts, languages, time_is_up, git):
            part(sandbox)


main()
