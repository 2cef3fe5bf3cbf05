"""The host CPU as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .host_cpu import HostCpu, supported
from .legacy_guest import LegacyGuest
from .system_guest import SystemGuest


@pytest.fixture(scope="session")
def host() -> Iterator[HostCpu]:
    if reason := supported():
        pytest.skip(reason)
    with HostCpu() as cpu:
        yield cpu


@pytest.fixture(scope="session")
def shared_guest() -> Iterator[SystemGuest]:
    system = SystemGuest()
    yield system
    system.close()


@pytest.fixture
def guest(shared_guest: SystemGuest) -> SystemGuest:
    """A small guest for system instructions, laid out anew."""
    shared_guest.reset()
    return shared_guest


@pytest.fixture(scope="session")
def shared_legacy_guest() -> Iterator[LegacyGuest]:
    """A small guest of protected mode; whoever takes it resets it."""
    system = LegacyGuest()
    yield system
    system.close()
