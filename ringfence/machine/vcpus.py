"""The further vCPUs of a machine, each on a thread of its own beside the device thread (executor.py), which runs the first one.

    power on, reset -> waits for SIPI -> executes <-> halted        INIT: back to waiting
                                             |
                                             +-> triple fault, debugger's point: stands still, the device thread is told

A vCPU's thread holds the device thread's lock except while its vCPU executes or sleeps.  It has a clock of its own for its local APIC's
timer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from enum import Enum

from ringfence.core.clock import Clock
from ringfence.core.trace import tracer
from ringfence.engine.api import Engine, Exit, Halt, Interrupted
from ringfence.machine.executor import DeviceThread

trace = tracer("vcpus")

_JOIN_S = 20.0


class _State(Enum):
    WAITING = "for a start-up message"
    EXECUTING = "executing"
    HALTED = "halted"
    DEAF = "halted with interrupts disabled"
    STOPPED = "something happened that the device thread is told"


class Vcpu:
    """One of them; `number` is its APIC id.  Methods with the lock held.

    `apic_waits(nmi_only)` and the engine are set before the machine runs.
    """

    def __init__(self, number: int, group: Vcpus, clock: Clock) -> None:
        self.number = number
        self.clock = clock
        self.engine: Engine
        self.apic_waits: Callable[[bool], bool]
        self.resting = False
        self._group = group
        self._wake = threading.Condition(group.lock)
        self._state = _State.WAITING
        self._init_asked = False
        self._startup_vector: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"ringfence-vcpu{number}", daemon=True)

    # ---- for others (the board, the group)
    def is_elsewhere(self) -> bool:
        """Whether the calling thread is not this vCPU's."""
        return threading.get_ident() != self._thread.ident

    def interrupt_changed(self) -> None:
        if self.is_elsewhere():
            self.nudge()
        else:
            self.engine.interrupt_changed()

    def nudge(self) -> None:
        """The thread looks at everything soon."""
        if self._thread.ident is not None:  # devices may call while they are wired up
            self.engine.kick()
            self._wake.notify()

    def init(self) -> None:
        """INIT (SDM 3A 11.4.7.3): carried out between two instructions."""
        self._init_asked, self._startup_vector = True, None
        self.nudge()

    def startup(self, vector: int) -> None:
        """SIPI: real mode, from page `vector` on; only the first one after INIT."""
        if self._startup_vector is None and (self._init_asked or self._state is _State.WAITING):
            self._startup_vector = vector
            self.nudge()

    def reset(self) -> None:
        """As at power-on; only while it stands still."""
        self._init_asked, self._startup_vector, self._state = False, None, _State.WAITING

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    @property
    def alive(self) -> bool:
        """Whether it executes, or will; one that is deaf does when an NMI waits, though its thread has not seen that yet."""
        if self._state is _State.DEAF and self.apic_waits(True):
            return True
        return self._state in (_State.EXECUTING, _State.HALTED) or self._startup_vector is not None

    def halted(self, how: Halt) -> None:
        self._state = _State.HALTED if how.wakeable else _State.DEAF

    def go_on(self) -> None:
        """After what the device thread was told of."""
        if self._state is _State.STOPPED:
            self._state = _State.EXECUTING

    # ---- its thread
    def _run(self) -> None:
        with self._group.lock:
            try:
                self.clock.on_earlier = self._earlier
                while not self._group.ended:
                    self._turn()
            except BaseException as error:  # told to the device thread, which ends the machine
                self._group.failed(error)
            finally:
                self.resting = True
                self._group.rested.notify_all()

    def _turn(self) -> None:
        self.clock.run_due()
        if self._group.held:
            self._sleep(None)
            return
        if self._init_asked:
            self._init_asked, self._state = False, _State.WAITING
        if self._state is _State.WAITING and self._startup_vector is not None:
            self._begin(self._startup_vector)
        if self._state is not _State.EXECUTING and not self._woken():
            self._sleep(self.clock.next_deadline_ns())
            return
        self._state = _State.EXECUTING
        result = self.engine.run(self.clock.next_deadline_ns())
        if isinstance(result, Halt):
            self.halted(result)
            if not result.wakeable:
                self._group.nudge()  # the device thread looks whether any vCPU is left
        elif not isinstance(result, Interrupted):
            self._state = _State.STOPPED
            self._group.met(self, result)

    def _woken(self) -> bool:
        return self._state in (_State.HALTED, _State.DEAF) and self.apic_waits(self._state is _State.DEAF)

    def _begin(self, vector: int) -> None:
        if trace:
            trace("vCPU %d starts at %#x", self.number, vector << 12)
        self._startup_vector = None
        self.engine.write_state({**self._group.power_on_registers, "cs": vector << 8, "cs_base": vector << 12, "rip": 0})
        self._state = _State.EXECUTING

    def _earlier(self) -> None:
        if self.is_elsewhere():
            self.nudge()
        else:
            self.engine.deadline_moved()

    def _sleep(self, deadline_ns: int | None) -> None:
        left_s = None if deadline_ns is None else (deadline_ns - self.clock.now_ns()) / 1e9
        if left_s is None or left_s > 0:
            self.resting = True
            self._group.rested.notify_all()
            self._wake.wait(left_s)
            self.resting = False


class Vcpus:
    """All of them; is `executor.Others` for the device thread.  Methods with the lock held."""

    def __init__(self, loop: DeviceThread, count: int) -> None:
        self.lock = loop.lock
        self.nudge = loop.nudge
        self.held = False
        self.ended = False
        self.rested = threading.Condition(self.lock)
        self.power_on_registers: dict[str, int] = {}
        self.told: Vcpu | None = None
        self._met: list[tuple[Vcpu, Exit]] = []
        self._error: BaseException | None = None
        self._all = [Vcpu(number, self, Clock()) for number in range(1, count)]

    def __iter__(self) -> Iterator[Vcpu]:
        return iter(self._all)

    def start(self) -> None:
        for vcpu in self._all:
            vcpu.start()

    # ---- for the device thread
    def hold(self, held: bool) -> None:
        if held == self.held:
            return
        self.held = held
        for vcpu in self._all:
            vcpu.nudge()
        while held and not all(vcpu.resting for vcpu in self._all):
            self.rested.wait()

    def reset(self) -> None:
        """All as at power-on."""
        held = self.held
        self.hold(True)
        self._met.clear()
        self.told = None
        for vcpu in self._all:
            vcpu.reset()
        self.hold(held)

    def alive(self) -> bool:
        return any(vcpu.alive for vcpu in self._all)

    def take(self) -> Exit | None:
        if self._error is not None:
            raise self._error
        if not self._met:
            return None
        self.told, result = self._met.pop(0)
        return result

    def stop(self) -> None:
        self.ended = True
        for vcpu in self._all:
            vcpu.nudge()
        self.lock.release()
        try:
            for vcpu in self._all:
                vcpu.join()
        finally:
            self.lock.acquire()

    # ---- for its members
    def met(self, vcpu: Vcpu, result: Exit) -> None:
        self._met.append((vcpu, result))
        self.nudge()

    def failed(self, error: BaseException) -> None:
        self._error = error
        self.nudge()
