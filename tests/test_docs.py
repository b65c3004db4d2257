"""What the documents promise is what the source has, and the source keeps the house's limits."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import pytest

from vmpool import errors
from vmpool.agent import answers, contexts, processes, tunnel
from vmpool.cli import program
from vmpool.engine.qemu import hypervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("vmpool/**/*.py"), *ROOT.glob("guest-agent/**/*.py")])
PYTHON = sorted([*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/**/*.py")])
MODULE_LINES = 500
FUNCTION_LINES = 50

FORBIDDEN = re.compile(
    r"\b(?:TO"
    r"DO|FIX"
    r"ME|XX"
    r"X|HA"
    r"CK)\b|/Users/[a-z]+" + (f"|{re.escape(str(ROOT))}" if ROOT.parts[2:] else "")
)
"""What no file may hold: unfinished work, and paths of some developer's machine."""

UNNAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a source file."""
    return ast.parse(path.read_text(), filename=str(path))


@cache
def documents() -> str:
    """Return the text of all documents for users."""
    files = [ROOT / "README.md", ROOT / "guest-agent/PROTOCOL.md", *ROOT.glob("docs/*.md")]
    return "\n".join(file.read_text() for file in files if file.is_file())


def shown(path: Path) -> str:
    """Return a path as a reader knows it."""
    return str(path.relative_to(ROOT))


def tracked_text_files() -> list[Path]:
    """Return all files under version control, or the sources where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    names = listed.stdout.split("\0") if listed.returncode == 0 else map(shown, PYTHON)
    files = [ROOT / name for name in names if name]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()]


def error_classes() -> dict[str, type[errors.VmpoolError]]:
    """Return the class of each code in the tree of errors."""
    found = [errors.VmpoolError]
    for one in found:
        found += one.__subclasses__()
    return {one.code: one for one in found if one.__module__ == "vmpool.errors"}


def error_codes() -> set[str]:
    """Return all codes that an error can have: the classes' and each narrower `code=`."""
    codes = set(error_classes()) | answers.REQUEST_REFUSALS | answers.FILE_REFUSALS
    codes |= set(processes.REFUSALS) | set(contexts.REFUSALS) | set(tunnel.REFUSALS)
    codes |= {code for _, code in hypervisor._GUEST_ENDINGS.values()}
    for path in SOURCES:
        constants = {
            target.id: node.value.value
            for node in tree_of(path).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.keyword) and node.arg == "code":
                value = node.value
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self._fail":
                value = node.args[-1]
            else:
                continue
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                codes.add(value.value)
            elif isinstance(value, ast.Name) and isinstance(constants.get(value.id), str):
                codes.add(str(constants[value.id]))
    return codes


def documented_codes() -> list[str]:
    """Return the first column of the tables in the list of errors."""
    return re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)


def test_every_error_code_is_documented_once_and_nothing_else_is() -> None:
    assert sorted(documented_codes()) == sorted(error_codes())


@pytest.mark.parametrize("code", sorted(error_classes()))
def test_a_documented_error_says_whose_it_is(code: str) -> None:
    fault = error_classes()[code].fault.value
    assert re.search(rf"^\| `{code}` \| {fault} \|", (ROOT / "docs/errors.md").read_text(), re.M)


@pytest.mark.parametrize("name", sorted(program.COMMANDS))
def test_a_command_and_its_options_are_documented(name: str) -> None:
    command = importlib.import_module(f"vmpool.cli.{program.COMMANDS[name].module}").command
    commands = {f"vmpool {name}": command}
    if isinstance(command, click.Group):
        commands = {f"vmpool {name} {sub}": each for sub, each in command.commands.items()}
    for line, each in commands.items():
        assert line in documents(), f"{line} is not documented"
        options = [
            name
            for param in each.params
            if param.param_type_name == "option"
            for name in param.opts
        ]
        for option in options:
            assert not option.startswith("--") or option in documents(), f"{line} {option}"


def setting_names(kind: type[msgspec.Struct], table: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of a table and those in it."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from setting_names(field.type, f"{table}{field.name}.")
        elif field.name != "templates":  # tables of the user's own names, each like `pool`
            yield f"{table}{field.name}"


def test_every_setting_is_documented() -> None:
    config = importlib.import_module("vmpool.config")
    settings = set(setting_names(config.Settings))
    assert settings
    assert not sorted(name for name in settings if f"`{name}`" not in documents())


def test_every_route_is_documented() -> None:
    paths = {
        node.value
        for path in SOURCES
        if "api" in path.parts
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"/(v1/[a-z0-9_/{}:]+|healthz|metrics|openapi\.json)", node.value)
    }
    assert paths
    assert not sorted(path for path in paths if path not in documents())


def test_every_metric_is_documented() -> None:
    names = {
        node.value
        for path in SOURCES
        if path.stem.startswith("metrics") or "metrics" in path.parts
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"vmpool_[a-z0-9_]+", node.value)
        and node.value != "vmpool_agent"
    }
    assert names
    assert not sorted(name for name in names if name not in documents())


def test_no_file_holds_unfinished_work_or_paths_of_a_developers_machine() -> None:
    wrong = [
        f"{shown(path)}:{number}: {match[0]}"
        for path in tracked_text_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in [FORBIDDEN.search(line)]
        if match
    ]
    assert not wrong


def test_every_module_says_what_it_is() -> None:
    assert not [shown(path) for path in PYTHON if not ast.get_docstring(tree_of(path))]


def test_no_module_is_named_for_having_no_noun() -> None:
    assert not [shown(path) for path in PYTHON if path.stem in UNNAMES]


def test_modules_are_short() -> None:
    lengths = {shown(path): len(path.read_text().splitlines()) for path in PYTHON}
    assert not {path: length for path, length in lengths.items() if length > MODULE_LINES}


def test_functions_are_short() -> None:
    wrong = [
        f"{shown(path)}:{node.lineno}: {node.name} has {length} lines"
        for path in PYTHON
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for length in [body_lines(node)]
        if length > FUNCTION_LINES
    ]
    assert not wrong


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's statements: neither its signature nor its docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    assert node.end_lineno is not None
    return node.end_lineno - first.lineno + 1


def test_every_error_class_has_a_code_of_its_own() -> None:
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
    raised = [one for one in classes if issubclass(one, errors.VmpoolError)]
    assert len({one.code for one in raised}) == len(raised)
