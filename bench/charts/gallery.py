"""Gallery: all charts, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from bench.charts import distributions, memory, noise, peers, phases, scaling, style
from bench.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One picture.

    Attributes:
        name: Of its file, without `.png`.
        draw: Returns nothing when the record has nothing for it.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Record], Figure | None]

    def drawn(self, record: Record) -> Figure | None:
        """Return the picture in the style of all of them; `None` when there is nothing to see."""
        with style.applied():
            return self.draw(record)


CHARTS = (
    Chart(
        name="peers",
        title="Side by side",
        caption="Everything here that could run the same line of Python, started in turn in the"
        " same run. Each dot is one start, the diamond the median; the last number is the multiple"
        " of the fastest vmpool. Below the tables stands what exactly each one does.",
        draw=peers.draw,
    ),
    Chart(
        name="distributions",
        title="How long, how often",
        caption="How many answers came within which time. A steep line is a time to count on; what"
        " it does near the top is what one request in a hundred meets.",
        draw=distributions.draw,
    ),
    Chart(
        name="phases",
        title="What it is made of",
        caption="Medians of the phases, one after the other.",
        draw=phases.draw,
    ),
    Chart(
        name="scaling",
        title="Many at once",
        caption="More clients, more clones, all at one moment. Clients are a process of their own"
        " on the same machine.",
        draw=scaling.draw,
    ),
    Chart(
        name="memory",
        title="What a clone takes",
        caption="Memory that the host gets back when the clone is killed.",
        draw=memory.draw,
    ),
    Chart(
        name="noise",
        title="How quiet the machine was",
        caption="Outside the shaded band the numbers are of a busy machine, and worse than it can"
        " do.",
        draw=noise.draw,
    ),
)
