"""A login shell starts no program that it can do without, and does what it did before."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from vmpool.image import login
from vmpool.image.tree import Tree, file

if TYPE_CHECKING:
    from pathlib import Path

TRIXIE = r"""
if [ "$(id -u)" -eq 0 ]; then
  PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
else
  PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
fi
export PATH

if [ -d /etc/profile.d ]; then
  for i in $(run-parts --list --regex '^[a-zA-Z0-9_][a-zA-Z0-9._-]*\.sh$' /etc/profile.d); do
    if [ -r $i ]; then
      . $i
    fi
  done
  unset i
fi
"""
SAYS = 'echo "$PATH" $READ "${i-unset}"'


def hastened(profile: str) -> str:
    tree = Tree()
    tree.put(login.PROFILE, file(profile.encode()))
    login.hasten(tree)
    login.hasten(tree)
    node = tree.find(login.PROFILE)
    assert node is not None
    return node.read().decode()


def ran(
    shell: str, profile: str, directory: Path, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a profile whose `/etc/profile.d` is another directory, and say what it left."""
    source = first + profile.replace("/etc/profile.d", os.fspath(directory)) + SAYS
    return subprocess.run([shell, "-c", source], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
def test_a_profile_does_what_it_did(shell: str, tmp_path: Path) -> None:
    for name in ("b.sh", "a.sh", "_c.sh"):
        (tmp_path / name).write_text(f"READ=$READ/{name}\n")
    for name in (".hidden.sh", "a.csh", "-b.sh"):
        (tmp_path / name).write_text("READ=wrongly\n")
    before = ran(shell, TRIXIE, tmp_path).stdout
    assert "/a.sh" in before
    assert "wrongly" not in before
    assert ran(shell, hastened(TRIXIE), tmp_path).stdout == before


def test_bash_starts_no_program_for_it(tmp_path: Path) -> None:
    told = "id() { echo id >&2; echo 0; }; run-parts() { echo run-parts >&2; }\n"
    assert ran("/bin/bash", TRIXIE, tmp_path, told).stderr == "id\nrun-parts\n"
    assert ran("/bin/bash", hastened(TRIXIE), tmp_path, told).stderr == ""


def test_a_profile_that_says_something_else_stays_as_it_is() -> None:
    other = "export PATH=/bin\nfor i in /etc/profile.d/*.sh; do . $i; done\n"
    assert hastened(other) == other
    tree = Tree()
    login.hasten(tree)
    assert tree.find(login.PROFILE) is None
