"""The driver's side of NVMe, as small as it goes."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ringfence.bus.bus import Bus
from ringfence.bus.irq import IrqLine
from ringfence.bus.pci import PciBus
from ringfence.devices.nvme import Nvme
from ringfence.devices.nvme_queue import QUEUES
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.virtio.driver import Disk, Messages, Posted

RAM_BYTES = 8 << 20
ADMIN_SQ, ADMIN_CQ, IO_SQ, IO_CQ = 0x10000, 0x20000, 0x40000, 0x60000
LISTS, BUFFERS = 0x80000, 0x100000
BAR = 0xE000_0000
DEVFN = 3 << 3


class Completion(NamedTuple):
    result: int
    sq_head: int
    sq: int
    cid: int
    status: int


class NvmeDriver:
    """A controller in a world of its own; queue 0 has 8 entries, I/O queues have 16."""

    ADMIN_ENTRIES, IO_ENTRIES = 8, 16

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        self.posted = Posted()
        self.memory = GuestMemory()
        self.memory.add_ram(0, RAM_BYTES)
        self.messages = Messages()
        self.line = IrqLine("INTA", lambda level: None)
        self.nvme = Nvme(self.disk, self.memory, self.posted, self.messages, self.line.pin())
        self.mmio, ports = Bus("mmio", 1 << 46), Bus("ports", 1 << 16)
        self.pci = PciBus(self.mmio, ports, self.memory)
        self.pci.add(DEVFN >> 3, self.nvme)
        self.pci.assign_addresses(BAR, BAR + (1 << 20), 0xC000, 0xD000)
        self.pci.write_config(DEVFN, 4, 2, 0x0006)
        self.tails = [0] * QUEUES
        self.heads = [0] * QUEUES
        self.phases = [1] * QUEUES
        self.cid = 0

    # -- registers

    def get(self, offset: int, size: int = 4) -> int:
        return self.nvme.read(offset, size)

    def put(self, offset: int, value: int, size: int = 4) -> None:
        self.nvme.write(offset, size, value)

    def doorbell(self, queue: int, value: int, completion: bool = False) -> None:
        self.put(0x1000 + 8 * queue + 4 * completion, value)

    def enable(self) -> None:
        self.put(0x24, self.ADMIN_ENTRIES - 1 << 16 | self.ADMIN_ENTRIES - 1)
        self.put(0x28, ADMIN_SQ, 8)
        self.put(0x30, ADMIN_CQ)
        self.put(0x34, 0)
        self.tails, self.heads, self.phases = [0] * QUEUES, [0] * QUEUES, [1] * QUEUES
        self.memory.write(ADMIN_CQ, bytes(0x10000))
        self.memory.write(IO_CQ, bytes(0x10000))
        self.put(0x14, 4 << 20 | 6 << 16 | 1)
        assert self.get(0x1C) == 1

    def enable_msix(self) -> None:
        """Vector k sends 0x4000 + k."""
        bar = self.pci.read_config(DEVFN, 0x20, 4) & ~15
        for vector in range(QUEUES):
            for k, value in enumerate((0xFEE0_0000, 0, 0x4000 + vector, 0)):
                self.mmio.write(bar + 16 * vector + 4 * k, 4, value)
        capability = self.pci.read_config(DEVFN, 0x34, 1)
        assert self.pci.read_config(DEVFN, capability, 1) == 0x11
        self.pci.write_config(DEVFN, capability + 2, 2, 0x8000)

    # -- queues

    def entries(self, queue: int) -> int:
        return self.IO_ENTRIES if queue else self.ADMIN_ENTRIES

    def submit(
        self, queue: int, opcode: int, *cdw: int, nsid: int = 1, prp1: int = BUFFERS, prp2: int = 0, flags: int = 0, ring: bool = True
    ) -> int:
        """`cdw` are dwords 10 on; returns the command's identifier."""
        self.cid = self.cid + 1 & 0xFFFF
        words = [*cdw, *[0] * (6 - len(cdw))]
        entry = struct.pack("<BBHI16xQQ6I", opcode, flags, self.cid, nsid, prp1, prp2, *words)
        base = IO_SQ + 0x1000 * (queue - 1) if queue else ADMIN_SQ
        self.memory.write(base + 64 * self.tails[queue], entry)
        self.tails[queue] = (self.tails[queue] + 1) % self.entries(queue)
        if ring:
            self.doorbell(queue, self.tails[queue])
        return self.cid

    def collect(self, queue: int, acknowledge: bool = True) -> list[Completion]:
        """What has completed."""
        base = IO_CQ + 0x1000 * (queue - 1) if queue else ADMIN_CQ
        found = []
        while True:
            result, _, head, sq, cid, field = struct.unpack("<IIHHHH", self.memory.read(base + 16 * self.heads[queue], 16))
            if field & 1 != self.phases[queue]:
                break
            found.append(Completion(result, head, sq, cid, field >> 1))
            self.heads[queue] += 1
            if self.heads[queue] == self.entries(queue):
                self.heads[queue] = 0
                self.phases[queue] ^= 1
        if found and acknowledge:
            self.doorbell(queue, self.heads[queue], completion=True)
        return found

    def run(self, queue: int, opcode: int, *cdw: int, nsid: int = 1, prp1: int = BUFFERS, prp2: int = 0, flags: int = 0) -> Completion:
        """One command to its end; what was handed to the worker is waited for."""
        cid = self.submit(queue, opcode, *cdw, nsid=nsid, prp1=prp1, prp2=prp2, flags=flags)
        for _ in range(10):
            found = self.collect(queue)
            if found:
                assert len(found) == 1 and found[0].cid == cid and found[0].sq == queue
                return found[0]
            self.posted.run_one()
        raise AssertionError("no completion")

    def admin(self, opcode: int, *cdw: int, nsid: int = 0, prp1: int = BUFFERS, prp2: int = 0, flags: int = 0) -> Completion:
        return self.run(0, opcode, *cdw, nsid=nsid, prp1=prp1, prp2=prp2, flags=flags)

    def create_io_queues(self, number: int = 1, vector: int = 1, interrupts: bool = True) -> None:
        size = self.IO_ENTRIES - 1 << 16 | number
        page = 0x1000 * (number - 1)
        assert self.admin(0x05, size, vector << 16 | interrupts << 1 | 1, prp1=IO_CQ + page).status == 0
        assert self.admin(0x01, size, number << 16 | 1, prp1=IO_SQ + page).status == 0

    def start(self) -> NvmeDriver:
        self.enable()
        assert self.admin(0x09, 0x07, 0x0003_0003) == (0x0007_0007, 1, 0, self.cid, 0)
        self.create_io_queues()
        return self
