"""Who may import what, beyond the layers in pyproject.toml, which `test_lint` checks.

Read off the graph of direct imports, those under `TYPE_CHECKING` included: a type is knowledge too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent

PURE = (
    "vmpool.errors",
    "vmpool.lifecycle",
    "vmpool.model",
    "vmpool.placement",
    "vmpool.policy",
    "vmpool.doctor.finding",
    "vmpool.doctor.judgement",
    "vmpool.engine.*.command",
    "vmpool.engine.*.domain",
    "vmpool.engine.*.stream",
    "vmpool.network.plan",
    "vmpool_agent.claim",
    "vmpool_agent.message",
    "vmpool_agent.wire",
)
SHARED = {"vmpool_agent", "vmpool_agent.message", "vmpool_agent.wire"}
"""What host and guest have in common."""

EFFECTS = {"asyncio", "selectors", "socket", "sqlite3", "subprocess", "threading"}
"""What a pure module does not touch, and no library from outside either."""

OWNERS = {
    "IPython": ("vmpool_agent.notebook",),  # in images that have it
    "aiohttp": ("vmpool.api*", "vmpool.cli*", "vmpool.client*"),  # the server's edge, and clients'
    "backports": ("vmpool.parcel.*",),  # zstd
    "click": ("vmpool.cli*",),
    "cryptography": ("vmpool.certificate", "vmpool.trust.keys", "vmpool.trust.sealing"),
    "dns": ("vmpool.network.*",),  # the resolver, its decisions and the servers that it asks
    "h11": ("vmpool.api.exchange",),  # what servers in guests say
    "idna": ("vmpool.network.names",),
    "msgspec": ("vmpool*",),
    "multidict": ("vmpool.api*",),  # aiohttp's own type of headers and queries
    "prometheus_client": ("vmpool.metrics*",),
    "pyroute2": ("vmpool.network.links",),
    "qemu": ("vmpool.engine.qemu.monitor",),
    "sqlite_utils": ("vmpool.journal", "vmpool.store.*"),
    "traitlets": ("vmpool_agent.notebook",),  # IPython's settings
}
"""Libraries, and the modules that own each: all others meet it through them alone."""

GRAPH = grimp.build_graph("vmpool", "vmpool_agent", include_external_packages=True, cache_dir=None)
MODULES = sorted(
    name for name in GRAPH.modules if name.partition(".")[0] in {"vmpool", "vmpool_agent"}
)


def imported_by(module: str) -> set[str]:
    """Return what a module imports itself."""
    return GRAPH.find_modules_directly_imported_by(module)


def is_foreign(name: str) -> bool:
    """Tell whether a module is neither ours nor the standard library's."""
    top = name.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in {"vmpool", "vmpool_agent"}


def test_the_graph_is_not_empty() -> None:
    assert {"vmpool.errors", "vmpool.model", "vmpool_agent.wire"} <= set(MODULES)


@pytest.mark.parametrize("pattern", PURE)
def test_a_pure_module_touches_nothing(pattern: str) -> None:
    for module in MODULES:
        if fnmatchcase(module, pattern):
            wrong = {name for name in imported_by(module) if name in EFFECTS or is_foreign(name)}
            assert not wrong, f"{module} imports {sorted(wrong)}"


def test_each_library_is_imported_by_its_owner_alone() -> None:
    wrong = [
        f"{module} imports {library}"
        for module in MODULES
        for library in sorted(filter(is_foreign, imported_by(module)))
        if not any(fnmatchcase(module, owner) for owner in OWNERS.get(library, ()))
    ]
    assert not wrong


def test_the_agent_runs_on_the_standard_library_alone() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if module.startswith("vmpool_agent") and module != "vmpool_agent.notebook"
        for name in filter(is_foreign, imported_by(module))
    ]
    assert not wrong


def test_what_needs_ipython_is_imported_when_it_is_asked_for() -> None:
    program = (
        "import sys, vmpool_agent.machine, vmpool_agent.zygote; print('IPython' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.stdout == "False\n"


def test_host_and_guest_share_the_codec_and_nothing_else() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if module.startswith("vmpool.")
        for name in imported_by(module)
        if name.startswith("vmpool_agent") and name not in SHARED
    ]
    assert not wrong


@pytest.mark.timeout(900)  # each module in a process of its own
def test_each_module_can_be_imported_first() -> None:
    names = [name for name in MODULES if not name.endswith(".__main__")]
    program = Path(__file__).with_name("import_each_alone.py")
    ended = subprocess.run(
        [sys.executable, program, "asyncio", *OWNERS, "--", *names],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == names
