// What a program does with the code interpreter; it prints a line for each thing that works.
import { Sandbox } from '@e2b/code-interpreter'

const check = (what, holds) => {
  if (!holds) throw new Error(what)
  console.log(what)
}

const sandbox = await Sandbox.create({ timeoutMs: 600_000 })
try {
  const printed = []
  const value = await sandbox.runCode("print('grüße')\n6 * 7", {
    onStdout: (message) => printed.push(message.line),
  })
  check('a value', value.text === '42')
  check('output', printed.join('') === 'grüße\n')
  const figure = await sandbox.runCode('import matplotlib.pyplot as p\np.plot([1, 2])\np.show()')
  check('a figure', figure.results[0].png.startsWith('iVBOR'))
  check('a chart', figure.results[0].chart.type === 'line')
  const failed = await sandbox.runCode('1 / 0')
  check('an error', failed.error.name === 'ZeroDivisionError')
  const own = await sandbox.createCodeContext({ cwd: '/tmp' })
  check('a context', (await sandbox.runCode('!pwd', { context: own })).logs.stdout.join('') === '/tmp\n')
  check('bash', (await sandbox.runCode('echo 1', { language: 'bash' })).logs.stdout[0] === '1\n')
  check('an interrupt', await sandbox.runCode('while True: pass', { timeoutMs: 1000 }).then(
    () => false, () => true))
  check('a beginning', (await sandbox.runCode('1 + 1')).text === '2')
} finally {
  await sandbox.kill()
}
