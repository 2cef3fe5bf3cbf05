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
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any

from ringfence.backends.api import Char
from ringfence.backends.char.pty import PtyChar
from ringfence.core.clock import Clock
from ringfence.core.errors import GuestError, GuestMemoryError, RingfenceError, UserError
from ringfence.core.units import format_size
from ringfence.engine.api import Engine, Exit, Fault, Halt, Shutdown
from ringfence.machine.boards import BOARDS, Board, Surroundings
from ringfence.machine.boot import layout
from ringfence.machine.boot.load import load_kernel
from ringfence.machine.console import Console
from ringfence.machine.engines import EngineChoice, EngineParts, choose_engine
from ringfence.machine.executor import DeviceThread
from ringfence.machine.host import open_disk, open_serial
from ringfence.machine.spec import MachineSpec
from ringfence.machine.stats import RunFigures, assemble
from ringfence.machine.status import STATUS_STOPPED, ExitStatus
from ringfence.memory.guest_memory import GuestMemory

Progress = Callable[[str, int, int], None]

_STOP_TIMEOUT_S = 20.0
_BLOCKED_AFTER_S = 2.0


class MachineBusy(RingfenceError):
    """The machine still runs when it was expected to have ended."""


class Machine:
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
        self._reset_wanted = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._loop = DeviceThread(self.clock)
        with ExitStack() as resources:
            self.memory = _ram(spec, resources)
            self._serial = resources.enter_context(closing(console or open_serial(spec.serial, self.stop)))
            self._disks = [resources.enter_context(closing(open_disk(disk))) for disk in spec.disks]
            choice = engine or choose_engine(spec.engine)
            self.board: Board = BOARDS[spec.board](
                Surroundings(
                    memory=self.memory,
                    clock=self.clock,
                    executor=self._loop,
                    disks=self._disks,
                    console=self._serial,
                    extras=frozenset(spec.devices),
                    tsc_hz=choice.tsc_hz(),
                    read_tsc=choice.tsc_reader(),
                    interrupt_changed=self._interrupt_changed,
                    power_off=lambda: self._end(ExitStatus.powered_off()),
                    reset=self._want_reset,
                    debug_exit=lambda code: self._end(ExitStatus.debug_exit(code)),
                )
            )
            parts = EngineParts(
                self.memory, self.board.ports, self.board.mmio, self.board.interrupts, self.board.msrs, self.clock, on_progress
            )
            registers = self._load()  # before the engine, whose first preparation may take minutes: a missing file is told at once
            self.engine: Engine = resources.enter_context(closing(choice.build(parts)))
            self._power_on_registers = self.engine.read_state()
            self.engine.write_state(registers)
            self._timeout = self.clock.timer(self._timed_out)
            self._resources = resources.pop_all()
        self._loop.times.wall_ns["start"] = time.perf_counter_ns() - begun_ns
        self._loop.times.cpu_ns["start"] = time.process_time_ns() - begun_cpu_ns

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
    def running(self) -> bool:
        return self._thread is not None and not self._ended.is_set()

    def start(self) -> None:
        """Starts the guest on a thread of its own and returns."""
        if self._thread is not None or self._closed:
            raise RingfenceError("a machine can be started once only")
        self._thread = threading.Thread(target=self._run, name=f"ringfence-{self.spec.board}", daemon=True)
        self._thread.start()
        if self.spec.timeout is not None:
            self._unblock_after(self.spec.timeout + _BLOCKED_AFTER_S)

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

    def press_power_button(self) -> None:
        """Asks the guest to switch itself off (ACPI fixed power button)."""
        self._loop.post(self.board.press_power_button)

    def stats(self) -> dict[str, Any]:
        """Figures of the run so far, named in `ringfence.machine.stats`.  Exact once the machine has ended."""
        return assemble(RunFigures(self._loop, self.engine, self.memory, self.spec, self._status))

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
            if self.spec.timeout is not None:
                self._timeout.arm(self.clock.now_ns() + int(self.spec.timeout * 1e9))
            try:
                last = self._loop.run(self.engine, self.board.interrupt_waits, lambda: self._status is not None, self._reset_if_wanted)
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
            for timer in self._watchdogs:
                timer.cancel()
            if isinstance(self._serial, Console):
                self._serial.close()

    def _load(self) -> dict[str, int]:
        """Puts tables, kernel and initrd into RAM; the registers to start with."""
        spec = self.spec
        rsdp = self.board.write_tables()
        command_line = " ".join(filter(None, (spec.append, *self.board.command_line())))
        reserved = self.board.acpi_config().reserved_ranges()
        state = load_kernel(self.memory, spec.kernel, list(spec.initrd), command_line, acpi_rsdp=rsdp, reserved=reserved)
        return state.registers

    def _reset_if_wanted(self) -> bool:
        if not self._reset_wanted:
            return False
        self._reset_wanted = False
        self.board.reset()
        self.memory.clear()
        self.engine.write_state({**self._power_on_registers, **self._load()})
        return True

    def _typed(self, data: bytes) -> None:
        self._loop.post(lambda: self.board.receive(data))

    def _interrupt_changed(self) -> None:
        engine: Engine | None = getattr(self, "engine", None)  # devices may call while they are wired up
        if engine is not None:
            engine.interrupt_changed()

    def _want_reset(self) -> None:
        self._reset_wanted = True
        self.engine.kick()

    def _timed_out(self) -> None:
        assert self.spec.timeout is not None
        self._end(ExitStatus.timed_out(self.spec.timeout))

    def _end(self, status: ExitStatus) -> None:
        if self._status is None:
            self._status = status
            self.engine.kick()

    def _crash(self, reason: str, detail: str = "") -> None:
        if self._status is None:
            last = self._loop.last_exit
            self._status = ExitStatus.crashed(reason, repr(last) if last else "", self.engine.read_state(), detail)


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
