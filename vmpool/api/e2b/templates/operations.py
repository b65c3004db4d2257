"""Operations: what E2B's clients ask about templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmpool.api.auth import Access
from vmpool.api.e2b.operation import Operation, reads, takes
from vmpool.api.e2b.templates import bodies, builds, names

if TYPE_CHECKING:
    from vmpool.api.e2b.operation import Run


def _makes(method: str, path: str, run: Run) -> Operation:
    return Operation(method=method, path=path, access=Access.TEMPLATES, run=run)


def _tells(path: str, run: Run) -> Operation:
    return Operation(method="GET", path=path, access=Access.TOKEN, run=run)


_list = reads(bodies.Nothing, names.list_all)

OPERATIONS: Final[tuple[Operation, ...]] = (
    _makes("POST", "/v3/templates", takes(bodies.NewBuild, builds.promise)),
    _makes(
        "GET",
        "/templates/{id}/files/{digest:[0-9a-f]{64}}",
        reads(bodies.Nothing, builds.locate_files),
    ),
    Operation(
        method="PUT",
        path=builds.UPLOADS,
        access=Access.OPEN,
        run=reads(bodies.Nothing, builds.receive),
    ),
    _makes("POST", "/v2/templates/{id}/builds/{build}", takes(bodies.BuildSteps, builds.begin)),
    _tells("/templates/{id}/builds/{build}/status", reads(bodies.StatusQuery, builds.status)),
    _tells("/templates/aliases/{alias}", reads(bodies.Nothing, names.look_up)),
    _tells("/templates", _list),
    _tells("/v2/templates", _list),
    _makes("POST", "/templates/tags", takes(bodies.AssignTags, names.assign_tags)),
    _makes("DELETE", "/templates/tags", takes(bodies.RemoveTags, names.remove_tags)),
    _tells("/templates/{id}/tags", reads(bodies.Nothing, names.list_tags)),
    Operation(method="DELETE", path="/templates/{id}", run=reads(bodies.Nothing, names.remove)),
)
