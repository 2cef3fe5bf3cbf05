"""Floppy disk controller Intel 82077AA (data sheet 290166-007) in PC/AT mode, with two drives.

    0x3f2 DOR   0x3f3 TDR   0x3f4 MSR (read), DSR (write)   0x3f5 FIFO   0x3f7 DIR (read), CCR (write)

0x3f0 and 0x3f1 float in this mode, and 0x3f6 belongs to the hard disk's controller.  IRQ 6, DMA channel 2.

Mechanics are as quick as they can be without surprising a driver: seeks and commands take a moment of the clock, so that an
interrupt never comes before the access that caused it has returned; heads and motors need no time to settle.  In a non-DMA transfer
the host has a thousand times longer for each byte than it had; drivers rely on the overrun that comes when they stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ringfence.backends.api import Block
from ringfence.bus.irq import IrqPin
from ringfence.core.clock import Clock
from ringfence.core.errors import RingfenceError
from ringfence.core.trace import tracer
from ringfence.devices.dma8237 import DmaChannel
from ringfence.devices.floppy_media import Drive, DriveKind
from ringfence.devices.floppy_state import (
    BUFFER_BYTES,
    CONFIG_EFIFO,
    CONFIG_EIS,
    CONFIG_POLL,
    DOR_DMA_GATE,
    DOR_NOT_RESET,
    DOR_SELECT,
    EXECUTION_TIMER,
    FIFO_BYTES,
    RESET_TIMER,
    ST0_ABNORMAL,
    ST0_EQUIPMENT,
    ST0_INVALID,
    ST0_POLLED,
    ST0_SEEK_END,
    ST3_ALWAYS,
    ST3_TRACK_0,
    ST3_WRITE_PROTECTED,
    UNITS,
    Command,
    FloppyState,
    Phase,
    parameter_count,
)
from ringfence.devices.floppy_transfer import Give, Result, Step, Take, Transfers
from ringfence.devices.ports import BytePorts
from ringfence.devices.timed import TimedDevice

trace = tracer("floppy")

FLOPPY_BASE, FLOPPY_PORTS = 0x3F0, 6
FLOPPY_DIR_PORT = 0x3F7
FLOPPY_IRQ, FLOPPY_DMA = 6, 2
DRIVES = 2
_DOR, _TDR, _MSR_DSR, _FIFO = 2, 3, 4, 5
_MSR_RQM, _MSR_DIO, _MSR_NON_DMA, _MSR_BUSY = 0x80, 0x40, 0x20, 0x10
_MAX_RECALIBRATE_STEPS = 79
_VERSION = 0x90
# Long enough for a driver to leave the instruction, the call and the critical section that gave the last command byte.
_COMMAND_NS = 100_000
# From the last byte of a sector to the next one's first, or to the result, that is non-DMA: drivers look at MSR once more meanwhile.
_SECTOR_NS = 1_000_000
# A byte passes by in 16 us; a host of ours may be busy elsewhere for a while.
_OVERRUN_NS = 20_000_000


class Floppy(TimedDevice):
    """Handlers `ports` (six at 0x3F0) and `port7` (one at 0x3F7)."""

    name = "floppy"
    state: FloppyState

    def __init__(
        self,
        irq: IrqPin,
        clock: Clock,
        dma: DmaChannel,
        media: Sequence[Block | None] = (None,),
        kinds: Sequence[DriveKind | None] = (),
    ) -> None:
        """`media`: what lies in drive 0 and 1; a drive exists for each entry, of the kind in `kinds` or one that suits the medium.

        Raises UserError for an image of no known format.
        """
        if len(media) > DRIVES:
            raise ValueError(f"{len(media)} floppy drives; {DRIVES} are possible")
        self.state = FloppyState()
        self._irq = irq
        self._clock = clock
        self._drives: list[Drive | None] = [None] * UNITS
        for unit, block in enumerate(media):
            self._drives[unit] = Drive(kinds[unit] if unit < len(kinds) else None, block)
        self._transfers = Transfers(self.state, self._drives, dma)
        seeks: list[Callable[[], None]] = [partial(self._seek_done, unit) for unit in range(UNITS)]
        self._timers = [clock.timer(due) for due in [*seeks, self._execute, self._reset_done]]
        self.ports = BytePorts(FLOPPY_PORTS, self._read, self._write)
        self.port7 = BytePorts(1, self._read_dir, self._write_ccr)

    @property
    def kinds(self) -> tuple[DriveKind, DriveKind]:
        """What CMOS byte 0x10 must tell: drive 0 in its high half, drive 1 in its low one."""
        first, second = (drive.kind if drive is not None else DriveKind.NONE for drive in self._drives[:DRIVES])
        return first, second

    def change_medium(self, unit: int, block: Block | None) -> None:
        """Takes the disk out of a drive and puts another one in (None: leaves it empty).  The caller closes the old one.

        Raises UserError, and keeps the old one, for an image of no known format, and ValueError where there is no such drive.
        """
        drive = self._drives[unit] if 0 <= unit < UNITS else None
        if drive is None:
            raise ValueError(f"there is no floppy drive {unit}")
        drive.change(block)
        self.state.disk_changed[unit] = 1

    # -- life ------------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self._stop_timers()
        self.state.reset()
        self._update_interrupt()

    def pause(self) -> None:
        super().pause()
        for drive in self._drives:
            if drive is not None and drive.block is not None and not drive.block.readonly:
                try:
                    drive.block.flush()
                except (OSError, RingfenceError) as error:
                    if trace:
                        trace("flush: %s", error)

    def _freeze(self) -> None:
        now_ns = self._clock.now_ns()
        deadlines = [timer.deadline_ns for timer in self._timers]
        self.state.remaining_ns = [0 if at is None else max(0, at - now_ns) + 1 for at in deadlines]
        self.state.irq_level = int(self._irq.level)

    def _thaw(self) -> None:
        for timer, remaining_ns in zip(self._timers, self.state.remaining_ns, strict=True):
            if remaining_ns:
                timer.arm(self._clock.now_ns() + remaining_ns - 1)
        self._irq.restore(bool(self.state.irq_level))

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _after(self, timer: int, delay_ns: int) -> None:
        self._timers[timer].arm(self._clock.now_ns() + delay_ns)

    def _update_interrupt(self) -> None:
        s = self.state
        self._irq.set(bool(s.dor & DOR_DMA_GATE and (s.seek_interrupt or s.result_interrupt)))

    # -- registers -------------------------------------------------------------------------------------------------------

    def _read(self, port: int) -> int:
        s = self.state
        if port == _MSR_DSR:
            return self._main_status()
        if port == _FIFO:
            return self._read_fifo()
        if port == _DOR:
            return int(s.dor)
        return 0xFC | s.tdr if port == _TDR else 0xFF

    def _write(self, port: int, value: int) -> None:
        s = self.state
        if port == _FIFO:
            self._write_fifo(value)
        elif port == _DOR:
            before, s.dor = s.dor, value
            if not value & DOR_NOT_RESET:
                self._hold_reset()
            elif not before & DOR_NOT_RESET:
                self._after(RESET_TIMER, _COMMAND_NS)
            self._update_interrupt()
        elif port == _MSR_DSR:
            s.dsr, s.rate = value & 0x7F, value & 3
            if value & 0x80:  # a reset that ends by itself
                self._hold_reset()
                if s.dor & DOR_NOT_RESET:
                    self._after(RESET_TIMER, _COMMAND_NS)
        elif port == _TDR:
            s.tdr = value & 3

    def _read_dir(self, port: int) -> int:
        s = self.state
        unit = s.dor & DOR_SELECT
        return s.disk_changed[unit] << 7 if self._drives[unit] is not None else 0

    def _write_ccr(self, port: int, value: int) -> None:
        self.state.rate = value & 3

    def _main_status(self) -> int:
        s = self.state
        status: int = sum(bit << unit for unit, bit in enumerate(s.seeking))
        match s.phase:
            case Phase.IDLE:
                return status | _MSR_RQM
            case Phase.COMMAND:
                return status | _MSR_RQM | _MSR_BUSY
            case Phase.READING:
                return status | _MSR_RQM | _MSR_DIO | _MSR_NON_DMA | _MSR_BUSY
            case Phase.WRITING:
                return status | _MSR_RQM | _MSR_NON_DMA | _MSR_BUSY
            case Phase.RESULT:
                return status | _MSR_RQM | _MSR_DIO | _MSR_BUSY
            case Phase.EXECUTION:
                return status | _MSR_BUSY | (_MSR_NON_DMA if s.hlt_nd & 1 else 0)
        return status

    def _hold_reset(self) -> None:
        """3.2: what a software reset changes; a locked FIFO keeps its settings, drives keep their places."""
        s = self.state
        self._stop_timers()
        s.phase = Phase.RESETTING
        s.fifo_length = s.fifo_position = s.buffer_length = s.buffer_position = 0
        s.seek_interrupt = s.result_interrupt = 0
        s.seeking, s.end_status = [0] * UNITS, [0] * UNITS
        s.perpendicular &= 0x3C
        s.config &= ~(CONFIG_EIS | CONFIG_POLL)
        if not s.lock:
            s.config, s.pretrk = CONFIG_EFIFO, 0
        self._update_interrupt()

    def _reset_done(self) -> None:
        """5.2.4: polling finds all four drives "changed": one interrupt, four statuses."""
        s = self.state
        s.phase = Phase.IDLE
        s.end_status = [ST0_POLLED | unit for unit in range(UNITS)]
        s.seek_interrupt = 1
        self._update_interrupt()

    # -- FIFO ------------------------------------------------------------------------------------------------------------

    def _write_fifo(self, value: int) -> None:
        s = self.state
        if s.phase == Phase.WRITING:
            s.buffer[s.buffer_position] = value
            s.buffer_position += 1
            if s.buffer_position == s.buffer_length:
                self._wait_for_disk()
        elif s.phase in (Phase.IDLE, Phase.COMMAND):
            s.phase = Phase.COMMAND
            s.fifo[s.fifo_length] = value
            s.fifo_length += 1
            count = parameter_count(s.fifo[0])
            if count is None:
                self._give_result(ST0_INVALID)
            elif s.fifo_length > count:
                self._begin()

    def _read_fifo(self) -> int:
        s = self.state
        value: int = 0
        if s.phase == Phase.RESULT:
            value = s.fifo[s.fifo_position]
            s.fifo_position += 1
            if s.result_interrupt:
                s.result_interrupt = 0
                self._update_interrupt()
            if s.fifo_position == s.fifo_length:
                self._idle()
        elif s.phase == Phase.READING:
            value = s.buffer[s.buffer_position]
            s.buffer_position += 1
            if s.buffer_position == s.buffer_length:
                self._wait_for_disk()
        return value

    def _idle(self) -> None:
        self.state.phase = Phase.IDLE
        self.state.fifo_length = 0

    def _give_result(self, *data: int) -> None:
        s = self.state
        s.fifo = [*data, *[0] * (FIFO_BYTES - len(data))]
        s.fifo_length, s.fifo_position, s.phase = len(data), 0, Phase.RESULT

    def _wait_for_disk(self) -> None:
        """Non-DMA: the buffer was emptied or filled; the request's interrupt goes away."""
        self.state.phase = Phase.EXECUTION
        self.state.result_interrupt = 0
        self._update_interrupt()
        self._after(EXECUTION_TIMER, _SECTOR_NS)

    # -- commands --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """All bytes of a command are there."""
        s = self.state
        first, one, two, three = s.fifo[:4]
        if trace:
            trace("command %s", bytes(s.fifo[: s.fifo_length]).hex(" "))
        s.fifo_length = 0
        unit = one & 3
        match Command(first & 0x1F):
            case Command.SPECIFY:
                s.srt_hut, s.hlt_nd = one, two
                self._idle()
            case Command.SENSE_DRIVE_STATUS:
                self._give_result(self._drive_status(one))
            case Command.RECALIBRATE:
                self._recalibrate(unit)
            case Command.SENSE_INTERRUPT_STATUS:
                self._sense_interrupt()
            case Command.DUMPREG:
                modes = s.lock << 7 | s.perpendicular
                self._give_result(*s.pcn, s.srt_hut, s.hlt_nd, s.sc_eot, modes, s.config, s.pretrk)
            case Command.SEEK:
                target = two
                if first & 0x80:
                    target = s.pcn[unit] + (two if first & 0x40 else -two) & 0xFF
                self._seek(one & 7, target - s.pcn[unit], target, ST0_SEEK_END)
            case Command.VERSION:
                self._give_result(_VERSION)
            case Command.PERPENDICULAR_MODE:
                # 5.2.11: D3-D0 are written together with OW only
                s.perpendicular = (one & 0x3C if one & 0x80 else s.perpendicular & 0x3C) | one & 3
                self._idle()
            case Command.CONFIGURE:
                s.config, s.pretrk = two & 0x7F, three
                self._idle()
            case Command.LOCK:
                s.lock = first >> 7
                self._give_result(s.lock << 4)
            case command:
                if command is not Command.READ_ID:
                    s.sc_eot = three if command is Command.FORMAT_TRACK else s.fifo[6]
                s.phase = Phase.EXECUTION
                s.buffer_length = s.buffer_position = 0
                self._after(EXECUTION_TIMER, _COMMAND_NS)

    def _drive_status(self, one: int) -> int:
        s, drive = self.state, self._drives[one & 3]
        status = ST3_ALWAYS | one & 7
        if drive is not None:
            status |= (ST3_TRACK_0 if not s.cylinder[one & 3] else 0) | (ST3_WRITE_PROTECTED if drive.readonly else 0)
        return status

    def _recalibrate(self, unit: int) -> None:
        """5.2.1: at most 79 steps outwards; no track 0 after that, or no drive, is an equipment check."""
        s = self.state
        distance = s.cylinder[unit]
        found = self._drives[unit] is not None and distance <= _MAX_RECALIBRATE_STEPS
        status = ST0_SEEK_END if found else ST0_ABNORMAL | ST0_SEEK_END | ST0_EQUIPMENT
        self._seek(unit, -min(distance, _MAX_RECALIBRATE_STEPS), 0, status)

    def _seek(self, head_and_unit: int, steps: int, cylinder: int, status: int) -> None:
        """The head is there at once; the drive's interrupt, and the end of its busy bit, come later."""
        s, unit = self.state, head_and_unit & 3
        self._idle()
        self._transfers.seek(unit, steps)
        s.pcn[unit] = cylinder
        s.seeking[unit] = 1
        s.end_status[unit] = status | head_and_unit
        self._after(unit, _COMMAND_NS)

    def _seek_done(self, unit: int) -> None:
        self.state.seeking[unit] = 0
        self.state.seek_interrupt = 1
        self._update_interrupt()

    def _sense_interrupt(self) -> None:
        """Ended seeks first, then what polling found after a reset; with nothing to tell it is an invalid command."""
        s = self.state
        told = [u for u in range(UNITS) if s.end_status[u] and not s.seeking[u]]
        told.sort(key=lambda u: s.end_status[u] & ST0_POLLED == ST0_POLLED)
        s.seek_interrupt = 0
        self._update_interrupt()
        if not told:
            self._give_result(ST0_INVALID)
            return
        unit = told[0]
        status, s.end_status[unit] = s.end_status[unit], 0
        self._give_result(status, s.pcn[unit])
        if any(s.end_status[u] & ST0_POLLED != ST0_POLLED for u in told[1:]):
            s.seek_interrupt = 1
            self._update_interrupt()

    def _execute(self) -> None:
        """The data command's next step is due."""
        s = self.state
        if s.phase in (Phase.READING, Phase.WRITING):
            self._look_after_host()
        elif s.buffer_length:
            received = bytes(s.buffer[: s.buffer_length])
            s.buffer_length = 0
            self._take_step(self._transfers.proceed(received))
        else:
            self._take_step(self._transfers.begin())

    def _look_after_host(self) -> None:
        """A host that has not moved a byte since the last time will not any more."""
        s = self.state
        if s.buffer_position != s.watched_position:
            s.watched_position = s.buffer_position
            self._after(EXECUTION_TIMER, _OVERRUN_NS)
            return
        s.buffer_length = s.result_interrupt = 0
        self._update_interrupt()  # an edge for the result
        self._take_step(self._transfers.overrun())

    def _take_step(self, step: Step) -> None:
        s = self.state
        s.watched_position = 0
        if not isinstance(step, Result):
            self._after(EXECUTION_TIMER, _OVERRUN_NS)
        match step:
            case Give(data):
                s.buffer = [*data, *[0] * (BUFFER_BYTES - len(data))]
                s.buffer_length, s.buffer_position, s.phase = len(data), 0, Phase.READING
            case Take(size_bytes):
                s.buffer_length, s.buffer_position, s.phase = size_bytes, 0, Phase.WRITING
            case Result(data):
                if trace:
                    trace("result %s", data.hex(" "))
                self._give_result(*data)
        s.result_interrupt = 1
        self._update_interrupt()
