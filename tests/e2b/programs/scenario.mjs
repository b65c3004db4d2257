// As scenario.py, in JavaScript.

import { CommandExitError } from 'e2b'
import { Sandbox } from '@e2b/code-interpreter'

function check(what, holds) {
  if (!holds) throw new Error(what)
  console.log(what)
}

async function commands(sandbox) {
  const ran = await sandbox.commands.run('echo hi; whoami; pwd')
  check('command', ran.stdout === 'hi\nuser\n/home/user\n')
  try {
    await sandbox.commands.run('echo no >&2; exit 3')
  } catch (failed) {
    check('exit code', failed instanceof CommandExitError && failed.exitCode === 3)
  }
  const said = await sandbox.commands.run('echo $A$B', { envs: { B: '2' } })
  check('environment', said.stdout === '12\n')
  let heard = ''
  await sandbox.commands.run('for i in 1 2 3; do echo $i; sleep 0.1; done', {
    onStdout: (text) => (heard += text),
  })
  check('stream', heard === '1\n2\n3\n')
  const process = await sandbox.commands.run('cat', { background: true, stdin: true })
  const pids = (await sandbox.commands.list()).map((one) => one.pid)
  check('list', pids.includes(process.pid))
  const attached = await new Promise(async (resolve) => {
    await sandbox.commands.connect(process.pid, { onStdout: resolve })
    await sandbox.commands.sendStdin(process.pid, 'said\n')
  })
  check('attach', attached === 'said\n')
  check('signal', await sandbox.commands.kill(process.pid))
  check('gone', !(await sandbox.commands.kill(process.pid)))
}

async function files(sandbox) {
  const events = []
  const watch = await sandbox.files.watchDir('/home/user', (event) => events.push(event))
  await sandbox.files.write('/home/user/a.txt', 'text ü')
  check('write', (await sandbox.files.read('/home/user/a.txt')) === 'text ü')
  const bytes = new Uint8Array(140000).map((_, index) => (index % 2 ? 255 : 0))
  await sandbox.files.write('deep/b.bin', bytes.buffer)
  const read = await sandbox.files.read('deep/b.bin', { format: 'bytes' })
  check('bytes', Buffer.compare(Buffer.from(read), Buffer.from(bytes)) === 0)
  const names = (await sandbox.files.list('/home/user')).map((entry) => entry.name)
  check('files', names.includes('a.txt') && names.includes('deep'))
  await sandbox.files.rename('a.txt', 'c.txt')
  check('rename', !(await sandbox.files.exists('a.txt')))
  await sandbox.files.remove('deep')
  check('remove', !(await sandbox.files.exists('deep')))
  const seen = (type) => events.some((event) => event.type === type && event.name === 'a.txt')
  for (let tries = 0; tries < 2400 && !seen('rename'); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  check('watch', seen('create') && seen('rename'))
  await watch.stop()
}

async function terminal(sandbox) {
  let shown = ''
  const decoder = new TextDecoder()
  const shell = await sandbox.pty.create({
    rows: 24,
    cols: 80,
    timeoutMs: 240000,
    onData: (data) => (shown += decoder.decode(data, { stream: true })),
  })
  await sandbox.pty.resize(shell.pid, { rows: 30, cols: 100 })
  const typed = 'stty size; echo 4$((1+1)); exit 0\n'
  await sandbox.pty.sendInput(shell.pid, new TextEncoder().encode(typed))
  await shell.wait()
  check('terminal', shown.includes('30 100') && shown.includes('42'))
}

async function sleep(sandbox) {
  await sandbox.commands.run('echo here > /dev/shm/memory')
  await sandbox.commands.run('sleep 1000', { background: true })
  check('paused', await sandbox.pause())
  check('paused once', !(await sandbox.pause()))
  check('state', (await sandbox.getInfo()).state === 'paused')
  const again = await Sandbox.connect(sandbox.sandboxId)
  check('resume', (await again.commands.run('cat /dev/shm/memory')).stdout === 'here\n')
  check('same token', (await sandbox.commands.run('cat c.txt')).stdout === 'text ü')
  const running = (await sandbox.commands.list()).map((one) => one.args.at(-1).slice(0, 5))
  check('same processes', running.includes('sleep'))
}

async function children(sandbox) {
  const made = await sandbox.fork({ count: 2, timeoutMs: 300000 })
  for (const [number, child] of made.entries()) await child.files.write('c.txt', `${number}`)
  const read = await Promise.all(made.map((child) => child.files.read('c.txt')))
  check('fork', read.every((text, number) => text === `${number}`))
  check('apart', (await sandbox.files.read('c.txt')) === 'text ü')
  const kept = await made[1].createSnapshot()
  made.push(await Sandbox.create(kept.snapshotId))
  check('snapshot', (await made[2].files.read('c.txt')) === '1')
  check('forgotten', await Sandbox.deleteSnapshot(kept.snapshotId))
  for (const child of made) await child.kill()
}

async function code() {
  const interpreter = await Sandbox.create({ timeoutMs: 300000 })
  await interpreter.runCode('x = 20')
  check('code', (await interpreter.runCode('x + 22')).text === '42')
  const drawn = await interpreter.runCode(
    'import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4])\nplt.show()',
  )
  check('figure', !drawn.error && drawn.results[0].png)
  await interpreter.kill()
}

async function end(sandbox) {
  check('running', await sandbox.isRunning())
  check('metadata', (await sandbox.getInfo()).metadata.for === 'scenario')
  await sandbox.setTimeout(1000)
  for (let tries = 0; tries < 2400 && (await sandbox.isRunning()); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  check('timeout', !(await sandbox.isRunning()))
  check('kill', !(await sandbox.kill()))
}

const sandbox = await Sandbox.create('base', {
  timeoutMs: 600000,
  envs: { A: '1' },
  metadata: { for: 'scenario' },
})
for (const part of [commands, files, terminal, sleep, children]) await part(sandbox)
if (process.argv.includes('code')) await code()
await end(sandbox)
