"""Client: a server's sandboxes as Python objects, for asyncio and without it.

Import it from `vmpool`. Nothing is imported here: the command line uses the light parts of this
package, and the HTTP library of the others takes longer to import than a command to run.
"""
