"""The loop of a machine's first thread, which runs a vCPU and owns all devices.

    work posted by other threads -> timers that are due -> vCPU until it needs the outside, or sleep while it is halted

Nothing else may touch a device, but the threads of further vCPUs (vcpus.py): whoever does holds `lock`, and gives it back only while
its vCPU executes or sleeps.  Other threads hand functions over with `post`.  A halted vCPU sleeps on an event until the next
timer, so that an idle guest costs no host CPU.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ringfence.core.clock import Clock
from ringfence.engine.api import Engine, Exit, Fault, Halt, Shutdown

_MAX_SLEEP_NS = 3_600_000_000_000


class PhaseTimes:
    """Wall and CPU nanoseconds of the machine's thread by phase; read by other threads for statistics only."""

    __slots__ = ("wall_ns", "cpu_ns", "_wall", "_cpu")

    def __init__(self) -> None:
        self.wall_ns = {"start": 0, "run": 0, "devices": 0, "idle": 0}
        self.cpu_ns = dict(self.wall_ns)
        self._wall = time.perf_counter_ns()
        self._cpu = time.thread_time_ns()

    def restart(self) -> None:
        """The calling thread's clocks count from now on."""
        self._wall, self._cpu = time.perf_counter_ns(), time.thread_time_ns()

    def end(self, phase: str) -> None:
        """What passed since the last call belongs to `phase`."""
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        self.wall_ns[phase] += wall - self._wall
        self.cpu_ns[phase] += cpu - self._cpu
        self._wall, self._cpu = wall, cpu


class Control(Protocol):
    """A debugger beside the loop.  On the device thread."""

    held: bool
    """Whether the vCPU stands still; devices and timers go on."""

    @property
    def others_held(self) -> bool:
        """Whether further vCPUs stand still."""

    def run(self, engine: Engine, deadline_ns: int | None) -> Exit:
        """Has the engine run, or make steps."""

    def takes(self, result: Exit) -> bool:
        """Whether this exit is the debugger's; else it is handled as without one."""


class Others(Protocol):
    """Further vCPUs beside the loop's own.  With the lock held."""

    def hold(self, held: bool) -> None:
        """Has them stand still, or go on; they do when this returns."""

    def alive(self) -> bool:
        """Whether one of them executes, or can be woken by an interrupt."""

    def take(self) -> Exit | None:
        """What one of them has met that is not its own business; it stands still since.  Raises what its thread died of."""

    def stop(self) -> None:
        """Ends their threads."""


class DeviceThread:
    """Runs the loop; is the `devices.api.Executor` of a machine."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._posted: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._engine: Engine | None = None
        self.times = PhaseTimes()
        self.exits: dict[str, int] = {}
        self.last_exit: Exit | None = None
        self.lock = threading.RLock()
        self._ident: int | None = None

    def is_here(self) -> bool:
        """Whether the calling thread is the loop's."""
        return threading.get_ident() == self._ident

    def nudge(self) -> None:
        """The loop looks at everything soon.  Any thread."""
        self._wake.set()
        engine = self._engine
        if engine is not None:
            engine.kick()

    def post(self, function: Callable[[], None]) -> None:
        """Runs `function` soon on the device thread.  Any thread."""
        self._posted.append(function)
        self._wake.set()
        engine = self._engine
        if engine is not None:
            engine.kick()

    def run(
        self,
        engine: Engine,
        awake: Callable[[bool], bool],
        done: Callable[[], bool],
        reset: Callable[[], bool],
        control: Control | None = None,
        others: Others | None = None,
    ) -> Exit | None:
        """Runs until `done()` (then None) or until the guest cannot go on (then that exit).

        `awake(deaf)` tells whether an interrupt waits that ends a halt, one with interrupts disabled if `deaf`.  `reset()` is asked
        once a turn and carries a reset out that was requested; True means that it did.
        """
        self.lock.acquire()
        self._ident = threading.get_ident()
        self._engine = engine
        # A timer armed from inside the engine may be due before the deadline that it was given.
        self._clock.on_earlier = engine.deadline_moved if others is None else lambda: self._earlier(engine)
        clock, times, posted = self._clock, self.times, self._posted
        halted = deaf = False
        try:
            while True:
                for _ in range(len(posted)):  # what they post themselves has its turn after timers and vCPU
                    posted.popleft()()
                clock.run_due()
                if done():
                    return None
                if reset():
                    halted = deaf = False
                    continue
                deadline_ns = clock.next_deadline_ns()
                result = None
                if others is not None:
                    others.hold(control is not None and control.others_held)
                    result = others.take()
                if result is None:
                    if deaf and others is not None and not (others.alive() or awake(True)):
                        return self.last_exit
                    if (control is not None and control.held) or (halted and not awake(deaf)):
                        times.end("devices")
                        self._sleep(deadline_ns)
                        times.end("idle")
                        continue
                    times.end("devices")
                    result = engine.run(deadline_ns) if control is None else control.run(engine, deadline_ns)
                    times.end("run")
                    deaf = isinstance(result, Halt) and not result.wakeable and others is not None and (others.alive() or awake(True))
                    halted = deaf or (isinstance(result, Halt) and result.wakeable)
                self.last_exit = result
                name = type(result).__name__
                self.exits[name] = self.exits.get(name, 0) + 1
                if deaf:
                    continue
                if control is not None and control.takes(result):
                    continue
                if isinstance(result, Shutdown | Fault) or (isinstance(result, Halt) and not result.wakeable):
                    # A power-off or reset that the same instruction asked for goes first.
                    if done():
                        return None
                    if reset():
                        halted = deaf = False
                        continue
                    return result
        finally:
            self._engine = None
            self._clock.on_earlier = None
            if others is not None:
                others.stop()
            self.lock.release()

    def _earlier(self, engine: Engine) -> None:
        """Told by the thread that arms a timer; only its own may change what an engine works with."""
        if self.is_here():
            engine.deadline_moved()
        else:
            self.nudge()

    def _sleep(self, deadline_ns: int | None) -> None:
        self._wake.clear()
        # Whoever posts appends first and sets the event afterwards: seen here, or it ends the wait.
        if self._posted:
            return
        left_ns = _MAX_SLEEP_NS if deadline_ns is None else deadline_ns - self._clock.now_ns()
        if left_ns > 0:
            self.lock.release()
            try:
                self._wake.wait(min(left_ns, _MAX_SLEEP_NS) / 1e9)
            finally:
                self.lock.acquire()
