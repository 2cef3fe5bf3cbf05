"""8237 pair: addresses of byte and word channels, wrapping, TC, auto-init, masks, cascade, software requests, holes in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.devices.dma8237 import Dma8237
from ringfence.memory.guest_memory import GuestMemory

VERIFY, TO_MEMORY, FROM_MEMORY = 0x00, 0x04, 0x08
SINGLE, AUTO_INIT, DECREMENT = 0x40, 0x10, 0x20
PAGE = {0: 7, 1: 3, 2: 1, 3: 2, 5: 0xB, 6: 9, 7: 0xA}


class Rig:
    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0xA0000)
        self.memory.add_ram(0x100000, 0x101000)
        self.dma = Dma8237(self.memory)

    def out(self, channel: int, register: int, value: int) -> None:
        if channel < 4:
            self.dma.low.write(register, 1, value)
        else:
            self.dma.high.write(2 * register, 1, value)

    def into(self, channel: int, register: int) -> int:
        return self.dma.low.read(register, 1) if channel < 4 else self.dma.high.read(2 * register, 1)

    def program(self, channel: int, mode: int, page: int, address: int, count: int) -> None:
        """As drivers do: mask, mode, clear the flip-flop, address, count, page, unmask.  Counter units, transfers less one."""
        k = channel & 3
        self.out(channel, 0xA, 4 | k)
        self.out(channel, 0xB, mode | k)
        self.out(channel, 0xC, 0)
        for value in (address & 0xFF, address >> 8):
            self.out(channel, 2 * k, value)
        for value in (count & 0xFF, count >> 8):
            self.out(channel, 2 * k + 1, value)
        self.dma.pages.write(PAGE[channel], 1, page)
        self.out(channel, 0xA, k)

    def current(self, channel: int, count: bool = False) -> int:
        self.out(channel, 0xC, 0)
        register = 2 * (channel & 3) + count
        return self.into(channel, register) | self.into(channel, register) << 8


def test_bytes_to_memory_until_the_terminal_count() -> None:
    rig = Rig()
    rig.program(2, SINGLE | TO_MEMORY, 0x01, 0x0000, 9)  # 0x10000 on
    channel = rig.dma.channel(2)
    assert channel.ready
    assert channel.transfer_to_memory(b"abcdef") == 6 and not channel.terminal_count
    assert rig.current(2) == 6 and rig.current(2, count=True) == 3
    assert channel.transfer_to_memory(b"ghijkl") == 4 and channel.terminal_count
    assert rig.memory.read(0x10000, 12) == b"abcdefghij\0\0"
    assert rig.current(2, count=True) == 0xFFFF
    assert rig.into(2, 8) & 0x0F == 4 and rig.into(2, 8) & 0x0F == 0  # reading the status clears TC
    assert not channel.ready and channel.transfer_to_memory(b"x") == 0  # it masked itself
    assert not channel.terminal_count


def test_from_memory_and_word_channel() -> None:
    rig = Rig()
    rig.memory.write(0x30000, bytes(range(256)))
    rig.program(5, SINGLE | FROM_MEMORY, 0x03, 0x8000, 3)  # page bit 0 is not used: 0x20000 + (0x8000 << 1)
    channel = rig.dma.channel(5)
    assert channel.transfer_from_memory(5) == bytes([0, 1, 2, 3])  # whole words
    assert channel.transfer_from_memory(100) == bytes([4, 5, 6, 7]) and channel.terminal_count
    assert rig.into(5, 8) & 0x0F == 2


@pytest.mark.parametrize(("channel", "unit", "span"), [(1, 1, 0x10000), (6, 2, 0x20000)])
def test_the_counter_wraps_and_the_page_does_not_move(channel: int, unit: int, span: int) -> None:
    rig = Rig()
    rig.program(channel, TO_MEMORY, 0x04, 0xFFFE, 3)
    data = bytes(range(1, 4 * unit + 1))
    assert rig.dma.channel(channel).transfer_to_memory(data) == 4 * unit
    assert rig.memory.read(0x40000 + span - 2 * unit, 2 * unit) == data[: 2 * unit]
    assert rig.memory.read(0x40000, 2 * unit) == data[2 * unit :]
    assert rig.current(channel) == 2


def test_decrement_of_bytes_and_words() -> None:
    rig = Rig()
    rig.program(3, TO_MEMORY | DECREMENT, 0x02, 0x0001, 3)
    assert rig.dma.channel(3).transfer_to_memory(b"abcd") == 4
    assert rig.memory.read(0x20000, 2) == b"ba" and rig.memory.read(0x2FFFE, 2) == b"dc"
    rig.program(7, TO_MEMORY | DECREMENT, 0x02, 0x0101, 1)
    assert rig.dma.channel(7).transfer_to_memory(b"abcd") == 4
    assert rig.memory.read(0x20200, 4) == b"cdab"
    rig.program(7, FROM_MEMORY | DECREMENT, 0x02, 0x0101, 1)
    assert rig.dma.channel(7).transfer_from_memory(4) == b"abcd"


def test_auto_init_starts_over_and_stops_at_each_terminal_count() -> None:
    rig = Rig()
    rig.program(1, TO_MEMORY | AUTO_INIT, 0x01, 0x0100, 3)
    channel = rig.dma.channel(1)
    assert channel.transfer_to_memory(b"abcdef") == 4 and channel.terminal_count and channel.ready
    assert rig.current(1) == 0x100 and rig.current(1, count=True) == 3
    assert channel.transfer_to_memory(b"ef") == 2 and not channel.terminal_count
    assert rig.memory.read(0x10100, 4) == b"efcd"


def test_verify_counts_and_writes_nothing() -> None:
    rig = Rig()
    rig.program(2, VERIFY, 0x01, 0, 511)
    channel = rig.dma.channel(2)
    assert channel.transfer_to_memory(b"x" * 512) == 512 and channel.terminal_count
    assert rig.memory.read(0x10000, 512) == bytes(512)


def test_the_wrong_direction_is_not_served() -> None:
    rig = Rig()
    rig.program(2, FROM_MEMORY, 0x01, 0, 511)
    assert rig.dma.channel(2).transfer_to_memory(b"abc") == 0 and rig.current(2, count=True) == 511
    rig.program(2, TO_MEMORY, 0x01, 0, 511)
    assert rig.dma.channel(2).transfer_from_memory(3) == b""


def test_masks_disable_and_cascade_gate_a_channel() -> None:
    rig = Rig()
    rig.program(2, TO_MEMORY, 0x01, 0, 511)
    channel = rig.dma.channel(2)
    became_ready: list[int] = []
    channel.on_ready(lambda: became_ready.append(1))
    for close, open_ in (((2, 0xA, 6), (2, 0xA, 2)), ((2, 0xF, 0xF), (2, 0xE, 0)), ((2, 8, 4), (2, 8, 0)), ((5, 0xA, 4), (5, 0xA, 0))):
        rig.out(*close)
        assert not channel.ready and channel.transfer_to_memory(b"a") == 0
        assert not became_ready
        rig.out(*open_)
        assert channel.ready and channel.transfer_to_memory(b"a") == 1
        assert became_ready.pop()
    rig.out(5, 0xD, 0)  # master clear of the second controller masks the cascade, too
    assert not channel.ready
    rig.out(5, 0xB, 0xC0)
    rig.out(5, 0xF, 0x0E)
    assert channel.ready and rig.into(5, 0xF) == 0xFE
    with pytest.raises(ValueError, match="channel 4"):
        rig.dma.channel(4)


def test_flip_flop_and_master_clear() -> None:
    rig = Rig()
    rig.program(2, TO_MEMORY, 0x01, 0x1234, 0x5678)
    assert rig.into(2, 4) == 0x34
    rig.out(2, 0xC, 0)
    assert rig.into(2, 4) == 0x34 and rig.into(2, 4) == 0x12
    assert (rig.into(2, 5), rig.into(2, 5)) == (0x78, 0x56)
    rig.into(2, 4)
    rig.out(2, 0xD, 0)
    assert rig.into(2, 4) == 0x34 and rig.into(2, 0xF) == 0xFF


def test_status_shows_requests() -> None:
    rig = Rig()
    rig.dma.channel(3).request(True)
    assert rig.into(3, 8) == 0x80
    rig.dma.channel(3).request(False)
    assert rig.into(3, 8) == 0


def test_a_software_request_runs_to_the_terminal_count_though_masked() -> None:
    rig = Rig()
    rig.program(1, 0x80 | TO_MEMORY, 0x01, 0x10, 7)
    rig.out(1, 0xA, 5)
    rig.out(1, 9, 5)
    assert rig.memory.read(0x10010, 9) == b"\xff" * 8 + b"\0"
    assert rig.into(1, 8) == 0x02


def test_transfers_outside_of_memory_count_all_the_same() -> None:
    rig = Rig()
    rig.program(2, TO_MEMORY, 0x09, 0xF800, 0x17FF)  # wraps within the page
    channel = rig.dma.channel(2)
    assert channel.transfer_to_memory(b"y" * 0x1800) == 0x1800 and channel.terminal_count
    assert rig.memory.read(0x9F800, 0x800) == b"y" * 0x800 and rig.memory.read(0x90000, 0x1000) == b"y" * 0x1000
    rig.program(2, TO_MEMORY, 0x0A, 0, 0xFF)
    assert channel.transfer_to_memory(b"z" * 256) == 256
    rig.program(2, FROM_MEMORY, 0x0A, 0, 0xFF)
    assert channel.transfer_from_memory(256) == b"\xff" * 256
    rig.program(5, TO_MEMORY, 0x08, 0xFFFF, 1)  # the last word below the hole, then back to 0x80000
    assert rig.dma.channel(5).transfer_to_memory(b"abcd") == 4
    assert rig.memory.read(0x80000, 2) == b"cd"


def test_a_range_that_is_partly_memory_is_written_where_there_is_some() -> None:
    rig = Rig()
    rig.program(1, TO_MEMORY, 0x20, 0x0800, 0x0FFF)  # memory ends at 0x201000
    assert rig.dma.channel(1).transfer_to_memory(b"q" * 0x1000) == 0x1000
    assert rig.memory.read(0x200800, 0x800) == b"q" * 0x800
    rig.program(1, FROM_MEMORY, 0x20, 0x0FFF, 1)
    assert rig.dma.channel(1).transfer_from_memory(2) == b"q\xff"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 31), st.integers(0, 255)), max_size=60), st.integers(0, 7))
def test_any_programming_stays_within_memory_and_ends(writes: list[tuple[bool, int, int]], number: int) -> None:
    rig = Rig()
    for high, port, value in writes:
        (rig.dma.high if high else rig.dma.low).write(port if high else port & 15, 1, value)
        rig.dma.pages.write(port & 15, 1, value)
    if number != 4:
        channel = rig.dma.channel(number)
        assert channel.transfer_to_memory(b"a" * 0x21000) <= 0x20000
        assert len(channel.transfer_from_memory(0x21000)) <= 0x20000
    saved = rig.dma.save()
    rig.dma.load(saved)
    assert rig.dma.save() == saved
