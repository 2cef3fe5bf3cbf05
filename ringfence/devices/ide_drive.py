"""What a disk and a CD-ROM drive have in common: task file, status, blocks of PIO data, DMA, slow work.

ATA/ATAPI-6 (T13/1410D revision 3b), clauses 7 (registers) and 9 (protocols).

A drive acts inside of the guest's register access: a command that moves little is done when the access returns.  What may
take long at the host (large transfers, flushes) goes to a worker thread that sees private buffers only; until it comes
back the drive shows BSY.  A backend takes calls from one thread at a time, so everything follows the worker while it is busy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from ringfence.core.errors import GuestMemoryError, RingfenceError, SnapshotError
from ringfence.core.state import Field, State
from ringfence.core.trace import tracer
from ringfence.devices.api import Executor
from ringfence.devices.ide_busmaster import BusMaster
from ringfence.devices.ide_registers import (
    ABRT,
    BSY,
    COMMAND_BLOCK_PORTS,
    DEVICE,
    DEVICE_DEV,
    DIAGNOSTIC_PASSED,
    DRDY,
    DRQ,
    DSC,
    ERR,
    LBA_HIGH,
    SECTOR_COUNT,
)
from ringfence.devices.virtio.worker import Worker

trace = tracer("ide")

# Up to this size a transfer is done at once (measured for the virtio block device, see there).
SYNC_BYTES = 256 << 10
# Larger ones go through the worker in pieces of this size, which bounds the private buffer.
PIECE_BYTES = 1 << 20
MAX_BLOCK_BYTES = 64 << 10  # of PIO data held for the guest


class Host(Protocol):
    """The channel, as its drives see it."""

    bus_master: BusMaster | None

    def interrupt_changed(self) -> None: ...


class DriveState(State):
    """Register numbers are offsets in the command block."""

    registers = Field(8, count=COMMAND_BLOCK_PORTS, doc="task file as last written or as a command left it")
    previous = Field(8, count=COMMAND_BLOCK_PORTS, doc="what the registers held before (48-bit commands, HOB)")
    status = Field(8)
    error = Field(8)
    interrupt = Field(1, doc="interrupt pending")
    position = Field(17, doc="next byte of PIO data")
    read_stop = Field(17, doc="where a block of data for the host ends; 0 outside of one")
    write_stop = Field(17, doc="where a block of data from the host ends; 0 outside of one")
    udma = Field(8, doc="selected Ultra DMA mode, one bit")
    mdma = Field(8, doc="selected multiword DMA mode, one bit")


class _Job:
    """Work for the backend and what follows on the device thread."""

    def __init__(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        self._work = work
        self.then = then
        self.error: Exception | None = None

    def perform(self) -> None:
        try:
            self._work()
        except (OSError, RingfenceError) as error:
            self.error = error


class IdeDrive(ABC):
    """Base of drives; a subclass executes commands and says what follows a block of data."""

    state: DriveState
    signature = (0, 0)  # LBA mid and high after a reset (clause 9, "signature")
    reset_status = 0

    def __init__(self, name: str, executor: Executor, state: DriveState, dma: bool) -> None:
        """`dma` says whether the channel will have a bus master."""
        self.name = name
        self._dma = dma
        self.state = state
        self._host: Host = _Alone()
        self._data = bytearray()
        self._worker: Worker[_Job] = Worker(name, executor, self._finished)
        self._held = False
        self._after_reset()

    def connect(self, host: Host) -> None:
        """The channel that the drive is plugged into."""
        self._host = host

    # -- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def execute(self, command: int) -> None:
        """Begins a command."""

    @abstractmethod
    def _data_in_done(self) -> None:
        """The host has read the block."""

    @abstractmethod
    def _data_out_done(self) -> None:
        """The host has filled the block."""

    @abstractmethod
    def _continue_dma(self) -> None:
        """Moves data as far as the bus master is active and nothing is under way."""

    # -- registers -----------------------------------------------------------------------------------------------

    def write_register(self, number: int, value: int) -> None:
        """Features to Device; ignored while a command is under way."""
        s = self.state
        if not s.status & (BSY | DRQ):
            s.previous[number] = s.registers[number]
            s.registers[number] = value

    def write_command(self, command: int) -> None:
        s = self.state
        self._drop_interrupt()
        if s.status & (BSY | DRQ):
            return  # clause 9: only a reset ends a command
        s.error = 0
        s.status = DRDY | DSC
        self.execute(command)

    def read_status(self) -> int:
        """Status, with which the pending interrupt ends (clause 7, status register); the alternate status is `state.status`."""
        self._drop_interrupt()
        return int(self.state.status)

    def _set_registers(self, count: int, low: int, mid: int, high: int) -> None:
        self.state.registers[SECTOR_COUNT : LBA_HIGH + 1] = [count, low, mid, high]

    def _drop_interrupt(self) -> None:
        if self.state.interrupt:
            self.state.interrupt = 0
            self._host.interrupt_changed()

    def _raise_interrupt(self) -> None:
        self.state.interrupt = 1
        self._host.interrupt_changed()

    def _select_mode(self, mode: int) -> bool:
        """SET FEATURES 03h (set transfer mode): PIO, multiword DMA and Ultra DMA modes; False for one that there is not."""
        s = self.state
        kind, number = mode >> 3, mode & 7
        if kind == 0 and number <= 1 or kind == 1 and number <= 4:
            return True
        if not self._dma:
            return False
        if kind == 4 and number <= 2:
            s.mdma, s.udma = 1 << number, 0
        elif kind == 8 and number <= 5:
            s.mdma, s.udma = 0, 1 << number
        else:
            return kind == 2 and number <= 2  # ATA-1: single-word DMA
        return True

    # -- ends of commands ----------------------------------------------------------------------------------------

    def _complete(self) -> None:
        self.state.status = DRDY | DSC
        self._raise_interrupt()

    def _abort(self, error: int = ABRT, status: int = 0) -> None:
        s = self.state
        self._end_block()
        s.error = error
        s.status = DRDY | DSC | ERR | status
        self._raise_interrupt()

    # -- PIO data ------------------------------------------------------------------------------------------------

    def _end_block(self) -> None:
        self.state.position = self.state.read_stop = self.state.write_stop = 0
        self._data = bytearray()

    def _send(self, data: bytearray, interrupt: bool = True) -> None:
        """Offers a block to the host."""
        s = self.state
        self._data = data
        s.position, s.read_stop, s.write_stop = 0, len(data), 0
        s.status = DRDY | DSC | DRQ
        if interrupt:
            self._raise_interrupt()

    def _receive(self, size_bytes: int, interrupt: bool) -> None:
        """Asks the host for a block."""
        s = self.state
        self._data = bytearray(size_bytes)
        s.position, s.read_stop, s.write_stop = 0, 0, size_bytes
        s.status = DRDY | DSC | DRQ
        if interrupt:
            self._raise_interrupt()

    def read_data(self, size: int) -> int:
        """The data register; without DRQ it reads as 0, and a block that ends within an access is filled up with zeroes."""
        s = self.state
        start = s.position
        end = start + size
        if end >= s.read_stop:
            return int.from_bytes(self._read_last(size), "little")
        s.position = end
        return int.from_bytes(self._data[start:end], "little")

    def _read_last(self, size_bytes: int) -> bytes:
        s = self.state
        if not s.read_stop:
            return b""
        data = bytes(self._data[s.position : s.read_stop])[:size_bytes]
        s.position = s.read_stop
        self._data_in_done()
        return data

    def read_many(self, size: int, count: int) -> bytes:
        """As `count` accesses of `size` bytes, but not beyond the block; one access at least."""
        s = self.state
        start = s.position
        take = min(count, (s.read_stop - start) // size) * size
        if take <= 0:
            return self._read_last(size).ljust(size, b"\0")
        if start + take == s.read_stop:
            return self._read_last(take)
        s.position = start + take
        return bytes(self._data[start : start + take])

    def write_data(self, size: int, value: int) -> None:
        self.write_many(size, value.to_bytes(size, "little"))

    def write_many(self, size: int, data: bytes | memoryview) -> int:
        """Takes what the block has room for; how many accesses of `size` bytes that were, one at least."""
        s = self.state
        start, stop = s.position, s.write_stop
        end = min(start + len(data), stop)
        if not stop:
            return 1  # no DRQ: swallowed
        self._data[start:end] = data[: end - start]
        s.position = end
        if end == stop:
            self._data_out_done()
        return max(1, int(end - start) // size)

    # -- slow work -----------------------------------------------------------------------------------------------

    def _perform(self, work: Callable[[], None], then: Callable[[Exception | None], None], quick: bool) -> None:
        """Runs `work`, which may touch the backend and its own buffers only, then `then` with its error on the device thread."""
        job = _Job(work, then)
        if quick and not self._worker.pending:
            job.perform()
            self._follow(job)
        else:
            self.state.status = BSY
            self._worker.submit(job)

    def _finished(self, jobs: list[_Job]) -> None:
        for job in jobs:
            self._follow(job)

    def _follow(self, job: _Job) -> None:
        if job.error is not None and trace:
            trace("%s: %s", self.name, job.error)
        job.then(job.error)

    @property
    def busy(self) -> bool:
        """Whether the worker has anything of this drive's."""
        return self._worker.pending > 0

    def settle(self) -> None:
        """Returns when no work is under way.  A transfer stands between two pieces then."""
        held, self._held = self._held, True
        self._worker.stop()
        self._held = held

    # -- DMA -----------------------------------------------------------------------------------------------------

    def dma_started(self) -> None:
        """The guest has set the bus master's start bit."""
        self.go_on()

    def dma_stopped(self) -> None:
        """The guest has cleared it: what is under way is finished first."""
        if self.busy:
            self.settle()

    def _wait_for_dma(self) -> None:
        self.state.status = DRDY | DSC | DRQ

    def _fill(
        self,
        ranges: list[tuple[int, int]],
        read: Callable[[memoryview], None],
        size_bytes: int,
        then: Callable[[bool, bool], None],
    ) -> None:
        """Lets `read` fill `size_bytes` and puts them into the guest's `ranges`, which have room for them.

        `then` is told whether the host could read, and whether the guest's ranges were RAM (else the bus master has failed).
        """
        bus_master = self._host.bus_master
        assert bus_master is not None
        quick = size_bytes <= SYNC_BYTES
        if quick and not self.busy and len(ranges) == 1 and ranges[0][1] == size_bytes:
            try:
                with bus_master.memory.writable(*ranges[0]) as buffer:
                    read(buffer)
            except GuestMemoryError:
                pass  # not RAM, or several pieces of it
            except (OSError, RingfenceError) as error:
                if trace:
                    trace("%s: %s", self.name, error)
                then(False, True)
                return
            else:
                then(True, True)
                return
        data = bytearray(size_bytes)

        def deliver(error: Exception | None) -> None:
            then(error is None, error is not None or bus_master.scatter(ranges, data))

        self._perform(lambda: read(memoryview(data)), deliver, quick)

    # -- life ----------------------------------------------------------------------------------------------------

    def _after_reset(self) -> None:
        """What every kind of reset leaves in the registers (clause 9, "signature")."""
        s = self.state
        s.previous = [0] * COMMAND_BLOCK_PORTS
        s.error = DIAGNOSTIC_PASSED
        s.status = self.reset_status
        s.interrupt = 0
        self._end_block()
        self._sign()

    def _sign(self) -> None:
        self._set_registers(1, 1, *self.signature)

    def soft_reset(self) -> None:
        """SRST, DEVICE RESET and diagnostics: ends whatever goes on."""
        self.settle()
        self._after_reset()
        self.state.registers[DEVICE] &= DEVICE_DEV  # part of the signature: the rest is zero
        self._host.interrupt_changed()

    def diagnosed(self) -> None:
        """The master's report at the end of EXECUTE DEVICE DIAGNOSTIC."""
        self._raise_interrupt()

    def reset(self) -> None:
        self.settle()
        self.state.reset()
        self._after_reset()
        self._host.interrupt_changed()

    def pause(self) -> None:
        self.settle()
        self._held = True

    def resume(self) -> None:
        self._held = False
        self.go_on()

    def save(self) -> dict[str, Any]:
        """The channel has let the drive settle, and lets it `go_on` afterwards."""
        return {**self.state.save(), "data": list(self._data)}

    def load(self, saved: dict[str, Any]) -> None:
        """Between `settle` and `go_on`, as `save`."""
        data = saved.get("data")
        if not isinstance(data, list) or len(data) > MAX_BLOCK_BYTES or any(not isinstance(b, int) or not 0 <= b < 256 for b in data):
            raise SnapshotError(f"{self.name}: the PIO data is missing or not bytes")
        fields = {name: value for name, value in saved.items() if name != "data"}
        s = self.state
        before = s.save()
        s.load(fields)
        if len(data) < max(s.read_stop, s.write_stop) or s.position > max(s.read_stop, s.write_stop):
            s.load(before)
            raise SnapshotError(f"{self.name}: the PIO data does not reach to its end")
        self._data = bytearray(data)

    def go_on(self) -> None:
        """A transfer that stood between two pieces continues."""
        if not self._held and not self.busy:
            self._continue_dma()


class _Alone:
    """A drive that is not plugged in."""

    bus_master: BusMaster | None = None

    def interrupt_changed(self) -> None:
        pass
