"""NVMe controller with one namespace: registers, doorbells, interrupts; a PCI function.

NVM Express Base Specification 1.4, chapter 3 (registers) and 7.6 (initialisation and shutdown).

    BAR 0   0x0000 controller registers   0x1000 doorbells: submission tail, completion head of queue 0, 1, ...
    BAR 4   MSI-X: a vector for each completion queue

    doorbell --> fetch --> Admin.execute --> complete          (on the device thread)
                   `-----> IoPath.begin ---> complete          (small transfers at once, all else from the worker thread later)

What a driver does wrong ends its command with a status, or, where there is no command to end, the controller with CSTS.CFS.
"""

from __future__ import annotations

from typing import Any

from ringfence.backends.api import Block
from ringfence.bus.irq import IrqPin, MsiSink
from ringfence.bus.msix import Msix
from ringfence.bus.pci import BarKind, PciFunction, PciState
from ringfence.core.errors import GuestMemoryError, SnapshotError
from ringfence.core.trace import tracer
from ringfence.devices.api import Device, Executor
from ringfence.devices.nvme_admin import Admin
from ringfence.devices.nvme_io import COMPARE, LBA_SHIFT, READ, WRITE, IoPath, IoRequest
from ringfence.devices.nvme_queue import (
    DO_NOT_RETRY,
    QUEUES,
    SUCCESS,
    Command,
    CommandError,
    CompletionQueue,
    SubmissionQueue,
)
from ringfence.devices.nvme_state import (
    ASYNC_EVENTS,
    CAP,
    CC_ENABLE,
    CC_WRITABLE,
    CSTS_FATAL,
    CSTS_READY,
    CSTS_SHUTDOWN,
    CSTS_SHUTDOWN_BUSY,
    CSTS_SHUTDOWN_DONE,
    LOG_ERRORS,
    VERSION,
    NvmeState,
)
from ringfence.memory.guest_memory import GuestMemory

trace = tracer("nvme")

# The identity of QEMU's controller: drivers go by the class code, and know of no defects that they would work around.
VENDOR_ID, DEVICE_ID, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID = 0x1B36, 0x0010, 0x1AF4, 0x1100
CLASS_CODE = 0x010802
REGISTER_BAR, MSIX_BAR = 0, 4
BAR_BYTES, DOORBELLS = 0x4000, 0x1000
_EVENT_INVALID_REGISTER, _EVENT_INVALID_VALUE = 0, 1
_PENDING = 1 << 31
_SHUTDOWN_CID = 1 << 16  # no command of the driver's has it
_COUNTER_MASK = (1 << 64) - 1


class Nvme(PciFunction, Device):
    """A disk over `backend`; goes into a `PciBus`.  `serial` (20 characters at most) is what the guest knows it by."""

    state: PciState

    def __init__(
        self,
        backend: Block,
        memory: GuestMemory,
        executor: Executor,
        msi: MsiSink,
        irq: IrqPin | None = None,
        serial: str = "ringfence-nvme",
        name: str = "nvme",
    ) -> None:
        super().__init__(
            name,
            VENDOR_ID,
            DEVICE_ID,
            CLASS_CODE,
            revision_id=2,
            subsystem_vendor_id=SUBSYSTEM_VENDOR_ID,
            subsystem_id=SUBSYSTEM_ID,
            irq=irq,
        )
        self.registers = NvmeState()
        self.submission = [SubmissionQueue() for _ in range(QUEUES)]
        self.completion = [CompletionQueue() for _ in range(QUEUES)]
        self._memory = memory
        self._executor = executor
        self._held = False
        self._told: set[int] = set()  # completion queues with news that were not announced yet
        self._io = IoPath(memory, backend, executor, self._finished, name)
        self._admin = Admin(
            self.registers,
            memory,
            backend,
            self.submission,
            self.completion,
            self._drain,
            lambda cid, status, result: self._complete(0, cid, status, result),
            (VENDOR_ID, SUBSYSTEM_VENDOR_ID, serial),
        )
        self.add_bar(REGISTER_BAR, BAR_BYTES, self, BarKind.MEM64)
        self.msix = Msix(self, QUEUES, MSIX_BAR, msi)
        self.on_config_write(self.msix.control_offset, 1, self._drive_pin)

    # -- registers -------------------------------------------------------------------------------------------------------

    def _register(self, offset: int) -> int:
        """Aligned dwords of 3.1; doorbells and what is reserved read as zero."""
        r = self.registers
        match offset:
            case 0x00 | 0x04:
                return CAP >> 8 * offset & 0xFFFFFFFF
            case 0x08:
                return VERSION
            case 0x0C | 0x10:
                return int(r.intms)
            case 0x14:
                return int(r.cc)
            case 0x1C:
                return int(r.csts)
            case 0x24:
                return int(r.aqa)
            case 0x28 | 0x2C:
                return int(r.asq >> 8 * (offset - 0x28) & 0xFFFFFFFF)
            case 0x30 | 0x34:
                return int(r.acq >> 8 * (offset - 0x30) & 0xFFFFFFFF)
        return 0

    def read(self, offset: int, size: int) -> int:
        aligned = offset & ~3
        value = sum(self._register(aligned + 4 * k) << 32 * k for k in range(3))
        return value >> 8 * (offset - aligned) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """3.1: dwords and qwords, aligned; all else is swallowed."""
        if size < 4 or offset & 3:
            return
        for at in range(offset, min(offset + size, BAR_BYTES), 4):
            if at >= DOORBELLS:
                self._doorbell(at - DOORBELLS >> 2, value & 0xFFFF)
            else:
                self._write_register(at, value & 0xFFFFFFFF)
            value >>= 32

    def _write_register(self, offset: int, value: int) -> None:
        r = self.registers
        match offset:
            case 0x0C:
                r.intms |= value
                self._drive_pin()
            case 0x10:
                r.intms &= ~value
                self._drive_pin()
            case 0x14:
                self._configure(value & CC_WRITABLE)
            case 0x24:
                r.aqa = value & 0x0FFF0FFF
            case 0x28:
                r.asq = r.asq & ~0xFFFFFFFF | value & ~0xFFF
            case 0x2C:
                r.asq = r.asq & 0xFFFFFFFF | value << 32
            case 0x30:
                r.acq = r.acq & ~0xFFFFFFFF | value & ~0xFFF
            case 0x34:
                r.acq = r.acq & 0xFFFFFFFF | value << 32

    def _configure(self, value: int) -> None:
        r = self.registers
        before, r.cc = r.cc, value
        if before & CC_ENABLE and not value & CC_ENABLE:
            self._disable()
        elif value & CC_ENABLE and not before & CC_ENABLE:
            self._enable()
        if value >> 14 & 3 and not r.csts & CSTS_SHUTDOWN:
            # 3.1.6, SHST: what was written is on stable storage before the shutdown counts as complete
            r.csts |= CSTS_SHUTDOWN_BUSY
            self._io.flush(0, _SHUTDOWN_CID)
        elif not value >> 14 & 3 and r.csts & CSTS_SHUTDOWN == CSTS_SHUTDOWN_DONE:
            r.csts &= ~CSTS_SHUTDOWN

    def _enable(self) -> None:
        r = self.registers
        entries = (r.aqa & 0xFFF) + 1, (r.aqa >> 16) + 1
        if r.cc & 0x3FF0 or min(entries) < 2:  # another command set, page size or arbitration than CAP offers
            self._fail("an invalid configuration")
            return
        submission, completion = self.submission[0], self.completion[0]
        submission.base, submission.size = r.asq, entries[0]
        completion.base, completion.size, completion.interrupts = r.acq, entries[1], 1
        r.csts |= CSTS_READY

    def _disable(self) -> None:
        """7.3.2, controller reset: everything but the admin queues' registers."""
        self._drain()
        self.registers.controller_reset()
        for queue in (*self.submission, *self.completion):
            queue.reset()
        self._told.clear()
        self._drive_pin()

    def _fail(self, reason: str) -> None:
        """Nothing more is done until the driver resets the controller (9.5)."""
        if trace:
            trace("%s: fatal: %s", self.name, reason)
        self.registers.csts |= CSTS_FATAL

    @property
    def _running(self) -> bool:
        return bool(self.registers.csts & (CSTS_READY | CSTS_FATAL) == CSTS_READY)

    # -- doorbells -------------------------------------------------------------------------------------------------------

    def _doorbell(self, index: int, value: int) -> None:
        if not self._running:
            return
        number = index >> 1
        queues = self.completion if index & 1 else self.submission
        if number >= QUEUES or not queues[number].size:
            self._error_event(_EVENT_INVALID_REGISTER)
        elif value >= queues[number].size:
            self._error_event(_EVENT_INVALID_VALUE)
        elif index & 1:
            self._consumed(self.completion[number], number, value)
        else:
            self.submission[number].tail = value
            self._take(number)
        self._announce()

    def _consumed(self, queue: CompletionQueue, number: int, head: int) -> None:
        if (head - queue.head) % queue.size > queue.used:
            self._error_event(_EVENT_INVALID_VALUE)
            return
        queue.head = head
        if not self.msix.enabled:
            self._drive_pin()
        if number == 0:
            self._tell_event()
        for k, submission in enumerate(self.submission):
            if submission.size and submission.completion_queue == number and submission.pending():
                self._take(k)

    def _error_event(self, information: int) -> None:
        """5.2: errors without a command; told once, until the driver has read the error log."""
        r = self.registers
        r.error_count = r.error_count + 1 & _COUNTER_MASK
        if not r.event_masked:
            r.event_masked = 1
            r.event_pending = _PENDING | LOG_ERRORS << 16 | information << 8
            self._tell_event()

    def _tell_event(self) -> None:
        r = self.registers
        if r.event_pending and r.event_count and self.completion[0].has_room():
            result, r.event_pending = r.event_pending & ~_PENDING, 0
            cid, *others = r.event_requests
            r.event_requests = [*others, 0]
            r.event_count -= 1
            self._complete(0, cid, SUCCESS, result)

    # -- commands --------------------------------------------------------------------------------------------------------

    def _take(self, number: int) -> None:
        """Begins with what is in a submission queue, as far as there is room for completions and memory for data."""
        submission = self.submission[number]
        while submission.pending() and not self._held and self._running and not self._io.full:
            completion = self.completion[submission.completion_queue]
            if not completion.has_room():
                return
            try:
                command = submission.fetch(self._memory)
            except GuestMemoryError as error:
                self._fail(f"submission queue {number}: {error}")
                return
            if trace:
                trace("queue %d: %s", number, command)
            try:
                if number:
                    self._begin_io(number, completion, command)
                else:
                    result = self._admin.execute(command)
                    if result is None:
                        self._tell_event()
                    else:
                        self._complete(0, command.cid, SUCCESS, result)
            except CommandError as error:
                self._complete(number, command.cid, error.status | DO_NOT_RETRY, 0)

    def _begin_io(self, number: int, completion: CompletionQueue, command: Command) -> None:
        # Counted before it begins: what is under way must never be more than there is room for.
        completion.in_flight += 1
        try:
            request = self._io.begin(number, command, bool(self.registers.write_cache))
        except CommandError:
            completion.in_flight -= 1
            raise
        if request is not None:
            self._finish(request)

    def _finish(self, request: IoRequest) -> None:
        r = self.registers
        self.completion[self.submission[request.queue].completion_queue].in_flight -= 1
        status = self._io.complete(request)
        if status == SUCCESS and request.kind in (READ, COMPARE):
            r.reads = r.reads + 1 & _COUNTER_MASK
            r.sectors_read = r.sectors_read + (request.size_bytes >> LBA_SHIFT) & _COUNTER_MASK
        elif status == SUCCESS and request.kind == WRITE:
            r.writes = r.writes + 1 & _COUNTER_MASK
            r.sectors_written = r.sectors_written + (request.size_bytes >> LBA_SHIFT) & _COUNTER_MASK
        self._complete(request.queue, request.cid, status | (DO_NOT_RETRY if status else 0), 0)

    def _finished(self, requests: list[IoRequest]) -> None:
        """Requests come back from the worker."""
        r = self.registers
        for request in requests:
            if request.cid == _SHUTDOWN_CID:
                r.csts = r.csts & ~CSTS_SHUTDOWN | CSTS_SHUTDOWN_DONE
            else:
                self._finish(request)
        if not self._held:
            self._take_all()
        self._announce()

    def _take_all(self) -> None:
        for number, submission in enumerate(self.submission):
            if submission.size and submission.pending():
                self._take(number)

    def _complete(self, number: int, cid: int, status: int, result: int) -> None:
        """The interrupt follows once for several completions."""
        submission = self.submission[number]
        if not self._running:
            return
        try:
            self.completion[submission.completion_queue].post(self._memory, submission, number, cid, status, result)
        except GuestMemoryError as error:
            self._fail(f"completion queue {submission.completion_queue}: {error}")
        self._told.add(submission.completion_queue)

    # -- interrupts ------------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        told, self._told = self._told, set()
        if self.msix.enabled:
            for number in sorted(told):
                if self.completion[number].interrupts:
                    self.msix.notify(self.completion[number].vector)
        elif told:
            self._drive_pin()

    def _drive_pin(self) -> None:
        """7.5.1: without MSI-X the pin is high while an unmasked vector has completions that were not consumed."""
        masked = self.registers.intms
        waiting = any(q.size and q.interrupts and q.used and not masked >> (q.vector & 31) & 1 for q in self.completion)
        self.set_intx(waiting and not self.msix.enabled)

    # -- life ------------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Returns when no request is under way; meanwhile none begins, and what waits gets its turn afterwards."""
        held, self._held = self._held, True
        self._io.drain()
        self._held = held
        if not held:
            self._executor.post(self._go_on)

    def _go_on(self) -> None:
        if not self._held:
            self._take_all()
            self._announce()

    def pause(self) -> None:
        self._held = True
        self._io.drain()

    def resume(self) -> None:
        self._held = False
        self._go_on()

    def reset(self) -> None:
        self._disable()
        self.registers.reset()
        self.msix.reset()
        super().reset()

    def save(self) -> dict[str, Any]:
        """The PCI function's state, and that of the parts behind it; requests under way are finished first."""
        self._drain()
        return {
            **super().save(),
            "msix": self.msix.save(),
            "registers": self.registers.save(),
            "submission": [queue.save() for queue in self.submission],
            "completion": [queue.save() for queue in self.completion],
        }

    def load(self, saved: dict[str, Any]) -> None:
        parts = {"msix", "registers", "submission", "completion"}
        missing = parts - saved.keys()
        if missing or len(saved["submission"]) != QUEUES or len(saved["completion"]) != QUEUES:
            raise SnapshotError(f"{self.name}: parts differ: {sorted(saved)}")
        self._drain()
        super().load({name: value for name, value in saved.items() if name not in parts})
        self.msix.load(saved["msix"])
        self.registers.load(saved["registers"])
        queues: tuple[SubmissionQueue | CompletionQueue, ...] = (*self.submission, *self.completion)
        for queue, fields in zip(queues, (*saved["submission"], *saved["completion"]), strict=True):
            queue.load(fields)
            if max(queue.head, queue.tail) >= max(queue.size, 1):
                raise SnapshotError(f"{self.name}: a queue of {queue.size} entries stands at {queue.head} and {queue.tail}")
        if any(q.completion_queue >= QUEUES for q in self.submission) or self.registers.event_count > ASYNC_EVENTS:
            raise SnapshotError(f"{self.name}: completion queues or event requests that do not exist")
