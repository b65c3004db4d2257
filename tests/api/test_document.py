"""The document: it says what the server does, and the server does what it says."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.api.stand_in import TOKEN
from vmpool.api import bodies
from vmpool.api.app import LINE_BYTES
from vmpool.api.limits import Limits
from vmpool.api.routes import ROUTES
from vmpool.config import Settings

if TYPE_CHECKING:
    from tests.api.conftest import Server

GUIDE = Path(__file__).parents[2] / "docs/api.md"
EXAMPLES = 10
"""Requests that are made up for each operation, of each kind: good and bad."""

SEED = 20261121

REFUSES_GOOD_FORM = {
    "POST /v1/sandboxes/{id}/ports/tokens",  # a number written 80.0
    "PUT /v1/sandboxes/{id}/network",  # a rule of a network has one of two, and a form of its own
    "POST /v1/run",
    "GET /v1/sandboxes/{id}/exec",
    "POST /v1/sandboxes/{id}/exec",  # a program without a name
    "POST /v1/sandboxes/{id}/files/url",  # a mode of what is to be read
    "POST /v1/templates",
    "PATCH /v1/sandboxes/{id}/files",
    "POST /v1/checkpoints/import",
    "GET /v1/sandboxes/{id}/processes/{pid}/attach",
    "POST /v1/sandboxes/{id}/processes",
    "POST /v1/sandboxes/{id}/processes/{pid}/resize",
    "POST /v1/sandboxes/{id}/processes/{pid}/signal",
    "POST /v1/sandboxes",
    "POST /v1/sandboxes/{id}/fork",
}
"""What answers good form with a problem: two want a WebSocket, one an exported checkpoint, the
others no integer written as 5.0."""

ACCEPTS_BAD_FORM = {"POST /v1/sandboxes/{id}/files"}
"""What says of each part what was wrong with it, in an answer that is good."""


schemathesis.serializer.alias("application/zstd", "application/octet-stream")


async def read_document(server: Server) -> dict[str, Any]:
    status, document = await server.call("GET", "/openapi.json")
    assert status == 200
    return dict(document)


async def test_the_document_has_every_route_and_no_other(paper_server: Server) -> None:
    document = await read_document(paper_server)
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert described == {(route.method, route.path) for route in ROUTES}
    names = [operation["operationId"] for item in document["paths"].values()
             for operation in item.values()]  # fmt: skip
    assert len(names) == len(set(names))


async def test_the_document_has_the_limits_in_force(paper_server: Server) -> None:
    document = await read_document(paper_server)
    published = Limits.of(Settings()).published
    assert document["x-limits"]["body_bytes"] == published.body_bytes
    timeout = document["components"]["schemas"]["SetTimeout"]["properties"]["timeout"]
    assert timeout["maximum"] == published.sandbox_seconds
    assert set(document["x-limits"]) == set(bodies.PublishedLimits.__struct_fields__)


async def test_every_schema_of_the_document_is_one_and_is_found(paper_server: Server) -> None:
    document = await read_document(paper_server)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema_rs.meta.validate(schema)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named <= set(schemas)


async def test_what_excludes_each_other_is_described(paper_server: Server) -> None:
    schema = (await read_document(paper_server))["components"]
    run = jsonschema_rs.validator_for({"$ref": "#/components/schemas/Run", "components": schema})
    assert run.is_valid({"code": "1"})
    assert run.is_valid({"argv": ["a"], "code": None, "stdin": "a"})
    assert not run.is_valid({})
    assert not run.is_valid({"code": None})
    assert not run.is_valid({"code": "1", "argv": ["a"]})
    assert not run.is_valid({"code": "1", "stdin": "a", "stdin_base64": "YQ=="})
    assert not run.is_valid({"code": "1", "colour": "red"})


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_route_and_its_input_is_in_the_guide(route: Any) -> None:
    guide = GUIDE.read_text()
    assert f"{route.method} {route.path}" in guide
    for name in route.takes.__struct_fields__:
        assert f"`{name}`" in guide, name


@pytest.mark.timeout(900)  # a minute of making up requests, where nothing else runs
async def test_whatever_is_asked_the_answer_is_as_the_document_says(paper_server: Server) -> None:
    sandbox = await paper_server.make_sandbox()
    document = await read_document(paper_server)
    await asyncio.to_thread(_ask_everything, document, paper_server.url, sandbox["id"])


def _ask_everything(document: dict[str, Any], url: str, sandbox_id: str) -> None:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    for found in schema.get_all_operations():
        for mode in GenerationMode:
            assert isinstance(found, Ok)
            _ask(found.ok(), mode, sandbox_id)


def _ask(operation: Any, mode: GenerationMode, sandbox_id: str) -> None:
    """Make up requests for an operation and hold the answers against the document."""
    spares_sandbox = operation.method == "delete" and operation.path == "/v1/sandboxes/{id}"

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if "id" in case.path_parameters and not spares_sandbox:
            case.path_parameters["id"] = sandbox_id
        # aiohttp answers a longer first line itself
        hypothesis.assume(len(case.as_transport_kwargs()["url"]) + _length(case.query) < LINE_BYTES)
        # 5.0 is an integer to JSON Schema, and none to whoever reads JSON with types in mind
        hypothesis.assume(not _has_whole_floats(case.body))
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        assert response.status_code != 500, response.text
        excluded = [positive_data_acceptance] if operation.label in REFUSES_GOOD_FORM else []
        if not _is_wrong(case) or operation.label in ACCEPTS_BAD_FORM:
            excluded.append(negative_data_rejection)
        case.validate_response(response, excluded_checks=excluded)

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # without input there is no wrong input


def _has_whole_floats(value: object) -> bool:
    match value:
        case dict():
            return any(_has_whole_floats(each) for each in value.values())
        case list():
            return any(map(_has_whole_floats, value))
        case float():
            return value.is_integer()
        case _:
            return False


def _length(query: object) -> int:
    """Return at least how long a query is when it is escaped."""
    return 3 * len(str(query).encode("utf-8", "surrogatepass"))


def _is_wrong(case: Any) -> bool:
    """Tell whether query or body are made up to be wrong; token and ids we have put right."""
    return any(
        part.mode is GenerationMode.NEGATIVE
        for place, part in case.meta.components.items()
        if place in {ParameterLocation.QUERY, ParameterLocation.BODY}
    )
