"""An error that goes over the wire is the one that was raised."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest

from vmpool import errors
from vmpool.api import problem
from vmpool.api.limits import Limits
from vmpool.client.problem import error_of
from vmpool.config import Settings
from vmpool.errors import CallerError, CapacityError, Fault, InfrastructureError, TaskError

CLASSES = [
    one
    for _, one in inspect.getmembers(errors, inspect.isclass)
    if issubclass(one, errors.VmpoolError)
]


def told(error: errors.VmpoolError) -> dict[str, Any]:
    """Return what a client receives."""
    document = problem.describe(error, request_id="req", limits=Limits.of(Settings()))
    return dict(msgspec.json.decode(msgspec.json.encode(document)))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda one: one.__name__)
def test_an_error_comes_back_as_its_class_with_its_code(kind: type[errors.VmpoolError]) -> None:
    error = error_of(told(kind("it is 'so'", code="narrower", remedy="wait")))
    assert type(error) is kind
    assert (error.message, error.error_code, error.remedy) == ("it is 'so'", "narrower", "wait")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.CALLER, CallerError),
        (Fault.TASK, TaskError),
        (Fault.CAPACITY, CapacityError),
        (Fault.INFRASTRUCTURE, InfrastructureError),
        ("of a later version", InfrastructureError),
    ],
)
@pytest.mark.parametrize("more", [{}, {"kind": "of a later version"}])
def test_a_kind_that_is_not_known_is_judged_by_its_fault(
    fault: str, kind: type[errors.VmpoolError], more: dict[str, str]
) -> None:
    error = error_of({"detail": "no", "code": "narrow", "fault": fault} | more)
    assert type(error) is kind
    assert error.error_code == "narrow"
