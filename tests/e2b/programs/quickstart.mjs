// A tour, in the words of E2B's documentation.
import { Sandbox } from '@e2b/code-interpreter'

// Quick start: a sandbox, and code in it.
const sandbox = await Sandbox.create()
const execution = await sandbox.runCode("print('hello world')")
console.log(execution.logs)

// Code keeps its state, and its last line is its result.
await sandbox.runCode('x = 1')
console.log((await sandbox.runCode('x += 1; x')).text)
console.log((await sandbox.runCode('1 / 0')).error.name)
const code = 'import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()'
const figure = await sandbox.runCode(code, { timeoutMs: 300_000 })
console.log(figure.results[0].formats())

// Commands, streamed and with an environment.
const result = await sandbox.commands.run('echo $NAME; echo done >&2', { envs: { NAME: 'E2B' } })
console.log([result.exitCode, result.stdout, result.stderr])
await sandbox.commands.run('for i in 1 2 3; do echo $i; done', {
  onStdout: (data) => process.stdout.write(data),
})

// Files.
await sandbox.files.write('/home/user/notes/a.txt', 'file content')
console.log(await sandbox.files.read('/home/user/notes/a.txt'))
console.log((await sandbox.files.list('/home/user/notes')).map((entry) => entry.name))

// A terminal, that shows what is typed and what comes of it.
let shown = ''
const terminal = await sandbox.pty.create({
  rows: 24,
  cols: 80,
  timeoutMs: 300_000,
  onData: (data) => (shown += new TextDecoder().decode(data)),
})
await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
await terminal.wait()
console.log(shown.includes('24 80\r\n'))

// Paused, with all that is in its memory, and come back to.
await sandbox.pause()
console.log((await sandbox.getInfo()).state)
const same = await Sandbox.connect(sandbox.sandboxId)
console.log((await same.runCode('x')).text, await same.files.read('notes/a.txt'))

console.log(await same.kill())
