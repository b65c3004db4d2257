// As by_name.py, in JavaScript: node by_name.mjs DOMAIN

import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create({ timeoutMs: 600_000 })
process.stdout.write((await sandbox.commands.run('echo hi')).stdout)
await sandbox.files.write('/tmp/by-name.txt', 'over TLS')
const opened = await fetch(await sandbox.downloadUrl('/tmp/by-name.txt'))
console.log(await opened.text())
console.log(sandbox.getHost(8000) === `8000-${sandbox.sandboxId}.${process.argv[2]}`)
console.log(await sandbox.kill())
