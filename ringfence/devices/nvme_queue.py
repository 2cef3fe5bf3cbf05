"""NVMe queues and commands: fetched from and completed into guest memory.

NVM Express Base Specification 1.4: 4.1 (queues), 4.2 (submission queue entry), 4.3 (physical region pages), 4.6 (completion queue
entry), 4.5.1 (status codes).  A command is fetched only while its completion queue has room for it and for all that are under way,
so a completion never has to wait.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ringfence.core.state import Field, State
from ringfence.core.units import PAGE_BYTES
from ringfence.memory.guest_memory import GuestMemory

IO_QUEUES = 8
QUEUES = IO_QUEUES + 1  # the admin queues are number 0
MAX_ENTRIES = 1024
COMMAND_BYTES, COMPLETION_BYTES = 64, 16

# Status: code type << 8 | code
SUCCESS, INVALID_OPCODE, INVALID_FIELD = 0x000, 0x001, 0x002
DATA_TRANSFER_ERROR, INTERNAL_ERROR, ABORT_REQUESTED = 0x004, 0x006, 0x007
INVALID_NAMESPACE, SEQUENCE_ERROR, PRP_OFFSET_INVALID, WRITE_PROTECTED = 0x00B, 0x00C, 0x013, 0x020
LBA_OUT_OF_RANGE, CAPACITY_EXCEEDED = 0x080, 0x081
CQ_INVALID, QID_INVALID, QUEUE_SIZE_INVALID, AER_LIMIT_EXCEEDED = 0x100, 0x101, 0x102, 0x105
VECTOR_INVALID, LOG_PAGE_INVALID, QUEUE_DELETION_INVALID, FEATURE_NOT_SAVEABLE = 0x108, 0x109, 0x10C, 0x10D
WRITE_FAULT, UNRECOVERED_READ, COMPARE_FAILURE = 0x280, 0x281, 0x285
DO_NOT_RETRY = 0x4000

_COMMAND = struct.Struct("<BBHI16xQQ6I")
_COMPLETION = struct.Struct("<IIHHHH")

GuestRange = tuple[int, int]


class CommandError(Exception):
    """Ends a command with a status that tells the driver what was wrong with it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"NVMe status {status:#x}")
        self.status = status


class Command(NamedTuple):
    opcode: int
    flags: int
    cid: int
    nsid: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @classmethod
    def unpack(cls, data: bytes) -> Command:
        return cls(*_COMMAND.unpack(data))


class SubmissionQueue(State):
    base = Field(64)
    size = Field(13, doc="entries; 0: there is no such queue")
    head = Field(13)
    tail = Field(13)
    completion_queue = Field(4)

    def pending(self) -> bool:
        return bool(self.head != self.tail)

    def fetch(self, memory: GuestMemory) -> Command:
        """Takes the entry at the head; raises GuestMemoryError."""
        data = memory.read(self.base + COMMAND_BYTES * self.head, COMMAND_BYTES)
        self.head = (self.head + 1) % self.size
        return Command.unpack(data)


class CompletionQueue(State):
    base = Field(64)
    size = Field(13, doc="entries; 0: there is no such queue")
    head = Field(13)
    tail = Field(13)
    phase = Field(1, reset=1)
    interrupts = Field(1, doc="IEN")
    vector = Field(16)
    in_flight = 0  # commands whose completions will come here; not saved: there are none while a machine is paused

    @property
    def used(self) -> int:
        return int((self.tail - self.head) % self.size)

    def has_room(self) -> bool:
        return bool(self.size and self.size - 1 - self.used > self.in_flight)

    def post(self, memory: GuestMemory, submission: SubmissionQueue, sq_number: int, cid: int, status: int, result: int) -> None:
        """4.6; raises GuestMemoryError."""
        field = status << 1 | self.phase
        data = _COMPLETION.pack(result & 0xFFFFFFFF, 0, submission.head, sq_number, cid, field)
        memory.write(self.base + COMPLETION_BYTES * self.tail, data)
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1


def prp_ranges(memory: GuestMemory, command: Command, size_bytes: int) -> list[GuestRange]:
    """Where a command's data is (4.3), neighbours joined.  The caller has bounded the size.

    A list's last entry leads to the next list only when more than one entry is still missing, and that next list begins a page: so
    every second list at the latest holds 511 entries, and a list that leads back to itself comes to an end like any other.
    Raises CommandError, and GuestMemoryError for a list that is not in memory.
    """
    first = command.prp1
    if first & 3:
        raise CommandError(PRP_OFFSET_INVALID)
    size = min(size_bytes, PAGE_BYTES - first % PAGE_BYTES)
    ranges: list[GuestRange] = [(first, size)]
    left = size_bytes - size
    entries: list[int] = []
    if 0 < left <= PAGE_BYTES:
        entries.append(command.prp2)
    elif left:
        missing = -(-left // PAGE_BYTES)
        at = command.prp2
        if at & 7:
            raise CommandError(PRP_OFFSET_INVALID)
        while missing:
            slots = (PAGE_BYTES - at % PAGE_BYTES) // 8
            count = min(slots, missing)
            found = list(struct.unpack(f"<{count}Q", memory.read(at, 8 * count)))
            if missing > slots:
                at = found.pop()
                if at % PAGE_BYTES:
                    raise CommandError(PRP_OFFSET_INVALID)
            entries += found
            missing -= len(found)
    for entry in entries:
        if entry % PAGE_BYTES:
            raise CommandError(PRP_OFFSET_INVALID)
        size = min(left, PAGE_BYTES)
        left -= size
        last, last_size = ranges[-1]
        if last + last_size == entry:
            ranges[-1] = (last, last_size + size)
        else:
            ranges.append((entry, size))
    return ranges


def gather(memory: GuestMemory, ranges: list[GuestRange]) -> bytes:
    """A copy of what the ranges hold; raises GuestMemoryError."""
    return b"".join([memory.read(addr, size) for addr, size in ranges])


def scatter(memory: GuestMemory, ranges: list[GuestRange], data: bytes | bytearray) -> None:
    """Fills the ranges; raises GuestMemoryError."""
    view, done = memoryview(data), 0
    for addr, size in ranges:
        memory.write(addr, view[done : done + size])
        done += size
