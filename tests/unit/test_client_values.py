"""The client's values are what the server says."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import msgspec
import pytest

from vmpool.api import bodies, file_urls, sandbox_bodies
from vmpool.client import options, result, values
from vmpool.client.events import Raised
from vmpool.client.options import body_of

SAID = [
    (values.Receipt, bodies.Receipt),
    (values.SandboxInfo, sandbox_bodies.SandboxAnswer),
    (values.FileInfo, bodies.FileEntry),
    (values.PoolCensus, bodies.PoolAnswer),
    (values.PoolLimits, bodies.LimitsAnswer),
    (values.TemplateInfo, bodies.TemplateAnswer),
    (values.ImageInfo, bodies.ImageAnswer),
    (values.Health, bodies.Health),
    (values.SandboxPage, sandbox_bodies.SandboxList),
    (values.CheckpointInfo, sandbox_bodies.CheckpointAnswer),
    (values.CheckpointPage, sandbox_bodies.CheckpointList),
    (values.ForkedChild, sandbox_bodies.Child),
    (values.Forked, sandbox_bodies.ForkAnswer),
    (values.FileListing, bodies.FileList),
    (values.SignedFile, file_urls.SignedFile),
    (values.TemplateListing, bodies.TemplateList),
    (values.ImageListing, bodies.ImageList),
    (Raised, bodies.ErrorRaised),
    (result._RunAnswer, bodies.RunAnswer),
    (result._Collected, bodies.CollectedFile),
    (result._Failure, bodies.FileFailure),
]
ASKED: list[tuple[Any, Any]] = [
    (options.RunOptions, bodies.Run),
    (options.ExecOptions, bodies.Exec),
    (options.SandboxOptions, sandbox_bodies.CreateSandbox),
    (options.ForkOptions, sandbox_bodies.Fork),
    (options.TemplateOptions, bodies.CreateTemplate),
]


@pytest.mark.parametrize(("ours", "theirs"), SAID, ids=lambda kind: kind.__name__)
def test_the_server_says_all_that_the_client_needs(ours: type[Any], theirs: type[Any]) -> None:
    said = {field.name for field in msgspec.structs.fields(theirs)}
    always = {
        field.name
        for field in msgspec.structs.fields(theirs)
        if field.required and not theirs.__struct_config__.omit_defaults
    }
    for field in fields(ours):
        assert field.name in said
        if field.default is MISSING and field.default_factory is MISSING:
            assert field.name in always, field.name


@pytest.mark.parametrize(("ours", "theirs"), ASKED, ids=lambda kind: kind.__name__)
def test_the_client_can_ask_for_all_that_the_server_takes(ours: Any, theirs: Any) -> None:
    asked = set(ours.__annotations__)
    taken = {field.name for field in msgspec.structs.fields(theirs)}
    assert asked <= taken
    # arguments, or made of another option
    elsewhere = {"code", "stdin_base64", "name", "image", "count"}
    assert taken - elsewhere <= asked


def test_a_body_has_bytes_in_base64_and_text_as_text() -> None:
    body = body_of("1", {"stdin": b"\xff", "files": {"/a": "é", "/b": b"\xff"}, "env": {"A": "1"}})
    assert body == {
        "code": "1",
        "stdin_base64": "/w==",
        "files": {"/a": {"content": "é"}, "/b": {"content_base64": "/w=="}},
        "env": {"A": "1"},
    }
    assert msgspec.convert(body, bodies.Run, builtin_types=()).stdin_base64 == b"\xff"
