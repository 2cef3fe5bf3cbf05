"""What firmware finds in CMOS RAM: memory sizes, drives, boot order.

Addresses below 0x40 are the PC/AT's (IBM PC/AT Technical Reference, "CMOS RAM map", as extended by AMI and Award); those that say how
much memory lies above 16 MiB and 4 GiB, how disks are translated and what is booted first are the ones that Bochs and QEMU use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ringfence.core.units import KIB, MIB
from ringfence.devices.ata_geometry import Geometry, Translation
from ringfence.machine.boot import layout
from ringfence.memory.guest_memory import GuestMemory

Disk = tuple[Geometry, Translation]
"""What an IDE disk announces, and how firmware makes cylinders of it."""
BootDevice = Literal["floppy", "disk", "cdrom", "net"]

_FLOPPY_TYPES = {160: 1, 180: 1, 320: 1, 360: 1, 1200: 2, 720: 3, 1440: 4, 2880: 5}  # by KiB
_BIGGEST_FLOPPY = 5
_BOOT_CODES: dict[BootDevice, int] = {"floppy": 1, "disk": 2, "cdrom": 3, "net": 4}
_FPU, _MOUSE, _FLOPPY_PRESENT = 0x02, 0x04, 0x01
_USER_TYPE = 47
_BASE_MEMORY_KIB = 640
_NO_FLOPPY_SIGNATURE_CHECK = 0x01
_CENTURY = 0x32
FURTHER_CPUS = 0x5F
"""How many CPUs there are beside the first; SeaBIOS waits for so many."""


def floppy_type(size_bytes: int) -> int:
    """The drive that a diskette of that size belongs into, as CMOS and INT 13h number them; the biggest for odd sizes."""
    return _FLOPPY_TYPES.get(size_bytes // KIB, _BIGGEST_FLOPPY)


def memory_bytes(memory: GuestMemory) -> dict[int, int]:
    """Sizes of base, extended and high memory."""
    low = layout.low_ram_end(memory)
    high = memory.size_bytes - low
    above_1m = min(max(low - MIB, 0) // KIB, 0xFFFF)
    above_16m = min(max(low - 16 * MIB, 0) // (64 * KIB), 0xFFFF)
    above_4g = min(high // (64 * KIB), 0xFF_FFFF)
    values = _bytes(0x15, 2, _BASE_MEMORY_KIB) | _bytes(0x17, 2, above_1m) | _bytes(0x30, 2, above_1m)
    return values | _bytes(0x34, 2, above_16m) | _bytes(0x5B, 3, above_4g)


def drive_bytes(floppies: Sequence[int], ide_disks: Mapping[int, Disk], *, mouse: bool) -> dict[int, int]:
    """`floppies` are sizes in bytes; `ide_disks` are by place: 0 primary master to 3 secondary slave."""
    kinds = [floppy_type(size_bytes) for size_bytes in floppies[:2]]
    values = {0x10: sum(kind << 4 * (1 - n) for n, kind in enumerate(kinds))}
    equipment = _FPU | (_MOUSE if mouse else 0)
    if kinds:
        equipment |= _FLOPPY_PRESENT | len(kinds) - 1 << 6
    values[0x14] = equipment
    values[0x12] = values[0x39] = 0
    for place, ((cylinders, heads, sectors), translation) in ide_disks.items():
        values[0x39] |= translation << 2 * place
        if place < 2:
            values[0x12] |= 0xF0 >> 4 * place
            values[0x19 + place] = _USER_TYPE
            at = 0x1B + 9 * place
            values |= _bytes(at, 2, cylinders) | {at + 2: heads} | _bytes(at + 3, 2, 0xFFFF) | {at + 5: 0xC0}
            values |= _bytes(at + 6, 2, cylinders) | {at + 8: sectors}
    return values


def boot_bytes(order: Sequence[BootDevice]) -> dict[int, int]:
    """The first three kinds to be booted from; a floppy need not end with the signature of a boot sector."""
    codes = [_BOOT_CODES[kind] for kind in order[:3]] + [0] * 3
    return {0x3D: codes[0] | codes[1] << 4, 0x38: codes[2] << 4 | _NO_FLOPPY_SIGNATURE_CHECK}


def checksum_bytes(values: Mapping[int, int]) -> dict[int, int]:
    """The PC/AT's sum over 0x10-0x2d, high byte first."""
    total = sum(values.get(address, 0) for address in range(0x10, 0x2E))
    return {0x2E: total >> 8 & 0xFF, 0x2F: total & 0xFF}


def contents(
    memory: GuestMemory,
    floppies: Sequence[int] = (),
    ide_disks: Mapping[int, Disk] | None = None,
    order: Sequence[BootDevice] = (),
    *,
    mouse: bool = False,
) -> dict[int, int]:
    """Every byte by its address; for `Rtc.set_nvram`."""
    values = memory_bytes(memory) | drive_bytes(floppies, ide_disks or {}, mouse=mouse) | boot_bytes(order)
    assert _CENTURY not in values
    return values | checksum_bytes(values)


def _bytes(address: int, count: int, value: int) -> dict[int, int]:
    return {address + n: value >> 8 * n & 0xFF for n in range(count)}
