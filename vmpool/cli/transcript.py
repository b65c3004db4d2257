"""Transcript: what a running program says, event by event, on its way to the terminal."""

from __future__ import annotations

from typing import Any

import click

from vmpool.cli import output, report, table, task
from vmpool.client.problem import error_of
from vmpool.errors import InfrastructureError


class Transcript:
    """Prints events as they come and remembers the last.

    Args:
        as_json: Print each event as a line of JSON instead of what it carries.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._end: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Print one event.

        Raises:
            VmpoolError: The event says that the server broke the execution off.
        """
        if self._as_json:
            click.echo(table.as_json(event))
        match event.get("type"):
            case "problem":
                raise error_of(event["problem"])
            case "exit":
                self._end = event
                if why := task.epitaph(event):
                    report.say(f"vmpool: {why}")
            case kind if not self._as_json:
                _print(str(kind), event)
            case _:
                pass

    @property
    def end(self) -> dict[str, Any]:
        """The event that told how the program ended.

        Raises:
            InfrastructureError: `server_lost`: the stream ended before the program did.
        """
        if self._end is None:
            raise InfrastructureError(
                "the server broke off before the program's end", code="server_lost"
            )
        return self._end


def _print(kind: str, event: dict[str, Any]) -> None:
    match kind:
        case "stdout" | "stderr":
            output.write_stream(kind, output.decode(event, "data"))
        case "pty":
            output.write_stream("stdout", output.decode(event, "data"))
        case "result":
            output.write_result(event["mime"])
        case "error":
            output.write_traceback(event["traceback"])
        case _:
            pass
