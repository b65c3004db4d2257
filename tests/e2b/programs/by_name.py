"""The least, by the names of a domain over TLS.

python by_name.py DOMAIN
"""

import os
import sys
import urllib.request

from e2b import Sandbox

sandbox = Sandbox.create(timeout=600, proxy=os.environ["HTTPS_PROXY"])
print(sandbox.commands.run("echo hi").stdout, end="")
sandbox.files.write("/tmp/by-name.txt", "over TLS")
with urllib.request.urlopen(sandbox.download_url("/tmp/by-name.txt"), timeout=240) as opened:
    print(opened.read().decode())
print(sandbox.get_host(8000) == f"8000-{sandbox.sandbox_id}.{sys.argv[1]}")
print(sandbox.kill())
