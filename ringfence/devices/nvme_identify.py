"""What the NVMe controller tells about itself and its disk: identify structures and log pages.

NVM Express Base Specification 1.4, 5.14 (log pages), 5.15 (identify).
"""

from __future__ import annotations

import struct

from ringfence.backends.api import Block
from ringfence.devices.nvme_io import LBA_SHIFT, MDTS, NAMESPACE
from ringfence.devices.nvme_queue import LOG_PAGE_INVALID, CommandError
from ringfence.devices.nvme_state import ASYNC_EVENTS, LOG_ERRORS, VERSION, NvmeState

IDENTIFY_BYTES = 4096
LOG_SMART, LOG_FIRMWARE, LOG_EFFECTS = 2, 3, 5
ABORT_LIMIT = 3
_TEMPERATURE_K = 303
_FIRMWARE = b"1.0     "
_ADMIN_COMMANDS = (0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0C)
_IO_COMMANDS = {0x00: 1, 0x01: 3, 0x02: 1, 0x05: 1, 0x08: 3, 0x09: 3}  # bit 0: supported, bit 1: changes blocks


def controller(vendor_id: int, subsystem_vendor_id: int, serial: str) -> bytes:
    """Figure 247."""
    data = bytearray(IDENTIFY_BYTES)
    text = serial.encode()[:20]
    struct.pack_into("<HH20s40s8s", data, 0, vendor_id, subsystem_vendor_id, text.ljust(20), b"Ringfence NVMe".ljust(40), _FIRMWARE)
    data[72] = 6  # RAB: what an arbitration burst should be, 2^6
    data[77] = MDTS
    struct.pack_into("<I", data, 80, VERSION)
    data[111] = 1  # CNTRLTYPE: I/O controller
    data[258], data[259] = ABORT_LIMIT, ASYNC_EVENTS - 1
    data[260] = 0x03  # FRMW: one slot, read-only
    data[261] = 0x06  # LPA: commands supported and effects, extended data
    struct.pack_into("<HH", data, 266, 343, 353)  # WCTEMP, CCTEMP
    data[512], data[513] = 0x66, 0x44  # SQES, CQES: 64 and 16 bytes
    struct.pack_into("<IH", data, 516, NAMESPACE, 0x000D)  # NN; ONCS: compare, dataset management, write zeroes
    data[525] = 0x07  # VWC: present; flush of all namespaces is supported
    name = f"nqn.2014.08.org.nvmexpress:{vendor_id:04x}{subsystem_vendor_id:04x}{serial[:20]:20}Ringfence NVMe".encode()
    data[768 : 768 + len(name)] = name
    data[2048:2050] = struct.pack("<H", 900)  # power state 0, in centiwatts
    return bytes(data)


def namespace(backend: Block) -> bytes:
    """Figure 245: one format of 512-byte blocks."""
    data = bytearray(IDENTIFY_BYTES)
    blocks = backend.size_bytes >> LBA_SHIFT
    struct.pack_into("<QQQ", data, 0, blocks, blocks, blocks)
    data[24] = 0x10  # NSFEAT: NPWG and the like below are there
    data[33] = 0x08  # DLFEAT: write zeroes may deallocate; what a deallocated block reads as is not told
    struct.pack_into("<HHHHH", data, 64, 7, 7, 7, 7, 7)  # NPWG, NPWA, NPDG, NPDA, NOWS: 4 KiB, what host file systems work in
    data[99] = 1 if backend.readonly else 0  # NSATTR
    struct.pack_into("<I", data, 128, LBA_SHIFT << 16)
    return bytes(data)


def namespace_descriptors(serial: str) -> bytes:
    """Figure 249: an identifier made from the serial number, so that the disk keeps its name when it moves to another slot."""
    raw = bytearray(serial.encode().ljust(16, b"\0")[:16])
    raw[6] = raw[6] & 0x0F | 0x80  # a UUID of version 8: "vendor specific" (RFC 9562, 5.8)
    raw[8] = raw[8] & 0x3F | 0x80
    return (b"\x03\x10\0\0" + bytes(raw)).ljust(IDENTIFY_BYTES, b"\0")


def log_page(number: int, state: NvmeState) -> bytes:
    """Raises CommandError for a page that does not exist."""
    if number == LOG_ERRORS:
        entry = struct.pack("<QHHHHQI", state.error_count, 0xFFFF, 0xFFFF, 0, 0xFFFF, 0, 0) if state.error_count else b""
        return entry.ljust(64, b"\0")
    if number == LOG_SMART:
        head = struct.pack("<BHBBB", 0, _TEMPERATURE_K, 100, 10, 0).ljust(32, b"\0")
        units = [-(-sectors // 1000) for sectors in (state.sectors_read, state.sectors_written)]
        counters = (*units, state.reads, state.writes, 0, 1, 0, 0, 0, state.error_count)
        return (head + b"".join(value.to_bytes(16, "little") for value in counters)).ljust(512, b"\0")
    if number == LOG_FIRMWARE:
        return (b"\x01" + bytes(7) + _FIRMWARE).ljust(512, b"\0")
    if number == LOG_EFFECTS:
        data = bytearray(4096)
        for opcode in _ADMIN_COMMANDS:
            data[4 * opcode] = 1
        for opcode, effects in _IO_COMMANDS.items():
            data[1024 + 4 * opcode] = effects
        return bytes(data)
    raise CommandError(LOG_PAGE_INVALID)
