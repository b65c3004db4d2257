// As template.py, in JavaScript: the least of it.

import { strict as assert } from 'node:assert'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Sandbox, Template, waitForFile } from 'e2b'

const NAME = 'built-js'

async function build(template, name) {
  const messages = []
  await Template.build(template, name, { onBuildLogs: (entry) => messages.push(entry.message) })
  return messages
}

const context = mkdtempSync(join(tmpdir(), 'context-'))
try {
  writeFileSync(join(context, 'notes.txt'), 'read me\n')
  const recipe = Template({ fileContextPath: context })
    .fromTemplate('base')
    .copy('notes.txt', '/srv/notes/')
    .setWorkdir('/srv/notes')
    .runCmd('echo built; cat notes.txt')
    .setStartCmd('touch /tmp/up; sleep 3600', waitForFile('/tmp/up'))
  const said = await build(recipe, NAME)
  assert.ok(said.includes('built') && said.includes('read me'), said.join('\n'))
  console.log('log')

  const sandbox = await Sandbox.create(NAME)
  assert.equal(await sandbox.files.read('/srv/notes/notes.txt'), 'read me\n')
  assert.equal((await sandbox.commands.run('pwd')).stdout, '/srv/notes\n')
  await sandbox.kill()
  console.log('started')

  await assert.rejects(build(Template().fromPythonImage('3.13'), 'failing'), /from_template/)
  console.log('refused')
} finally {
  rmSync(context, { recursive: true })
  console.log('removed', await Sandbox.deleteSnapshot(NAME))
}
