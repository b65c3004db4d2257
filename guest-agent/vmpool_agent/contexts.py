"""Contexts: the interpreters of one guest that keep their state, by their ids."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from vmpool_agent import execution, languages
from vmpool_agent.context import Context
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from vmpool_agent.machine import Machine

LIMIT = 32
"""Contexts of one guest."""
_ID = re.compile(r"[a-z0-9]{1,64}\Z")


class Contexts:
    """All contexts of one guest."""

    def __init__(self) -> None:
        self._contexts: dict[str, Context] = {}
        self._made = 0

    def all(self) -> list[Context]:
        """Return them, oldest first."""
        return list(self._contexts.values())

    def find(self, id: object) -> Context | None:
        """Return the context of that id, if there is one."""
        return self._contexts.get(id) if isinstance(id, str) else None

    def named(self, request: dict[str, Any]) -> Context:
        """Return the context that a request names.

        Raises:
            OperationError: `context_not_found`.
        """
        found = self.find(request.get("context"))
        if found is None:
            name = str(request.get("context"))[:64]
            raise OperationError("context_not_found", f"there is no context {name!r}")
        return found

    def add(self, machine: Machine, wanted: dict[str, Any], id: str | None = None) -> Context:
        """Make a context; its interpreter is started by `Context.open` or the first execution.

        Args:
            wanted: `language`, `cwd`, `user`, `env` and `outer`, as a request has them.
            id: As which it is to be found; a new one if left out.

        Raises:
            OperationError: It cannot be made; what only the interpreter can find out comes later.
        """
        language = wanted.get("language")
        if language not in languages.NAMES:
            raise OperationError("bad_request", f"language is one of {', '.join(languages.NAMES)}")
        launch = execution.read_launch(machine, wanted)
        outer = execution.read_env(wanted, "outer")
        languages.check_env(language, launch.env)
        if id is not None and not _ID.match(id):
            raise OperationError("bad_request", "an id is of 1 to 64 of a-z and 0-9")
        if len(self._contexts) >= LIMIT:
            raise OperationError("too_many_contexts", f"there are {LIMIT} contexts")
        if id is None:
            self._made += 1
            id = f"c{self._made}"
        made = self._contexts[id] = Context(
            machine,
            id=id,
            language=language,
            launch=launch,
            outer=outer,
            on_close=functools.partial(self._forget, id),
        )
        return made

    def _forget(self, id: str) -> None:
        self._contexts.pop(id, None)
