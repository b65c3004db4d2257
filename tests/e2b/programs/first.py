"""The least that anybody does: make a sandbox, run a command in it, and end it."""

from e2b import Sandbox

sandbox = Sandbox.create()
print(sandbox.commands.run("echo hi; whoami").stdout, end="")
print(sandbox.kill(), sandbox.kill())
