"""A deadline is kept by code that is slow for what it does beside executing instructions."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest

from ringfence.engine.api import Halt, Interrupted
from ringfence.engine.emulate import SLICE
from tests.differential.system_guest import KERNEL_CODE, SystemGuest, assembled

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="translated code is that of an x86-64 host")

# A variable between instructions, as boot loaders have it: every store asks which code was made from those bytes.
STORES = """
again:
    xchg cl, [rip + flag]
    dec eax
    jnz again
    hlt
flag:
    .byte 0
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[SystemGuest]:
    made = SystemGuest()
    yield made
    made.close()


def begin(guest: SystemGuest, turns: int) -> int:
    guest.memory.write(KERNEL_CODE, assembled(STORES))
    guest.engine.write_state(guest.registers(0) | {"rax": turns})
    return guest.engine.guest_instructions()


def test_stores_beside_code_use_up_more_than_their_instructions(guest: SystemGuest) -> None:
    before = begin(guest, 10 * SLICE)
    assert isinstance(guest.engine.run(60_000), Interrupted)
    assert guest.engine.guest_instructions() - before < SLICE // 4


def test_the_count_of_instructions_stays_exact(guest: SystemGuest) -> None:
    for turns in (1, 1000, SLICE):
        before = begin(guest, turns)
        while not isinstance(guest.engine.run(None), Halt):
            pass
        assert guest.engine.guest_instructions() - before == 3 * turns + 1
