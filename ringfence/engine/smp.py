"""Several vCPUs of one machine that execute translated code in parallel.

    World    what they share: the lock of all Python work for the guest, and how one of them gets to be alone
    engines  one a vCPU, each on a host thread of its own; the first one's code cache serves all

A vCPU's thread holds `lock` whenever it is not in translated code or asleep, so devices, timers and the engines' own Python side
never run at the same time.  Translated code itself runs without it and without the GIL.  The order of locks is: `lock`, then that of
the code cache (translate/native_smp.py), which is never held while anything of Python's is waited for but the GIL.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ringfence.engine.api import Exit
from ringfence.engine.assist import Assistant
from ringfence.engine.emulate import EmulateEngine
from ringfence.memory.guest_memory import Region
from ringfence.translate.block import MAX_INSTRUCTIONS, Translator
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import MAX_VCPUS, SHARE, VCPUS
from ringfence.translate.native_guarded import GUARDED
from ringfence.translate.native_tables import NativeTables

if TYPE_CHECKING:
    from ringfence.engine.regions import Regions

_SWITCH_S = 1e-4  # between looks of a thread of Python's at others that wait for the GIL
_POLL_S = 2e-5
_LONGEST = 15
_SHARED_FIGURES = (
    *("blocks_translated", "instructions_translated", "blocks_left_to_python", "code_cache_flushes", "code_cache_rests", "code_bytes"),
    *("stencil_forms_compiled", "stencil_compile_seconds", "native_translation_seconds", "regions"),
)
_NATIVE = {
    "lock_code": 1,
    "unlock_code": 1,
    "hold_bytes_still": 3,
    "stop_others": 1,
    "others_inside": 1,
    "let_others_go_on": 1,
    "empty_jump_cache": 1,
    "enter_shared": 1,
}


class World:
    """The vCPUs of one machine.  All methods with `lock` held, or before the machine runs."""

    def __init__(self, lock: threading.RLock, count: int) -> None:
        if not 1 < count <= MAX_VCPUS:
            raise ValueError(f"{count} vCPUs")
        self.lock = lock
        self.count = count
        self.engines: list[SmpEngine] = []
        self._by_thread: dict[int, SmpEngine] = {}
        self._alone = False
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))

    def join(self, engine: SmpEngine) -> None:
        code = self.engines[0].code if self.engines else engine.code
        code.put(VCPUS + 8 * len(self.engines), engine.code.cpu)
        self.engines.append(engine)
        code.put(SHARE["vcpus"], len(self.engines))

    def runs_here(self, engine: SmpEngine) -> None:
        """The calling thread is this vCPU's from now on."""
        self._by_thread[threading.get_ident()] = engine

    def here(self) -> SmpEngine:
        """The vCPU of the calling thread; on threads that have none, before the machine runs, the first."""
        return self._by_thread.get(threading.get_ident(), self.engines[0])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other vCPU executes anything."""
        engine = self.here()
        functions, cpu = engine.functions, engine.code.cpu
        if self._alone:
            yield
            return
        self._alone = True
        functions.stop_others(cpu)
        try:
            while functions.others_inside(cpu):
                time.sleep(_POLL_S)
            yield
        finally:
            self._alone = False
            functions.let_others_go_on(cpu)

    def flush(self, translator: Translator) -> None:
        """Drops all translated code, unless somebody else just did."""
        with self.alone():
            if translator.is_full():
                translator.flush()
                self._empty_jump_caches()

    def drop_code(self) -> None:
        with self.alone():
            self.engines[0].code.drop_blocks()
            self._empty_jump_caches()

    def _empty_jump_caches(self) -> None:
        for engine in self.engines:
            engine.functions.empty_jump_cache(engine.code.cpu)

    def dma(self, region: Region, offset: int, size_bytes: int) -> None:
        self.here().drop_written(region, offset, size_bytes)

    def remapped(self) -> None:
        with self.alone():
            for engine in self.engines:
                engine.remap()


class SmpEngine(EmulateEngine):
    """One vCPU among several; `number` is its APIC id."""

    def __init__(self, world: World, number: int, *arguments: Any, **options: Any) -> None:
        self._world = world
        self._number = number
        super().__init__(*arguments, **options)
        self._answers.apic_id, self._answers.cpus = number, world.count

    @property
    def code(self) -> CodeMemory:
        return self._code

    # ---- set-up
    def _make_code(self, ram_pages: int) -> None:
        engines = self._world.engines
        if engines:
            self._code = CodeMemory(ram_pages, engines[0].code)
            self._symbols = engines[0]._symbols
        else:
            super()._make_code(ram_pages)
            self._code.to_share = True
        self._code.put_word("smp", self._number + 1)
        self._world.join(self)
        find = super()._function
        self.functions = SimpleNamespace(**{name: find(name, count) for name, count in _NATIVE.items()})

    def _function(self, name: str, parameters: int) -> Callable[..., int]:
        if name == "s_enter":
            return self._enter
        return super()._function(f"guarded_{name}" if name in GUARDED else name, parameters)

    def _make_tables(self) -> NativeTables | None:
        first = self._world.engines[0]
        return super()._make_tables() if first is self else first._tables

    def _python_translator(self) -> Translator:
        first = self._world.engines[0]
        if first is not self:
            self._translator = first._python_translator()
        return super()._python_translator()

    @functools.cached_property
    def assistant(self) -> Assistant:
        assistant = super().assistant
        assistant.alone = self._world.alone
        return assistant

    def _watch_memory(self) -> None:
        if self._world.engines[0] is self:
            self.memory.on_write(self._world.dma)
            self.memory.on_remap(self._world.remapped)

    # ---- at work
    def _enter(self, cpu: int) -> int:
        lock = self._world.lock
        lock.release()
        try:
            return int(self.functions.enter_shared(cpu))
        finally:
            lock.acquire()

    def run(self, deadline_ns: int | None) -> Exit:
        self._world.runs_here(self)
        return super().run(deadline_ns)

    def step(self, interrupts: bool) -> Exit | None:
        self._world.runs_here(self)
        return super().step(interrupts)

    def _translate_block(self) -> bool:
        """The bytes that may belong to the block are held still first."""
        functions, cpu, translator = self.functions, self._cpu, self._python_translator()
        functions.lock_code(cpu)
        while translator.is_full():
            functions.unlock_code(cpu)
            self._world.flush(translator)
            functions.lock_code(cpu)
        try:
            ra = self._code.word("cur_phys")
            functions.hold_bytes_still(cpu, ra, min(4096 - (ra & 0xFFF), 16 * MAX_INSTRUCTIONS))
            return super()._translate_block()
        finally:
            functions.unlock_code(cpu)

    def _outside(self, address: int, flags: int, value: int) -> int:
        """Who holds the lock may wait for this vCPU to leave translated code, so it is not waited for in there."""
        lock = self._world.lock
        if not lock.acquire(blocking=False):
            self._code.put_word("outside_refused", 1)
            self.exits["mmio_refused"] = self.exits.get("mmio_refused", 0) + 1
            return 0
        try:
            return super()._outside(address, flags, value)
        finally:
            lock.release()

    def _take_gathered(self) -> list[int]:
        functions, cpu = self.functions, self._cpu
        functions.lock_code(cpu)
        try:
            return super()._take_gathered()
        finally:
            functions.unlock_code(cpu)

    def _region_maker(self) -> Regions:
        """The first one's serves all: what is hot on one vCPU is placed for each."""
        first = self._world.engines[0]
        maker = super()._region_maker() if first is self else first._region_maker()
        maker.code, maker.still = self._code, self._still
        return maker

    @contextmanager
    def _still(self, places: Sequence[tuple[int, int]]) -> Iterator[None]:
        functions, cpu = self.functions, self._cpu
        functions.lock_code(cpu)
        try:
            for ra, size in places:
                functions.hold_bytes_still(cpu, ra, size)
            yield
        finally:
            functions.unlock_code(cpu)

    def _second_page(self, pointer: int) -> int:
        second = super()._second_page(pointer)
        self.functions.hold_bytes_still(self._cpu, second, _LONGEST)
        return second

    def drop_written(self, region: Region, offset: int, size_bytes: int) -> None:
        self._dma(region, offset, size_bytes)

    def remap(self) -> None:
        self._remapped()

    def _drop_code(self) -> None:
        self._world.drop_code()

    # ---- figures
    def stats(self) -> dict[str, Any]:
        """What the vCPUs share is told by the first one."""
        figures = super().stats()
        if self._number:
            for name in _SHARED_FIGURES:
                del figures[name]
        else:
            figures["handshakes"] = self._code.get(SHARE["handshakes"])
        return figures

    def close(self) -> None:
        if self._number == 0:
            super().close()


def build(lock: threading.RLock, parts: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[SmpEngine]:
    """The engines of a machine's vCPUs, each from what `EmulateEngine` is built from."""
    world = World(lock, len(parts))
    return [SmpEngine(world, number, *arguments, **options) for number, (arguments, options) in enumerate(parts)]
