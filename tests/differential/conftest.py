"""The host CPU as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .host_cpu import HostCpu, supported


@pytest.fixture(scope="session")
def host() -> Iterator[HostCpu]:
    if reason := supported():
        pytest.skip(reason)
    with HostCpu() as cpu:
        yield cpu
