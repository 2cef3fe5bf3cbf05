"""The engine that translates every guest instruction: works on any x86-64 Linux host, without rights.

run -> enter translated code -> left for a reason -> translate | port | assist | deliver -> enter again
                                                   -> Halt | Shutdown | Interrupted | Fault to the machine
"""

from __future__ import annotations

import ctypes
import functools
import secrets
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ringfence.core.clock import Clock
from ringfence.core.errors import UserError
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES
from ringfence.engine.api import AddressSpace, Exit, Fault, Halt, InterruptController, Interrupted, MsrHandler, Shutdown
from ringfence.engine.assist import Assistant, LinearMemory, Unsupported
from ringfence.engine.vcpu_state import VcpuState
from ringfence.ir.interpret import GuestFault
from ringfence.isa.x86.state import IF, REQUEST_FLUSH, REQUEST_MODE
from ringfence.memory.guest_memory import GuestMemory
from ringfence.translate import image, layout
from ringfence.translate.block import Translator
from ringfence.translate.code_memory import COLD_START, CodeMemory
from ringfence.translate.layout import BUDGET, FRONT_BYTES, REGIONS, WORDS
from ringfence.translate.lower import EXIT_KINDS
from ringfence.translate.native_layout import NT
from ringfence.translate.runtime import (
    LEFT_DEADLINE,
    LEFT_DEFER,
    LEFT_EXIT,
    LEFT_KICK,
    LEFT_MODE,
    LEFT_SHUTDOWN,
    LEFT_STEP,
    LEFT_TRANSLATE,
)
from ringfence.translate.stencils import Progress, StencilStore

trace = tracer("engine")

SLICE = 200_000  # guest instructions between looks at the deadline
_SLOW_MASK = 15  # turns through Python between looks at the deadline, less one
_NEVER = (1 << 64) - 1
_NMI = 2
_PAGE_FAULT = 14
_OUT = EXIT_KINDS.index("out")
_U64 = ctypes.c_uint64
_INTERPRETED = (LEFT_DEFER, LEFT_STEP)
_NATIVE = {
    "s_enter": 1,
    "inject": 2,
    "deliver_exception": 1,
    "drop_range": 3,
    "protect_page": 2,
    "settle_flags": 1,
    "serve_requests": 1,
    "initialize": 1,
    "compute_mode": 1,
    "walk": 4,
    "raise_page_fault": 3,
    "read_pointer": 3,
    "write_pointer": 3,
    "execute_pointer": 3,
    "store_at": 5,
    "rt_pload": 2,
    "rt_pstore": 3,
    "ram_offset": 2,
}


@functools.cache
def shared_store() -> StencilStore:
    """This process's stencils."""
    return StencilStore()


@functools.cache
def _tsc_reader() -> Callable[[], int]:
    reader: Callable[[], int] = image.host_tsc_reader()
    return reader


def read_guest_tsc() -> int:
    """The guest's time-stamp counter before any offset: the host's."""
    return int(_tsc_reader()())


@functools.cache
def guest_tsc_hz() -> int:
    """The counter's rate, measured against the host's monotonic clock."""
    read = _tsc_reader()
    best = []
    for _ in range(3):
        t0, c0 = time.monotonic_ns(), read()
        time.sleep(0.004)
        t1, c1 = time.monotonic_ns(), read()
        best.append((c1 - c0) * 1_000_000_000 // (t1 - t0))
    return sorted(best)[1]


def prepare(on_progress: Progress | None = None) -> None:
    """Builds or loads what every machine needs: the run time and the stencils that real systems use."""
    from ringfence.translate.forms import build_shipped

    store = shared_store()
    image.prepare(store, on_progress)
    build_shipped(store, on_progress)


class EmulateEngine:
    """One vCPU.  `run` and everything but `kick` belong to one thread."""

    name = "emulate"

    def __init__(
        self,
        memory: GuestMemory,
        ports: AddressSpace,
        mmio: AddressSpace,
        interrupts: InterruptController,
        msrs: MsrHandler,
        clock: Clock,
        on_progress: Progress | None = None,
        native_translation: bool = True,
    ) -> None:
        if len(memory.regions) > layout.MAX_RAM_REGIONS:
            raise UserError("The machine has too many RAM regions for this engine.", f"Use at most {layout.MAX_RAM_REGIONS}.")
        prepare(on_progress)
        self.memory = memory
        self.clock = clock
        self.interrupts = interrupts
        self.ports = ports
        self._store = shared_store()
        self._compiled_before = self._store.compiled_forms
        self._code = CodeMemory(memory.size_bytes // PAGE_BYTES)
        self._cpu = self._code.cpu
        symbols = image.place_runtime(self._code, self._store)
        self._native = SimpleNamespace(
            **{n: ctypes.CFUNCTYPE(_U64, *[_U64] * count)(self._code.rx + symbols[n]) for n, count in _NATIVE.items()}
        )
        self._symbols = symbols
        self.state = VcpuState(self._code)
        self._describe_memory()
        self._put_constants()
        self._translator = Translator(self._code, self._store, symbols, native_translation)
        self.linear = LinearMemory(self._code, self._native, self.state, mmio, read_guest_tsc)
        self.assistant = Assistant(self.state, self.linear, ports, interrupts, msrs, guest_tsc_hz())
        self._kick = ctypes.c_uint32.from_buffer(self._code.state, FRONT_BYTES + layout.SPECIAL["kick"])
        self._irq_check = True
        self.exits: dict[str, int] = {}
        self._seconds = {"translation": 0.0, "devices": 0.0}
        self._views = [(r.base, r.end, r.view) for r in memory.regions]
        memory.on_write(self._dma)
        self.state.reset()
        self._native.initialize(self._cpu)

    # ---- set-up
    def _describe_memory(self) -> None:
        first = 0
        self._first_pages: list[tuple[int, int, int]] = []
        for k, region in enumerate(self.memory.regions):
            for n, value in enumerate((region.base, region.end, region.host_addr, first)):
                self._code.put(REGIONS + 32 * k + 8 * n, value)
            self._first_pages.append((region.base, region.end, first))
            first += region.size_bytes // PAGE_BYTES

    def _put_constants(self) -> None:
        code = self._code
        code.put_word("code_rx", code.rx)
        code.put_word("code_rw_delta", code.rw - code.rx)
        code.put_word("stub_stale", code.rx + self._symbols["s_stale"])
        code.put_word("budget_slice", SLICE)
        code.put(BUDGET, SLICE, "i")
        code.put_word("generation", secrets.randbits(59))

    # ---- the contract
    def run(self, deadline_ns: int | None) -> Exit:
        code = self._code
        self._set_deadline(deadline_ns)
        get, enter, cpu = code.get, self._native.s_enter, self._cpu
        reason_at, reset = WORDS["exit_reason"], code.put
        exits, slow = self.exits, 0
        while True:
            if self._irq_check:
                result = self._offer_interrupt()
                if result is not None:
                    return result
            enter(cpu)
            reason = get(reason_at)
            reset(reason_at, 0)
            if reason == LEFT_TRANSLATE:
                result = self._translate()
                if result is not None:
                    return result
            elif reason == LEFT_EXIT:
                self._port_io()
            elif reason in _INTERPRETED:
                exits["interpreted"] = exits.get("interpreted", 0) + 1
                result = self._assist()
                if result is not None:
                    return result
            elif reason == LEFT_KICK:
                self._kick.value = 0
                self._irq_check = True
                exits["kick"] = exits.get("kick", 0) + 1
                return Interrupted()
            elif reason == LEFT_DEADLINE:
                exits["deadline"] = exits.get("deadline", 0) + 1
                return Interrupted()
            elif reason == LEFT_SHUTDOWN:
                return Shutdown(self._why_shutdown())
            elif reason == LEFT_MODE:
                return Fault("the guest left 64-bit mode, which this version does not execute yet")
            else:
                return Fault(f"translated code was left for an unknown reason ({reason})")
            # A guest whose every instruction leaves translated code uses up no budget to speak of.
            slow += 1
            if self._kick.value:
                self._kick.value = 0
                self._irq_check = True
                return Interrupted()
            if not slow & _SLOW_MASK and read_guest_tsc() >= code.word("deadline_tsc"):
                return Interrupted()

    def kick(self) -> None:
        self._kick.value = 1

    def interrupt_changed(self) -> None:
        self._irq_check = True  # devices run between two stretches of translated code: seen before the next

    def deadline_moved(self) -> None:
        self._set_deadline(self.clock.next_deadline_ns())

    def _set_deadline(self, deadline_ns: int | None) -> None:
        code = self._code
        if deadline_ns is None:
            code.put_word("deadline_tsc", _NEVER)
            return
        delta = max(0, deadline_ns - self.clock.now_ns())
        code.put_word("deadline_tsc", read_guest_tsc() + delta * guest_tsc_hz() // 1_000_000_000)
        if delta < 50_000:  # a whole slice may take longer than that: look again soon
            code.put_word("icount", code.word("icount") + code.word("budget_slice") - code.get(BUDGET, "i") - SLICE)
            code.put(BUDGET, 0, "i")

    # ---- interrupts
    def _offer_interrupt(self) -> Exit | None:
        """Injects what waits, or has translated code tell when it can be."""
        self._irq_check = False
        state, interrupts = self.state, self.interrupts
        nmi = getattr(interrupts, "nmi_pending", False) and not state["nmi_blocked"]
        if not nmi and not interrupts.pending():
            state["irq_pending"] = 0
            return None
        open_now = bool(state["rflags_sys"] & IF)
        if state["shadow_rip"] == state["rip"] and (open_now or nmi):
            self._irq_check = True
            return self._assist()  # the one instruction that STI or MOV SS protects
        if nmi:
            interrupts.acknowledge_nmi()  # type: ignore[attr-defined]
            state["nmi_blocked"] = 1
            self._inject(_NMI)
            self._irq_check = True
        elif open_now:
            self._inject(interrupts.acknowledge())
            state["irq_pending"] = int(interrupts.pending())
        else:
            state["irq_pending"] = 1
        return None

    def _inject(self, vector: int) -> None:
        self.exits["interrupt"] = self.exits.get("interrupt", 0) + 1
        self._native.inject(self._cpu, vector)

    # ---- work between stretches of translated code
    def _translate(self) -> Exit | None:
        start = time.perf_counter_ns()
        code, state = self._code, self.state
        va, ra, mode = state["rip"], code.word("cur_phys"), code.word("mode")
        translator = self._translator
        page = self._page(ra >> 12)
        if not translator.translate(va, ra, mode, page, None):
            pointer = self._native.execute_pointer(self._cpu, (va & ~0xFFF) + PAGE_BYTES, mode & 3)
            if pointer:
                second = self._native.ram_offset(self._cpu, pointer)
                translator.translate(va, ra, mode, page, (second, self._page(second >> 12)))
            elif code.word("status") == 2:
                self._native.deliver_exception(self._cpu)
            else:
                return self._assist()  # it runs on into memory that is not RAM
        for number in translator.fresh_pages:
            self._native.protect_page(self._cpu, number << 12)
        translator.fresh_pages.clear()
        self._seconds["translation"] += (time.perf_counter_ns() - start) / 1e9
        return None

    def _page(self, number: int) -> memoryview:
        """The bytes of a RAM page in the flat numbering."""
        for (base, end, first), (_, _, view) in zip(self._first_pages, self._views, strict=True):
            if first <= number < first + (end - base) // PAGE_BYTES:
                offset = (number - first) * PAGE_BYTES
                return view[offset : offset + PAGE_BYTES]
        raise IndexError(number)

    def _port_io(self) -> None:
        code, exits = self._code, self.exits
        port, size = code.word("ex0"), code.word("ex1")
        start = time.perf_counter_ns()
        if code.word("exit_kind") == _OUT:
            self.ports.write(port, size, code.word("ex2"))
            exits["port_out"] = exits.get("port_out", 0) + 1
        else:
            self.assistant.complete_in(size, self.ports.read(port, size))
            exits["port_in"] = exits.get("port_in", 0) + 1
        self._seconds["devices"] += (time.perf_counter_ns() - start) / 1e9

    def _assist(self) -> Exit | None:
        """One instruction in Python."""
        code, state = self._code, self.state
        self._native.settle_flags(self._cpu)
        code.put(BUDGET, code.get(BUDGET, "i") - 1, "i")
        try:
            self.assistant.step()
        except GuestFault as fault:
            if state["request"]:  # of an instruction that ended in a debug trap
                self._native.serve_requests(self._cpu)
            state["exc_vector"] = fault.vector
            state["exc_error"] = fault.error
            if fault.vector == _PAGE_FAULT and fault.address is not None:
                code.put_word("fault_addr", fault.address)
            self._native.deliver_exception(self._cpu)
            if code.word("exit_reason") == LEFT_SHUTDOWN:
                return Shutdown(self._why_shutdown())
            return None
        except Unsupported as error:
            return Fault(str(error))
        if self.assistant.halted:
            self._irq_check = True
            self.exits["halt"] = self.exits.get("halt", 0) + 1
            return Halt(bool(state["rflags_sys"] & IF))
        if state["request"]:
            self._native.serve_requests(self._cpu)
        return None

    def _why_shutdown(self) -> str:
        first, last = self._code.word("first_fault"), self.state["exc_vector"]
        where = f"error {self.state['exc_error']:#x}, at RIP {self.state['rip']:#x}"
        return f"exception {first} could not be delivered; the last one was {last}, {where}"

    def _dma(self, guest_addr: int, size_bytes: int) -> None:
        """Bytes of RAM changed from outside of translated code."""
        for base, end, first in self._first_pages:
            if base <= guest_addr < end:
                self._native.drop_range(self._cpu, (first << 12) + guest_addr - base, min(size_bytes, end - guest_addr))

    # ---- registers and figures
    def read_state(self) -> dict[str, int]:
        self._native.settle_flags(self._cpu)
        return self.state.registers()

    def write_state(self, values: dict[str, int]) -> None:
        self._native.settle_flags(self._cpu)
        self.state.write_registers(values)
        self.state["request"] = REQUEST_FLUSH | REQUEST_MODE
        self._irq_check = True

    def guest_instructions(self) -> int:
        """Executed so far, exactly."""
        code = self._code
        return code.word("icount") + code.word("budget_slice") - code.get(BUDGET, "i")

    def stats(self) -> dict[str, Any]:
        code, translator = self._code, self._translator
        return {
            "guest_instructions": self.guest_instructions(),
            "blocks_translated": translator.blocks_translated + code.get(NT["blocks"]),
            "instructions_translated": translator.instructions_translated + code.get(NT["instructions"]),
            "blocks_left_to_python": {
                "in all": translator.blocks_translated,
                **{why: code.get(NT[why]) for why in ("unknown", "crossing", "no_template", "full")},
            },
            "blocks_dropped": code.word("invalidated"),
            "code_cache_flushes": translator.flushes,
            "code_bytes": code.hot + code.cold - COLD_START,
            "stencil_forms_compiled": self._store.compiled_forms - self._compiled_before,
            "stencil_compile_seconds": self._store.compile_ns / 1e9,
            "tlb_refills": code.word("tlb_refills"),
            "tlb_flushes": code.word("tlb_flushes"),
            "lookups": code.word("lookups"),
            "links": code.word("links"),
            "exceptions_delivered": code.word("delivered"),
            "seconds": {**self._seconds, "translation": self._seconds["translation"] + code.get(NT["ticks"]) / guest_tsc_hz()},
            "native_translation_seconds": code.get(NT["ticks"]) / guest_tsc_hz(),
            "exits": dict(self.exits),
        }

    def close(self) -> None:
        if self._store.recipes_changed:
            self._translator.save_recipes()
            self._store.save_recipes()
        if self._translator.tables is not None:
            self._translator.tables.save()
        self._store.save()
