"""Split virtqueues: well-formed chains, notification, and every way of breaking the rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.devices.virtio.queue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Virtqueue, VirtqueueError
from tests.unit.virtio.driver import BUFFERS, RAM_BYTES, READ, WRITE, Ring, make_memory

SIZE = 8


def make(event_idx: bool = False, indirect: bool = True) -> tuple[Virtqueue, Ring]:
    memory = make_memory()
    ring = Ring(memory, SIZE)
    queue = Virtqueue(memory, SIZE)
    queue.desc_addr, queue.driver_addr, queue.device_addr = ring.desc, ring.avail, ring.used
    queue.enable(event_idx, indirect)
    return queue, ring


@pytest.mark.parametrize("indirect", [False, True])
def test_chain_is_split_into_readable_and_writable(indirect: bool) -> None:
    queue, ring = make()
    head = ring.offer((BUFFERS, 16, READ), (BUFFERS + 0x100, 512, WRITE), (BUFFERS + 0x400, 1, WRITE), indirect=indirect)
    chain = queue.pop()
    assert chain is not None
    assert (chain.head, chain.readable, chain.writable) == (
        head,
        [(BUFFERS, 16)],
        [(BUFFERS + 0x100, 512), (BUFFERS + 0x400, 1)],
    )
    assert (chain.readable_bytes, chain.writable_bytes) == (16, 513)
    assert queue.pop() is None
    queue.push(chain, 513)
    assert ring.collect() == [(head, 513)]


def test_indexes_wrap() -> None:
    queue, ring = make()
    queue.last_avail = queue.used_index = queue.signalled = 0xFFFE
    ring.avail_index = ring.used_index = 0xFFFE
    for _ in range(5):
        head = ring.offer((BUFFERS, 4, WRITE))
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 4)
        assert queue.must_notify()
        assert ring.collect() == [(head, 4)]
    assert queue.used_index == 3


def test_empty_buffers_are_left_out() -> None:
    queue, ring = make()
    ring.offer((0xDEAD_0000_0000, 0, READ), (BUFFERS, 4, READ))
    chain = queue.pop()
    assert chain is not None and chain.readable == [(BUFFERS, 4)]


def test_no_interrupt_flag() -> None:
    queue, ring = make()
    for flag in (1, 0):
        ring.memory.write_uint(ring.avail, 2, flag)
        ring.offer((BUFFERS, 4, WRITE))
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        assert queue.must_notify() is (flag == 0)


def test_event_index_decides_both_notifications() -> None:
    queue, ring = make(event_idx=True)
    ring.set_used_event(1)  # tell me when used index passes 1
    notified = []
    for _ in range(3):
        ring.offer((BUFFERS, 4, WRITE))
        for chain in queue.chains():
            queue.push(chain, 0)
        notified.append(queue.must_notify())
    assert notified == [False, True, False]
    assert ring.avail_event == 3  # the device wants to hear of the fourth


def test_a_batch_that_passes_used_event_notifies_once() -> None:
    queue, ring = make(event_idx=True)
    ring.set_used_event(1)
    for _ in range(4):
        ring.offer((BUFFERS, 4, WRITE))
    for chain in queue.chains():
        queue.push(chain, 0)
    assert queue.must_notify()
    assert not queue.must_notify()


def hostile(name: str, ring: Ring) -> None:
    describe = ring.describe
    match name:
        case "head out of range":
            ring.make_available(SIZE)
        case "next out of range":
            describe(0, BUFFERS, 4, DESC_NEXT, SIZE)
        case "loop":
            describe(0, BUFFERS, 4, DESC_NEXT, 1)
            describe(1, BUFFERS, 4, DESC_NEXT, 0)
        case "loop of empty buffers":
            describe(0, 0, 0, DESC_NEXT, 0)
        case "outside of RAM":
            describe(0, RAM_BYTES, 1, 0)
        case "over the end of RAM":
            describe(0, RAM_BYTES - 8, 16, 0)
        case "address overflow":
            describe(0, 2**64 - 8, 16, 0)
        case "writable before readable":
            ring.offer((BUFFERS, 4, WRITE), (BUFFERS, 4, READ))
            return
        case "available index too far":
            ring.memory.write_uint(ring.avail + 2, 2, SIZE + 1)
            return
        case "indirect table empty":
            describe(0, BUFFERS, 0, DESC_INDIRECT)
        case "indirect table not whole":
            describe(0, BUFFERS, 24, DESC_INDIRECT)
        case "indirect table outside of RAM":
            describe(0, RAM_BYTES - 16, 32, DESC_INDIRECT)
        case "indirect and next":
            describe(0, BUFFERS, 16, DESC_INDIRECT | DESC_NEXT, 1)
        case "indirect in indirect":
            describe(0, ring.tables, 16, DESC_INDIRECT)
            describe(0, ring.tables, 16, DESC_INDIRECT, 0, ring.tables)
        case "indirect chain longer than the queue":
            for k in range(SIZE + 1):
                describe(k, BUFFERS, 4, DESC_NEXT if k < SIZE else 0, k + 1, ring.tables)
            describe(0, ring.tables, 16 * (SIZE + 1), DESC_INDIRECT)
        case "indirect loop":
            describe(0, BUFFERS, 4, DESC_NEXT | DESC_WRITE, 0, ring.tables)
            describe(0, ring.tables, 16, DESC_INDIRECT)
    if name != "head out of range":
        ring.make_available(0)


@pytest.mark.parametrize(
    "name",
    [
        "head out of range",
        "next out of range",
        "loop",
        "loop of empty buffers",
        "outside of RAM",
        "over the end of RAM",
        "address overflow",
        "writable before readable",
        "available index too far",
        "indirect table empty",
        "indirect table not whole",
        "indirect table outside of RAM",
        "indirect and next",
        "indirect in indirect",
        "indirect chain longer than the queue",
        "indirect loop",
    ],
)
def test_broken_rules_are_found(name: str) -> None:
    queue, ring = make()
    hostile(name, ring)
    with pytest.raises(VirtqueueError):
        queue.pop()


def test_indirect_needs_negotiation() -> None:
    queue, ring = make(indirect=False)
    ring.offer((BUFFERS, 4, READ), indirect=True)
    with pytest.raises(VirtqueueError, match="indirect"):
        queue.pop()


@pytest.mark.parametrize(
    ("area", "addr"),
    [("desc_addr", 0x10008), ("driver_addr", 0x10001), ("device_addr", 0x10002), ("desc_addr", RAM_BYTES), ("driver_addr", RAM_BYTES - 8)],
)
def test_bad_rings_are_refused(area: str, addr: int) -> None:
    queue, ring = make()
    queue.reset()
    setattr(queue, area, addr)
    with pytest.raises(VirtqueueError):
        queue.enable(False, False)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=SIZE * 16, max_size=SIZE * 16), st.integers(0, 0xFFFF), st.lists(st.integers(0, SIZE), max_size=SIZE))
def test_random_rings_never_raise_anything_else(table: bytes, flags: int, heads: list[int]) -> None:
    queue, ring = make()
    near = bytearray(table)
    for k in range(SIZE):  # addresses and links that are often good, so that walks get far
        addr, size, kind, following = struct.unpack_from("<QIHH", near, 16 * k)
        struct.pack_into("<QIHH", near, 16 * k, addr % (RAM_BYTES + 4096), size % 8192, kind & 7, following % (SIZE + 1))
    ring.memory.write(ring.desc, near)
    ring.memory.write_uint(ring.avail, 2, flags)
    for head in heads:
        ring.make_available(head)
    try:
        for chain in queue.chains():
            for addr, size in chain.readable + chain.writable:
                ring.memory.view(addr, size)
            queue.push(chain, 0)
            queue.must_notify()
    except VirtqueueError:
        pass


def test_save_and_load() -> None:
    queue, ring = make(event_idx=True)
    ring.offer((BUFFERS, 4, WRITE))
    saved = queue.save()
    other = Virtqueue(ring.memory, SIZE)
    other.load(saved)
    assert other.save() == saved
    chain = other.pop()
    assert chain is not None and chain.writable == [(BUFFERS, 4)]
    with pytest.raises(VirtqueueError):
        other.load({**saved, "size": 3})
