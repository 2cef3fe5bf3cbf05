"""A machine: a board of devices, an engine that runs its vCPU, and what the host gives to both.

    spec -> RAM, backends -> board (devices on buses) -> engine -> kernel loaded -> one thread runs it all

    with Machine(spec) as machine:
        machine.start()
        machine.console.wait_for(b"# ", timeout_s=60)
        machine.console.send(b"poweroff\\n")
        status = machine.wait(timeout_s=30)

Building opens every file and loads the kernel, so that what is missing or wrong raises UserError before the guest's first
instruction.  Whatever the guest does later ends in an ExitStatus.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ringfence.backends.api import Char
from ringfence.backends.char.pty import PtyChar
from ringfence.core.clock import Clock
from ringfence.core.errors import GuestError, GuestMemoryError, RingfenceError, UserError
from ringfence.core.late import LateModule
from ringfence.core.units import format_size
from ringfence.engine import tsc  # noqa: F401  (begins to measure its rate, long before a board asks for it)
from ringfence.engine.api import Engine, Exit, Fault, Halt, Shutdown
from ringfence.machine.boards import BOARDS, Board, Surroundings
from ringfence.machine.boot import cpu_state, firmware, layout
from ringfence.machine.boot.load import load_kernel
from ringfence.machine.commands import GuestCommands
from ringfence.machine.console import Console
from ringfence.machine.engines import EngineChoice, EngineParts, choose_engine
from ringfence.machine.executor import DeviceThread
from ringfence.machine.host import open_display, open_drives, open_printer, open_serial
from ringfence.machine.idle_watch import IdleWatch
from ringfence.machine.screen import ScreenAccess
from ringfence.machine.seat import MachineSeat
from ringfence.machine.spec import MachineSpec
from ringfence.machine.stats import RunFigures, assemble
from ringfence.machine.status import STATUS_STOPPED, STATUS_USER_ERROR, ExitStatus
from ringfence.machine.vcpus import Vcpus
from ringfence.memory.guest_memory import GuestMemory

if TYPE_CHECKING:
    import traceback
else:  # for faults of ours
    traceback = LateModule("traceback")

if TYPE_CHECKING:
    from ringfence.backends.display import vnc
    from ringfence.machine import debugging
else:  # most machines have neither
    vnc = LateModule("ringfence.backends.display.vnc")
    debugging = LateModule("ringfence.machine.debugging")

Progress = Callable[[str, int, int], None]

_CMOS_SHUTDOWN_CODE = 0x0F
_STOP_TIMEOUT_S = 20.0
_BLOCKED_AFTER_S = 2.0


class _Reset(Enum):
    MACHINE = "every part"
    CPU = "the CPU alone"
    INTO_KERNEL = "no reset: firmware has done its part, and the kernel starts"


class MachineBusy(RingfenceError):
    """The machine still runs when it was expected to have ended."""


class Machine(ScreenAccess, GuestCommands):
    """One virtual machine, used once: build, `start`, `wait`, close.  Methods may be called from any thread.

    `console` replaces the host's end of the serial line that `spec.serial` names.  `on_progress(label, done, total)` is
    called while the engine prepares itself.  `engine` replaces the one that `spec.engine` names.
    """

    def __init__(
        self,
        spec: MachineSpec,
        *,
        console: Char | None = None,
        on_progress: Progress | None = None,
        engine: EngineChoice | None = None,
    ) -> None:
        begun_ns, begun_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
        self.spec = spec
        self.clock = Clock()
        self._status: ExitStatus | None = None
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._watchdogs: list[threading.Timer] = []
        self._reset_wanted: _Reset | None = None
        self._closed = False
        self._kernel_tried = False
        self._thread: threading.Thread | None = None
        self._loop = DeviceThread(self.clock)
        with ExitStack() as resources:
            self.memory = _ram(spec, resources)
            self._serial = resources.enter_context(closing(console or open_serial(spec.serial, self.stop)))
            drives = []
            for drive in open_drives(spec):
                resources.enter_context(closing(drive.block))
                drives.append(drive)
            self._disks = [drive.block for drive in drives]
            printer = None if spec.parallel is None else resources.enter_context(closing(open_printer(spec.parallel)))
            self._firmware = firmware.choose(spec)
            choice = engine or choose_engine(spec.engine)
            self._others = Vcpus(self._loop, spec.cpus) if spec.cpus > 1 else None
            if self._others is not None and choice.build_several is None:
                raise UserError(f"The engine {choice.name} runs one vCPU only.", "Leave --cpus out.")
            self.board: Board = BOARDS[spec.board](
                Surroundings(
                    memory=self.memory,
                    clock=self.clock,
                    executor=self._loop,
                    drives=drives,
                    console=self._serial,
                    extras=frozenset(spec.devices),
                    tsc_hz=choice.tsc_hz(),
                    read_tsc=choice.tsc_reader(),
                    interrupt_changed=self._interrupt_changed,
                    power_off=lambda: self._end(ExitStatus.powered_off()),
                    reset=lambda: self._want_reset(_Reset.MACHINE),
                    cpu_reset=lambda: self._want_reset(_Reset.CPU),
                    debug_exit=lambda code: self._end(ExitStatus.debug_exit(code)),
                    firmware=self._firmware,
                    boot_order=spec.boot,
                    display=spec.has_screen,
                    serial_terminal=spec.serial != "null" and not spec.has_screen,
                    printer=printer,
                    start_kernel=None if spec.kernel is None else lambda: self._want_reset(_Reset.INTO_KERNEL),
                    further_cpus=tuple(self._others or ()),
                    is_elsewhere=lambda: not self._loop.is_here(),
                )
            )
            board = self.board
            self._init_commands(board.serial_ports)
            self._seat = MachineSeat(self._loop.post, self.clock, board.screen, board.keyboard, board.mouse)
            self._init_screen(board.screen)
            self._display = open_display(spec, board.screen, self.stop)
            if self._display is not None:
                resources.enter_context(closing(self._display))
            parts = EngineParts(
                self.memory,
                self.board.ports,
                self.board.mmio,
                self.board.interrupts,
                self.board.msrs,
                self.clock,
                on_progress,
                spec.cpu,
            )
            registers = self._load()  # before the engine, whose first preparation may take minutes: a missing file is told at once
            self.engines = self._build_engines(choice, parts)
            for each in self.engines:
                resources.enter_context(closing(each))
            self.engine: Engine = self.engines[0]
            self._power_on_registers = self.engine.read_state()
            if self._others is not None:
                self._others.power_on_registers = {**self._power_on_registers, **cpu_state.power_on(spec.cpu)}
            self.engine.write_state(registers)
            self._timeout = self.clock.timer(self._timed_out)
            self._idle_watch = IdleWatch(self.clock, self.engine.rest)
            self.debugger: debugging.Debugger | None = None
            if spec.gdb is not None:
                self.debugger = debugging.Debugger(self, spec.gdb, spec.gdb_wait)
                resources.callback(self.debugger.server.close)
            self._resources = resources.pop_all()
        self._loop.times.wall_ns["start"] = time.perf_counter_ns() - begun_ns
        self._loop.times.cpu_ns["start"] = time.process_time_ns() - begun_cpu_ns

    def _build_engines(self, choice: EngineChoice, parts: EngineParts) -> list[Engine]:
        """One a vCPU, the first one's first."""
        others = self._others
        if others is None or choice.build_several is None:
            return [choice.build(parts)]
        pairs = list(zip(others, self.board.further, strict=True))
        own = [parts.replace(interrupts=cpu.apic, msrs=cpu.msrs, mmio=cpu.mmio, clock=vcpu.clock) for vcpu, cpu in pairs]
        engines = choice.build_several(self._loop.lock, [parts, *own])
        for (vcpu, cpu), engine in zip(pairs, engines[1:], strict=True):
            vcpu.engine, vcpu.apic_waits = engine, cpu.interrupt_waits
        return engines

    # -- for its user

    @property
    def console(self) -> Console:
        """The serial line as byte streams; only with `serial="buffer"` (the default of a MachineSpec)."""
        if not isinstance(self._serial, Console):
            raise RingfenceError(f"the serial line goes to {self.spec.serial!r}; use serial='buffer' to read it from a program")
        return self._serial

    @property
    def serial_path(self) -> str | None:
        """The pseudo-terminal that a program can open; only with `serial="pty"`."""
        return self._serial.path if isinstance(self._serial, PtyChar) else None

    @property
    def vnc_address(self) -> tuple[str, int] | None:
        """Host and port at which the screen is served; only with `display="vnc"`."""
        display = self._display
        return display.address if display is not None and isinstance(display, vnc.VncServer) else None

    @property
    def running(self) -> bool:
        return self._thread is not None and not self._ended.is_set()

    def start(self) -> None:
        """Starts the guest on a thread of its own and returns."""
        if self._thread is not None or self._closed:
            raise RingfenceError("a machine can be started once only")
        self._thread = threading.Thread(target=self._run, name=f"ringfence-{self.spec.board}", daemon=True)
        self._thread.start()
        if self.debugger is not None:
            self.debugger.server.start()
        if self.spec.timeout is not None:
            self._unblock_after(self.spec.timeout + _BLOCKED_AFTER_S)

    @property
    def exit_code(self) -> int | None:
        """The exit status once the machine has ended."""
        if not self._ended.is_set():
            return None
        return self._status.code if self._status is not None else STATUS_USER_ERROR

    @property
    def ending(self) -> bool:
        """Whether what ends the machine has happened.  Device thread only; `exit_code` follows."""
        return self._status is not None

    def wait(self, timeout_s: float | None = None) -> ExitStatus:
        """Waits for the guest's end; raises MachineBusy when it still runs after `timeout_s`, UserError for the host's faults."""
        if self._thread is None:
            raise RingfenceError("the machine has not been started")
        if not self._ended.wait(timeout_s):
            raise MachineBusy(f"the machine still runs after {timeout_s:g} s" if timeout_s else "the machine still runs")
        if self._failure is not None:
            raise self._failure
        assert self._status is not None
        return self._status

    def run(self) -> ExitStatus:
        """`start` and `wait` for the guest's end, however long that takes."""
        self.start()
        return self.wait()

    def stop(self, code: int = STATUS_STOPPED, reason: str = "stopped by its user") -> None:
        """Ends the guest as if its plug were pulled, soon; what it flushed to its disks is there.  Does not wait."""
        self._loop.post(lambda: self._end(ExitStatus.stopped(code, reason)))
        self._unblock_after(_BLOCKED_AFTER_S)

    def resize_console(self, columns: int, rows: int) -> None:
        """Tells the guest the size of the terminal, where its board has a console that can carry it (virtio-console)."""
        self._loop.post(lambda: self.board.resize_console(columns, rows))

    def reset(self) -> None:
        """Presses the reset button."""
        self._loop.post(lambda: self._want_reset(_Reset.MACHINE))

    def on_device_thread(self, function: Callable[[], None]) -> None:
        """Runs `function` soon on the thread that owns vCPU and devices; does not wait.  Never, once the machine has ended."""
        self._loop.post(function)

    def press_power_button(self) -> None:
        """Asks the guest to switch itself off (ACPI fixed power button)."""
        self._loop.post(self.board.press_power_button)

    def stats(self) -> dict[str, Any]:
        """Figures of the run so far, named in `ringfence.machine.stats`.  Exact once the machine has ended."""
        return assemble(RunFigures(self._loop, self.engines, self.memory, self.spec, self._status))

    def close(self) -> None:
        """Stops the guest if it runs and gives back every file, thread and byte of RAM.  May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None and not self._ended.is_set():
            self.stop()
            if not self._ended.wait(_STOP_TIMEOUT_S):
                raise MachineBusy("the machine does not stop; its memory and files stay open")
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)
        self._resources.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- on the device thread, for debugger and loop

    @property
    def shown_cpu(self) -> int:
        """The vCPU that a debugger sees and a crash tells of."""
        told = self._others.told if self._others is not None else None
        return told.number if told is not None else 0

    def show_cpu(self, number: int) -> None:
        if self._others is not None:
            self._others.told = next((vcpu for vcpu in self._others if vcpu.number == number), None)

    def go_on(self) -> None:
        """What the shown vCPU has met is dealt with."""
        if self._others is not None and self._others.told is not None:
            self._others.told.go_on()

    def halted(self, number: int, how: Halt) -> None:
        """A further vCPU was stepped over a HLT."""
        for vcpu in self._others or ():
            if vcpu.number == number:
                vcpu.halted(how)

    def _unblock_after(self, delay_s: float) -> None:
        """A terminal or pipe that takes no more output holds the device thread; after a while that output is given up."""
        timer = threading.Timer(delay_s, lambda: None if self._ended.is_set() else self._serial.close())
        timer.daemon = True
        timer.start()
        self._watchdogs.append(timer)

    # -- on the device thread

    def _run(self) -> None:
        try:
            self._loop.times.restart()
            self._serial.start(self._typed)
            if self._display is not None:
                self._display.start(self._seat)
            if self.spec.timeout is not None:
                self._timeout.arm(self.clock.now_ns() + int(self.spec.timeout * 1e9))
            self._idle_watch.start()
            try:
                if self._others is not None:
                    self._others.start()
                last = self._loop.run(
                    self.engine,
                    self.board.interrupt_waits,
                    lambda: self.ending,
                    self._reset_if_wanted,
                    self.debugger,
                    self._others,
                )
                if last is not None:
                    self._crash(_why(last))
            finally:
                self.board.pause()
                for disk in self._disks:
                    if not disk.readonly:
                        disk.flush()
        except (GuestError, GuestMemoryError) as error:
            self._crash(str(error))
        except UserError as error:
            self._failure = error
        except OSError as error:
            self._failure = UserError(f"The host could not do what the machine needs: {error}.", "Check disk space and permissions.")
        except Exception as error:  # a fault of ours ends this guest alone, with everything that helps to find it
            self._crash(f"fault in the monitor, not in the guest: {type(error).__name__}: {error}", traceback.format_exc())
        finally:
            self._loop.times.end("devices")
            self._ended.set()
            self._end_commands()
            if self.debugger is not None:
                self.debugger.server.wake()
            for timer in self._watchdogs:
                timer.cancel()
            if isinstance(self._serial, Console):
                self._serial.close()

    def _load(self) -> dict[str, int]:
        """Puts tables, kernel and initrd into RAM where no firmware does; the registers to start with."""
        spec = self.spec
        if self._firmware is not None or spec.kernel is None:
            if spec.kernel is not None and not self._kernel_tried:
                # Loaded once for nothing: what is wrong with it is told before firmware has run.
                self._load_kernel(spec.kernel, None)
                self.memory.clear()
                self._kernel_tried = True
            return cpu_state.power_on(spec.cpu)
        rsdp = self.board.write_tables()
        return self._load_kernel(spec.kernel, rsdp)

    def _load_kernel(self, kernel: Path, rsdp: int | None) -> dict[str, int]:
        spec = self.spec
        command_line = " ".join(filter(None, (spec.append, *self.board.command_line())))
        reserved = self.board.acpi_config().reserved_ranges()
        behind = self._firmware is not None
        state = load_kernel(self.memory, kernel, list(spec.initrd), command_line, acpi_rsdp=rsdp, reserved=reserved, behind_firmware=behind)
        return state.registers

    def _reset_if_wanted(self) -> bool:
        """Without firmware there is one way to start again: from power-on.  With it, RAM stays as it was."""
        wanted, self._reset_wanted = self._reset_wanted, None
        if wanted is None and self._shutdown_resets():
            wanted = _Reset.CPU
        if wanted is None:
            return False
        self._loop.last_exit = None
        if self._others is not None:
            self._others.reset()
        if wanted is _Reset.INTO_KERNEL and self.spec.kernel is not None:
            self.engine.write_state({**self._power_on_registers, **self._load_kernel(self.spec.kernel, None)})
            return True
        if self._firmware is None:
            self.board.reset()
            self.memory.clear()
        elif wanted is _Reset.MACHINE:
            self.board.reset()
        else:
            self.board.cpu_reset()
        # An INIT leaves floating-point registers and MSRs as they were; nobody counts on that.
        self.engine.write_state({**self._power_on_registers, **self._load()})
        return True

    def _shutdown_resets(self) -> bool:
        """A PC's chipset answers the CPU's shutdown with a reset, which 16-bit systems use to leave protected mode.

        Where no firmware is asked to go on after it (CMOS shutdown code 0), the guest is lost, and told so.
        """
        if self._firmware is None or not isinstance(self._loop.last_exit, Shutdown):
            return False
        return self.board.rtc.nvram(_CMOS_SHUTDOWN_CODE) != 0

    def _typed(self, data: bytes) -> None:
        self._loop.post(lambda: self.board.receive(data))

    def _interrupt_changed(self) -> None:
        engine: Engine | None = getattr(self, "engine", None)  # devices may call while they are wired up
        if engine is None:
            return
        if self._others is None or self._loop.is_here():
            engine.interrupt_changed()
        else:
            self._loop.nudge()

    def _want_reset(self, kind: _Reset) -> None:
        if self._reset_wanted is not _Reset.MACHINE:
            self._reset_wanted = kind
        self._leave_all()

    def _timed_out(self) -> None:
        assert self.spec.timeout is not None
        self._end(ExitStatus.timed_out(self.spec.timeout))

    def _end(self, status: ExitStatus) -> None:
        if self._status is None:
            self._status = status
            self._leave_all()

    def _leave_all(self) -> None:
        """All vCPUs leave what they execute, and the loop looks at what is wanted."""
        for engine in self.engines:
            engine.kick()
        if self._others is not None:
            self._loop.nudge()

    def _crash(self, reason: str, detail: str = "") -> None:
        if self._status is None:
            last = self._loop.last_exit
            self._status = ExitStatus.crashed(reason, repr(last) if last else "", self.engines[self.shown_cpu].read_state(), detail)


def _why(last: Exit) -> str:
    match last:
        case Halt():
            return "it halted for ever: HLT with interrupts disabled"
        case Shutdown(reason):
            return f"triple fault ({reason})"
        case Fault(reason):
            return f"the engine cannot execute it: {reason}"
        case _:
            return repr(last)


def _ram(spec: MachineSpec, resources: ExitStack) -> GuestMemory:
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if spec.memory > host_bytes:
        raise UserError(
            f"{format_size(spec.memory)} of memory were asked for, the host has {format_size(host_bytes)}.", "Ask for less with --memory."
        )
    memory = GuestMemory()
    resources.callback(memory.close)
    layout.add_ram(memory, spec.memory)
    return memory
