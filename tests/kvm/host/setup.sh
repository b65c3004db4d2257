#!/bin/sh
# Compiles what the ring imports once, and not in every run on an emulated processor.
set -eu
exec /opt/ring/bin/python -m compileall -q -j 0 /opt/ring/lib
