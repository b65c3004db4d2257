"""What a Python context leaves out of IPython's work, held against IPython's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from tests.connected_agent import connected
from tests.context_runs import create, run, value
from vmpool_agent.notebook import _Transformer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.shares_host

FRAGMENTS = (
    *("x", "1", " ", "\t", "\n", "\\\n", "\f", "\r", "'", '"""', "(", ")", "[", "]", ":", "=", "#"),
    *("%", "!", "?", ",", ";", "/", ">>> ", "... ", "...: ", "In [1]: ", "[ins] In [2]: "),
    *("%%time", "def f():\n    return 1", "ls -l", "x = !ls", "f?", "é"),
)


@given(cell=st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
@example(cell="")
@example(cell="\n\n  x = 1\n  y = 2")
@example(cell="x\n  ...: y")
@example(cell="if x:\n    /f 1")
def test_a_cell_is_taken_for_what_ipython_takes_it_for(cell: str) -> None:
    own, theirs = _Transformer(), TransformerManager()  # type: ignore[no-untyped-call]
    assert _transformed(own, cell) == _transformed(theirs, cell)


def _transformed(transformer: TransformerManager, cell: str) -> str | type[Exception]:
    try:
        return transformer.transform_cell(cell)
    except Exception as err:  # noqa: BLE001 -- whatever it is, it is to be the same
        return type(err)


async def test_what_somebody_adds_to_how_cells_and_values_are_read_holds(guest: Path) -> None:
    async with connected(guest) as agent:
        context = await create(agent)
        assert await value(agent, context, "7") == "7"
        assert await value(agent, context, "'a\\nb'") == "'a\\nb'"
        assert await value(agent, context, "b'\\xff'") == "b'\\xff'"
        assert await value(agent, context, "True") == "True"
        assert await value(agent, context, "1.5") == "1.5"
        assert "ValueError" in str(await run(agent, context, "10 ** 5000"))
        await run(agent, context, "%precision 3")
        assert await value(agent, context, "3.14159") == "3.142"
        show = "get_ipython().display_formatter.formatters['text/plain']"
        await run(agent, context, f"{show}.for_type(int, lambda n, p, _: p.text(f'<{{n}}>'))")
        assert await value(agent, context, "7") == "<7>"
        assert await value(agent, context, "'7'") == "'7'"
        added = "lambda lines: [line.replace('seven', '7') for line in lines]"
        await run(agent, context, f"get_ipython().input_transformers_cleanup.append({added})")
        assert await value(agent, context, "str(seven)") == "'7'"
