"""A machine under a debugger: when its vCPU stands still, and what the GDB stub may do with it.

    gdb thread --call--> machine's thread: Stub -> MachineTarget -> engine, memory, board
    machine's loop --stopped--> server.told

Of several vCPUs the debugger sees one: that which met its point last, else the first.  All stand still together; a step is made by
the one alone.

The devices go on while the vCPU stands still, as they do beside a CPU that a hardware debugger holds: time passes, timers fire,
and what they want is delivered once the vCPU goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ringfence.debug.registers import linear_pc
from ringfence.debug.server import GdbServer, MachineEnded
from ringfence.debug.target import SIGNAL_ABRT, SIGNAL_INT, SIGNAL_SEGV, SIGNAL_TRAP, PhysicalMemory, Stop, Target
from ringfence.engine import cpuid
from ringfence.engine.api import Debug, Engine, Exit, Fault, Halt, Interrupted, Shutdown, Watch

if TYPE_CHECKING:
    from ringfence.machine.machine import Machine

Result = TypeVar("Result")
_ENDED_POLL_S = 0.1
_RANGE_TURN = 256  # instructions of a range step between looks at devices and at the debugger


class Debugger:
    """Of one machine; what `MachineTarget` and the machine's loop share.  On the machine's thread but for `call`."""

    def __init__(self, machine: Machine, address: str, wait: bool) -> None:
        self._machine = machine
        self.held = wait
        self.attached = False
        self._stepping: tuple[int, int, bool] | None = None
        self._fatal: Exit | None = None
        self.target: Target = MachineTarget(machine, self)
        self.server = GdbServer(address, self)

    # ---- for the server (any thread)
    def call(self, function: Callable[[], Result]) -> Result:
        """Runs the function on the machine's thread; raises what it raises, or MachineEnded."""
        done = threading.Event()
        results: list[Result] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                results.append(function())
            except Exception as error:
                errors.append(error)
            done.set()

        self._machine.on_device_thread(work)
        while not done.wait(_ENDED_POLL_S):
            if self._machine.exit_code is not None and not done.is_set():
                raise MachineEnded
        if errors:
            raise errors[0]
        return results[0]

    def exit_code(self) -> int | None:
        return self._machine.exit_code

    # ---- for the machine's loop
    def run(self, engine: Engine, deadline_ns: int | None) -> Exit:
        """In place of the engine's `run`."""
        if self._fatal is not None:
            return self._fatal
        if self._stepping is None:
            self._machine.show_cpu(0)
            return engine.run(deadline_ns)
        first, end, interrupts = self._stepping
        other = self._machine.shown_cpu
        engine = self._machine.engines[other]
        for _ in range(_RANGE_TURN):
            result = engine.step(interrupts)
            if result is not None:
                if other and isinstance(result, Halt):
                    self._machine.halted(other, result)
                    self._stop(Stop(SIGNAL_TRAP, "step"))
                    break
                return result
            if self._machine.ending:  # by this very instruction: the debugger hears of that, and of no stop before
                break
            if not first <= linear_pc(engine.read_state()) < end:
                self._stop(Stop(SIGNAL_TRAP, "step"))
                break
        return Interrupted()

    @property
    def others_held(self) -> bool:
        """Whether further vCPUs stand still."""
        return self.held or self._stepping is not None

    def takes(self, result: Exit) -> bool:
        """Whether the vCPU is held after this exit, which would else have gone to the machine."""
        match result:
            case Debug(address, watch):
                reason = "watchpoint" if watch is not None else "breakpoint"
                self._stop(Stop(SIGNAL_TRAP, reason, watch.address if watch is not None else address, watch))
            case Halt(wakeable=True) if self._stepping is not None:
                self._stop(Stop(SIGNAL_TRAP, "step"))
            case Halt(wakeable=False):
                self._crashed(result, SIGNAL_TRAP, "the vCPU halted for ever, with interrupts disabled")
            case Shutdown(reason):
                self._crashed(result, SIGNAL_SEGV, f"triple fault: {reason}")
            case Fault(reason):
                self._crashed(result, SIGNAL_ABRT, f"the engine cannot go on: {reason}")
        return self.held

    def _crashed(self, result: Exit, signal: int, text: str) -> None:
        """The debugger may look, and change registers; if it does not, going on ends the machine with this exit."""
        if self.attached and result is not self._fatal:
            self._fatal = result
            self._stop(Stop(signal, text=text))

    def _stop(self, stop: Stop) -> None:
        self.held = True
        self._stepping = None
        self.server.told(stop)

    # ---- for the target
    def go(self, stepping: tuple[int, int, bool] | None) -> None:
        self.held = False
        if stepping is None:
            self._machine.go_on()
        self._stepping = stepping

    def revive(self) -> None:
        """The vCPU's state was changed: what it crashed of may be mended."""
        self._fatal = None

    def interrupt(self) -> None:
        if not self.held:
            self._stop(Stop(SIGNAL_INT))


class MachineTarget:
    """The machine as `debug.target.Target`."""

    def __init__(self, machine: Machine, debugger: Debugger) -> None:
        self._machine = machine
        self._debugger = debugger
        self.has_long_mode = cpuid.MODELS[machine.spec.cpu].has_long_mode
        self.physical: PhysicalMemory = machine.memory

    @property
    def _engine(self) -> Engine:
        return self._machine.engines[self._machine.shown_cpu]

    @property
    def _interrupts(self) -> Any:
        return self._machine.board.interrupts_of(self._machine.shown_cpu)

    def registers(self) -> dict[str, int]:
        values = self._engine.read_state()
        interrupts = self._interrupts
        return {**values, "cr8": interrupts.get_tpr() if hasattr(interrupts, "get_tpr") else 0}

    def write_registers(self, values: dict[str, int]) -> None:
        interrupts = self._interrupts
        if "cr8" in values and hasattr(interrupts, "set_tpr"):
            interrupts.set_tpr(values["cr8"] & 15)
        changed = {name: value for name, value in values.items() if name != "cr8"}
        if changed:
            self._debugger.revive()
            self._engine.write_state(changed)

    def set_points(self, breakpoints: Sequence[int], watches: Sequence[Watch]) -> None:
        for engine in self._machine.engines:
            engine.set_points(breakpoints, watches)

    def attach(self) -> None:
        self._debugger.attached = self._debugger.held = True

    def detach(self) -> None:
        self.set_points((), ())
        self._debugger.attached = False
        self._debugger.go(None)

    def resume(self) -> None:
        self._debugger.go(None)

    def step(self, first: int, end: int, interrupts: bool) -> None:
        self._debugger.go((first, end, interrupts))

    def interrupt(self) -> None:
        self._debugger.interrupt()

    def kill(self) -> None:
        self._machine.stop(reason="ended by its debugger")

    def reset(self) -> None:
        self._debugger.revive()
        self._machine.reset()

    def press_power_button(self) -> None:
        self._machine.press_power_button()

    def describe(self) -> str:
        state = "stopped by the debugger" if self._debugger.held else "running"
        return f"vCPU {self._machine.shown_cpu} of a {self._machine.spec.board} machine, {state}"
