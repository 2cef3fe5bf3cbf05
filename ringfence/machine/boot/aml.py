"""A small writer of ACPI machine language: functions from terms to bytes.

ACPI 6.4, chapter 20 (AML) and 6.4 (resource data types).  Only what our DSDT says is here; terms nest as plain function calls::

    device("COM1", name("_HID", eisa_id("PNP0501")), name("_CRS", resources(io_ports(0x3F8, 8), irq(4))))
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

Term = bytes | int | str
"""An encoded term, an integer or a string constant."""


def term(value: Term) -> bytes:
    """A constant's shortest encoding (20.2.3); an encoded term stays as it is."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return b"\x0d" + value.encode("ascii") + b"\0"
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value} is no 64-bit unsigned integer")


def name_path(path: str) -> bytes:
    """`_SB.PCI0`, `\\_SB`: segments padded to four characters (20.2.2)."""
    root = b"\\" if path.startswith("\\") else b""
    segments = path.removeprefix("\\").split(".")
    if not all(_is_segment(segment) for segment in segments):
        raise ValueError(f"{path!r} is no ACPI name")
    encoded = "".join(segment.ljust(4, "_") for segment in segments).encode("ascii")
    if len(segments) == 1:
        return root + encoded
    prefix = b"\x2e" if len(segments) == 2 else b"\x2f" + bytes([len(segments)])
    return root + prefix + encoded


def _is_segment(text: str) -> bool:
    return 0 < len(text) <= 4 and not text[0].isdigit() and all(c == "_" or (c.isascii() and (c.isdigit() or c.isupper())) for c in text)


def _package_length(body_bytes: int) -> bytes:
    """PkgLength counts itself (20.2.4): one byte up to 63, else 4 bits and then one to three bytes more."""
    if body_bytes + 1 < 1 << 6:
        return bytes([body_bytes + 1])
    for more in (1, 2, 3):
        total = body_bytes + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes([more << 6 | total & 0xF]) + (total >> 4).to_bytes(more, "little")
    raise ValueError(f"{body_bytes} bytes do not fit an AML package")


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + _package_length(len(body)) + body


def name(path: str, value: Term) -> bytes:
    return b"\x08" + name_path(path) + term(value)


def scope(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x10", name_path(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x5b\x82", name_path(path) + b"".join(terms))


def method(path: str, argument_count: int, *terms: bytes) -> bytes:
    """Not serialized."""
    return _sized(b"\x14", name_path(path) + bytes([argument_count]) + b"".join(terms))


def if_(predicate: Term, *terms: bytes) -> bytes:
    return _sized(b"\xa0", term(predicate) + b"".join(terms))


def store(source: bytes, target: bytes) -> bytes:
    return b"\x70" + source + target


ARG0 = b"\x68"


def return_(value: Term) -> bytes:
    return b"\xa4" + term(value)


def package(elements: Sequence[Term]) -> bytes:
    """Package for up to 255 elements."""
    return _sized(b"\x12", bytes([len(elements)]) + b"".join(term(e) for e in elements))


def buffer(content: bytes) -> bytes:
    return _sized(b"\x11", term(len(content)) + content)


def eisa_id(text: str) -> bytes:
    """`PNP0A03` as the 32-bit integer of 19.3.4 (three 5-bit letters and four hex digits, big-endian)."""
    letters = [ord(c) - 0x40 for c in text[:3]]
    value = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + value.to_bytes(4, "big")


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate: descriptors and the end tag, whose checksum of 0 means "not checked" (6.4.2.9)."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io_ports(base: int, count: int) -> bytes:
    """IO: fixed ports, 16-bit decode (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def irq(*lines: int) -> bytes:
    """IRQNoFlags: edge-triggered, active high, exclusive (6.4.2.1)."""
    return struct.pack("<BH", 0x22, sum(1 << line for line in lines))


def dma(channel: int) -> bytes:
    """Compatibility mode, 8 bits, no bus master (6.4.2.2)."""
    return struct.pack("<BBB", 0x2A, 1 << channel, 0)


def interrupt(gsi: int) -> bytes:
    """Extended interrupt: consumer, level-triggered, active high, exclusive (6.4.3.6)."""
    return struct.pack("<BHBBI", 0x89, 6, 0b0001, 1, gsi)


def memory32_fixed(base: int, size_bytes: int) -> bytes:
    """Memory32Fixed, read/write (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size_bytes)


_MEMORY_WINDOW, _IO_WINDOW, _BUS_WINDOW = 0, 1, 2
_PRODUCER_FIXED = 0b1100  # minimum and maximum are fixed, positive decode, resource producer (6.4.3.5.1)


def _window(kind: int, type_flags: int, base: int, end: int, width: int) -> bytes:
    """Word, DWord and QWord address space descriptors; `end` is exclusive, `width` in bytes."""
    tag, code = {2: (0x88, "H"), 4: (0x87, "I"), 8: (0x8A, "Q")}[width]
    addresses = struct.pack(f"<5{code}", 0, base, end - 1, 0, end - base)
    return struct.pack("<BHBBB", tag, 3 + len(addresses), kind, _PRODUCER_FIXED, type_flags) + addresses


def bus_numbers(first: int, end: int) -> bytes:
    """WordBusNumber, `end` exclusive."""
    return _window(_BUS_WINDOW, 0, first, end, 2)


def io_window(base: int, end: int) -> bytes:
    """WordIO, entire range, `end` exclusive (up to 0x10000)."""
    return _window(_IO_WINDOW, 0b11, base, end, 2)


def memory_window(base: int, end: int) -> bytes:
    """DWordMemory, read/write, not cacheable; `end` exclusive (up to 4 GiB)."""
    return _window(_MEMORY_WINDOW, 1, base, end, 4)


def memory_window64(base: int, end: int) -> bytes:
    """QWordMemory, read/write, cacheable and prefetchable; `end` exclusive."""
    return _window(_MEMORY_WINDOW, 0b111, base, end, 8)


def routing(entries: Iterable[tuple[int, int, int]]) -> bytes:
    """Elements of a _PRT: (PCI device, pin 0-3, GSI), every function of the device (6.2.13)."""
    return package([package([slot << 16 | 0xFFFF, pin, 0, gsi]) for slot, pin, gsi in entries])
