"""The bytes of a request, whatever way the driver cut it into descriptors (VIRTIO 1.2, 2.7.4.1: devices must not care)."""

from __future__ import annotations

from collections.abc import Sequence

from ringfence.devices.virtio.queue import GuestRange
from ringfence.memory.guest_memory import GuestMemory


def total_bytes(ranges: Sequence[GuestRange]) -> int:
    return sum(size for _, size in ranges)


def gather(memory: GuestMemory, ranges: Sequence[GuestRange]) -> bytes:
    """A copy of the ranges' contents.  The caller has bounded their total."""
    if len(ranges) == 1:
        return memory.read(*ranges[0])
    return b"".join([memory.view(addr, size) for addr, size in ranges])


def scatter(memory: GuestMemory, ranges: Sequence[GuestRange], data: bytes | bytearray | memoryview) -> int:
    """Fills the ranges from their start; returns how many bytes went in."""
    view = memoryview(data)
    done = 0
    for addr, size in ranges:
        part = view[done : done + size]
        if not part:
            break
        memory.write(addr, part)
        done += len(part)
    return done


def take(ranges: Sequence[GuestRange], size_bytes: int) -> list[GuestRange]:
    """The first `size_bytes` of the ranges."""
    taken: list[GuestRange] = []
    for addr, size in ranges:
        if size_bytes <= 0:
            break
        taken.append((addr, min(size, size_bytes)))
        size_bytes -= size
    return taken


def skip(ranges: Sequence[GuestRange], size_bytes: int) -> list[GuestRange]:
    """What remains of the ranges after their first `size_bytes`."""
    rest: list[GuestRange] = []
    for addr, size in ranges:
        if size > size_bytes:
            rest.append((addr + size_bytes, size - size_bytes))
        size_bytes = max(0, size_bytes - size)
    return rest
