"""The kvm ring: runs where the machine has what it is about, and says elsewhere what is missing."""

from __future__ import annotations

import asyncio

import pytest

from tests.kvm.capability import query_lacking


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the ring's tests where the machine cannot run them."""
    ring = [item for item in items if item.get_closest_marker("kvm") is not None]
    if ring and (lacking := asyncio.run(query_lacking())):
        for item in ring:
            item.add_marker(pytest.mark.skip(reason="; ".join(lacking)))
