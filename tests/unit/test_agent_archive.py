"""The archive that images embed."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

from vmpool.agent import archive, archive_bytes

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_sources_give_the_same_bytes() -> None:
    assert archive_bytes() == archive_bytes()
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as file:
        assert file.namelist() == sorted(file.namelist())
        assert {member.date_time[0] for member in file.infolist()} == {1980}


def test_every_module_is_python_39() -> None:
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as file:
        for name in file.namelist():
            ast.parse(file.read(name), name, feature_version=(3, 9))


def test_the_archive_runs_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    archive(path)
    source = (
        f"import sys; sys.path.insert(0, {str(path)!r})\n"
        "import vmpool_agent.__main__ as main; print(main.__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(str(path))
