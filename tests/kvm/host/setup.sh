#!/bin/sh
# Compiles what the ring imports once, and not in every run on an emulated processor. Pytest
# compiles its plugins in a way of its own, and keeps what it made: a test in which all of them
# take part has them ready as well.
set -eu
/opt/ring/bin/python -m compileall -q -j 0 /opt/ring/lib
cd /tmp
cat >test_once.py <<'TEST'
import hypothesis
import hypothesis.strategies


@hypothesis.given(hypothesis.strategies.text())
def test_once(text: str) -> None:
    assert isinstance(text, str)
TEST
# An image is built with the variable set, so that no program leaves bytecode by the way.
exec env -u PYTHONDONTWRITEBYTECODE /opt/ring/bin/python -m pytest -q -p no:cacheprovider test_once.py
