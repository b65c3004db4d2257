"""OpenAPI: the description of the interface, made from what serves it.

Paths come from the table that the router is built from, schemas from the types that requests are
decoded into, maxima from the limits in force. What is said nowhere else is said here: which members
exclude each other.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec

from vmpool.api import bodies, codec, problem, processes
from vmpool.api.auth import Access, Admission
from vmpool.api.idempotency import KEY_HEADER, KEY_PATTERN
from vmpool.api.limits import CODE_BYTES, Limits
from vmpool.api.route import Answer, Route, Source

Json = dict[str, Any]

REF: Final = "#/components/schemas/{name}"

PROBLEMS_OF_ALL: Final = (400, 403, 500)
PROBLEMS_OF_BODIES: Final = (408, 413, 415, 503)

_PATH_PARAMETERS: Final[Json] = {
    "id": {"type": "string", "pattern": "^[a-z0-9]{1,64}$", "description": "A sandbox's id"},
    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]*$", "maxLength": 128},
    "context": {
        "type": "string",
        "pattern": "^[a-z0-9]{1,64}$",
        "description": "A context's id, or the name of a language for its default one",
    },
    "checkpoint": {
        "type": "string",
        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?$",
        "description": "A checkpoint's id or name",
    },
    "pid": {"type": "integer", "minimum": 1, "maximum": 4194304, "description": "A process's id"},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "token": {"type": "string", "pattern": "^[a-z0-9]{1,64}$", "description": "A token's id"},
}

_UPLOADS: Final[Json] = {
    "multipart/form-data": {
        "type": "object",
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
}
"""Schemas of streamed bodies that are more than bytes."""

_EXACTLY_ONE: Final = {
    "Run": ("code", "argv"),
    "Exec": ("code", "argv"),
    "FileContent": ("content", "content_base64"),
}
_AT_MOST_ONE: Final = {
    "Run": ("stdin", "stdin_base64"),
    "Exec": ("stdin", "stdin_base64"),
    "CreateSandbox": ("template", "checkpoint"),
}


def document(
    routes: tuple[Route, ...], limits: Limits, *, admission: Admission, version: str
) -> bytes:
    """Return the whole document as JSON."""
    described = _described_types(routes)
    schemas, components = msgspec.json.schema_components(described, ref_template=REF)
    schema_of = dict(zip(map(repr, described), schemas, strict=True))
    paths: Json = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, schema_of, components, admission
        )
    for query in {route.takes.__name__ for route in routes if route.source is Source.QUERY}:
        components.pop(query, None)
    _exclude(components)
    _bound(components, limits)
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "vmpool",
            "version": version,
            "description": "Virtual machines restored from snapshots, and code run in them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "x-limits": msgspec.structs.asdict(limits.published),
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    return codec.encode_plain(whole)


def _described_types(routes: tuple[Route, ...]) -> list[Any]:
    """Return each type of the interface once."""
    types = [bodies.Problem, bodies.Input, processes.ProcessInput, bodies.ExecLine]
    for route in routes:
        types.append(route.takes)
        types += [answer.body for answer in route.answers if answer.body is not None]
    return list({repr(kind): kind for kind in types}.values())


def _operation(
    route: Route, schema_of: dict[str, Json], components: Json, admission: Admission
) -> Json:
    responses = {str(answer.status): _success(answer, schema_of) for answer in route.answers}
    for status in _problems(route):
        responses[str(status)] = _failure(status)
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": _parameters(route, components),
        "responses": responses,
        "security": [{"bearer": []}] if _needs_token(route, admission) else [],
    }
    if route.access is not Access.OPEN:
        operation["description"] = f"For {route.access.value}."
        if route.access.scope is not None:
            operation["x-scope"] = route.access.scope.value
    if route.source is Source.BODY:
        schema = schema_of[repr(route.takes)]
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    elif route.uploads:
        operation["requestBody"] = {
            "required": True,
            "content": {route.uploads: {"schema": _UPLOADS.get(route.uploads, {})}},
        }
    return operation


def _needs_token(route: Route, admission: Admission) -> bool:
    return admission is Admission.TOKENS and route.access is not Access.OPEN


def _problems(route: Route) -> list[int]:
    statuses = {*PROBLEMS_OF_ALL, *route.problems}
    if route.access is not Access.OPEN:
        statuses.add(401)
    if route.source is Source.BODY:
        statuses.update(PROBLEMS_OF_BODIES)
    return sorted(statuses)


def _success(answer: Answer, schema_of: dict[str, Json]) -> Json:
    response: Json = {"description": HTTPStatus(answer.status).phrase}
    if answer.media:
        schema = {} if answer.body is None else schema_of[repr(answer.body)]
        # OpenAPI 3.1 has no word for a sequence; 3.2 calls it `itemSchema`.
        key = "x-itemSchema" if answer.media == "application/x-ndjson" else "schema"
        response["content"] = {answer.media: {key: schema}}
    return response


def _failure(status: int) -> Json:
    response: Json = {
        "description": HTTPStatus(status).phrase,
        "content": {problem.CONTENT_TYPE: {"schema": {"$ref": REF.format(name="Problem")}}},
    }
    if status in {429, 503}:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return response


def _parameters(route: Route, components: Json) -> list[Json]:
    found: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in _PATH_PARAMETERS.items()
        if f"{{{name}}}" in route.path
    ]
    if route.repeatable:
        schema = {"type": "string", "pattern": KEY_PATTERN, "description": "Sent twice, done once"}
        found.append({"name": KEY_HEADER, "in": "header", "required": False, "schema": schema})
    if route.source is not Source.QUERY:
        return found
    query = components[route.takes.__name__]
    for name, schema in query["properties"].items():
        required = name in query.get("required", ())
        found.append({"name": name, "in": "query", "required": required, "schema": schema})
    return found


def _exclude(components: Json) -> None:
    """Say which members exclude each other."""
    for name, members in _EXACTLY_ONE.items():
        components[name]["oneOf"] = [
            {"required": [member], "properties": {member: {"not": {"type": "null"}}}}
            for member in members
        ]
    for name, members in _AT_MOST_ONE.items():
        both = {member: {"not": {"type": "null"}} for member in members}
        components[name]["not"] = {"required": list(members), "properties": both}


def _bound(components: Json, limits: Limits) -> None:
    """Write the limits in force into the schemas that they bind."""
    published = limits.published
    for name, member, most in (
        ("Run", "timeout", published.execution_seconds),
        ("Run", "wait", published.wait_seconds),
        ("Exec", "timeout", published.execution_seconds),
        ("RunCell", "timeout", published.execution_seconds),
        ("CreateSandbox", "timeout", published.sandbox_seconds),
        ("CreateSandbox", "idle_timeout", published.sandbox_seconds),
        ("CreateSandbox", "wait", published.wait_seconds),
        ("StartProcess", "timeout", published.sandbox_seconds),
        ("SetTimeout", "timeout", published.sandbox_seconds),
        ("Resume", "timeout", published.sandbox_seconds),
        ("Fork", "timeout", published.sandbox_seconds),
    ):
        _set(components[name]["properties"][member], "number", "maximum", most)
    _set(components["Fork"]["properties"]["count"], "integer", "maximum", published.children)
    for name in ("Run", "Exec", "RunCell"):
        _set(components[name]["properties"]["code"], "string", "maxLength", CODE_BYTES)


def _set(schema: Json, kind: str, keyword: str, value: float) -> None:
    """Set a keyword on the alternative of `schema` that is of a type."""
    for alternative in schema.get("anyOf", [schema]):
        if alternative["type"] == kind:
            alternative[keyword] = value
