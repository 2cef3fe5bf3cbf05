"""The engine that translates every guest instruction: works on any x86-64 Linux host, without rights.

run -> enter translated code -> left for a reason -> translate | port | assist | deliver -> enter again
                                                   -> Halt | Shutdown | Interrupted | Fault to the machine
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import time
from collections.abc import Callable, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ringfence.core.clock import Clock
from ringfence.core.errors import GuestError, UserError
from ringfence.core.late import LateModule
from ringfence.core.port_hint import PortHint
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES
from ringfence.engine import tsc
from ringfence.engine.api import AddressSpace, Debug, Exit, Fault, Halt, InterruptController, Interrupted, MsrHandler, Shutdown, Watch
from ringfence.engine.cpuid import CpuidAnswers
from ringfence.engine.points import Points
from ringfence.engine.unsupported import Unsupported
from ringfence.engine.vcpu_state import VcpuState
from ringfence.ir.fault import GuestFault
from ringfence.isa.x86.models import DEFAULT, CpuModel
from ringfence.isa.x86.state import IF, REQUEST_FLUSH, REQUEST_MODE
from ringfence.isa.x86.vectors import SOFT_INTERRUPT
from ringfence.memory.guest_memory import GuestMemory, Region
from ringfence.translate import image, layout
from ringfence.translate.code_memory import COLD_START, CodeMemory
from ringfence.translate.layout import (
    BUDGET,
    EXIT_KINDS,
    FRONT_BYTES,
    GATHERED,
    HINT_GATHER,
    HINT_READ,
    MAX_PIECES,
    MAX_PORT_HINTS,
    MAX_STORES,
    PIECES,
    PORT_HINTS,
    READ_ONLY,
    SHARE,
    STORES,
    WORDS,
)
from ringfence.translate.native_codes import (
    CONTRIBUTORY,
    LEFT_DEADLINE,
    LEFT_DEFER,
    LEFT_DELIVER,
    LEFT_EXIT,
    LEFT_INJECT,
    LEFT_KICK,
    LEFT_REDIRECT,
    LEFT_SAMPLES,
    LEFT_SHUTDOWN,
    LEFT_SOFT,
    LEFT_STEP,
    LEFT_TRANSLATE,
    MODE_BITS,
    OUTSIDE_STORE,
)
from ringfence.translate.native_layout import MAX_SAMPLES, NT, SAMPLE_COUNT
from ringfence.translate.native_points_layout import LEFT_POINT, POINT_NEAR
from ringfence.translate.native_tables import NativeTables

if TYPE_CHECKING:
    from ringfence.engine import assist, regions
    from ringfence.translate import block, forms, linking, objects, stencils
    from ringfence.translate.stencils import Progress
else:  # what Python executes or translates, and what fills the cache
    assist = LateModule("ringfence.engine.assist")
    block = LateModule("ringfence.translate.block")
    forms = LateModule("ringfence.translate.forms")
    linking = LateModule("ringfence.translate.linking")
    objects = LateModule("ringfence.translate.objects")
    regions = LateModule("ringfence.engine.regions")
    stencils = LateModule("ringfence.translate.stencils")

trace = tracer("engine")

SLICE = 200_000  # guest instructions between looks at the deadline
_SLOW_MASK = 15  # turns through Python between looks at the deadline, less one
_NEVER = (1 << 64) - 1
_NMI = 2
_PAGE_FAULT = 14
_OUT = EXIT_KINDS.index("out")
_EXIT, _EXIT_AT = struct.Struct("<4Q"), FRONT_BYTES + WORDS["exit_kind"]  # exit_kind, ex0, ex1, ex2
assert [WORDS[f"ex{n}"] - WORDS["exit_kind"] for n in range(3)] == [8, 16, 24]
_CROSSINGS = 100
REST_BYTES = 4 << 20  # of translated code that an idle guest may keep
_U64 = ctypes.c_uint64
_ASKED = ctypes.CFUNCTYPE(_U64, _U64, _U64, _U64)
_INTERPRETED = (LEFT_DEFER, LEFT_STEP)
_DELIVERIES = (LEFT_DELIVER, LEFT_INJECT, LEFT_SOFT, LEFT_REDIRECT)
_DOUBLE_FAULT = 8
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
    "tlb_flush": 1,
    "soft_interrupt": 3,
    "refresh_points": 1,
    "kill_block": 2,
    "refill_code": 3,
}
A20 = 1 << 20


@functools.cache
def shared_store() -> stencils.StencilStore:
    """This process's stencils."""
    return stencils.StencilStore()


def makes_double_fault(first: int, second: int) -> bool:
    """SDM 3A table 6-5."""
    contributory = second < 32 and CONTRIBUTORY >> second & 1
    if first == _PAGE_FAULT:
        return bool(contributory or second == _PAGE_FAULT)
    return bool(contributory and first < 32 and CONTRIBUTORY >> first & 1)


def check() -> None:
    """Loads what is needed once something must be compiled.  Raises ImportError or OSError where that is missing or broken."""
    objects.target_machine()


def prepare(on_progress: Progress | None = None) -> None:
    """Builds or loads what every machine needs: the run time and the stencils that real systems use."""
    if image.ready():
        return  # there is nothing to load but that
    store = shared_store()
    linking.prepare(store, on_progress)
    if not store.built:
        forms.build_shipped(store, on_progress)


class EmulateEngine:
    """One vCPU.  `run` and everything but `kick` belong to one thread.  `without`: optimisations left out
    (switches.py).  `keep_translations`: the user's cache is read and written."""

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
        model: CpuModel = DEFAULT,
        without: frozenset[str] = frozenset(),
        keep_translations: bool = False,
    ) -> None:
        if len(memory.stores) > MAX_STORES:
            raise UserError("The machine has too many regions of memory for this engine.", f"Use at most {MAX_STORES}.")
        prepare(on_progress)
        self.model = model
        self._without = without
        self.memory = memory
        self.clock = clock
        self.interrupts = interrupts
        self.ports = ports
        self._mmio, self._msrs = mmio, msrs
        self._make_code(sum(r.size_bytes for r in memory.stores) // PAGE_BYTES)
        self._cpu = self._code.cpu
        self._pages = self._code.pages64
        self._natives_placed = len(self._code.natives)
        self._native = SimpleNamespace(**{n: self._function(n, count) for n, count in _NATIVE.items()})
        self.state = VcpuState(self._code)
        self._describe_memory()
        self._put_constants()
        self._tables = self._make_tables()
        self._translator: block.Translator | None = None
        self._compiled_before = self._compiled_ns_before = 0
        self._crossed = 0
        self._answers = CpuidAnswers(model, msrs, tsc.hz)
        self._points = Points(self._code)
        self._regions: regions.Regions | None = None
        self._keep_translations = keep_translations
        if "regions" in without:
            self._code.put(SAMPLE_COUNT, MAX_SAMPLES)
        self._rests = 0
        self._resumed = False
        self._kicked = False  # by another thread or the machine, not only to have interrupts looked at
        self._failure: BaseException | None = None
        self._asked = _ASKED(self._outside)  # kept as long as compiled code may call it
        if "direct-mmio" not in without:
            self._code.put_word("outside", ctypes.cast(self._asked, ctypes.c_void_p).value or 0)
        self._kick = ctypes.c_uint32.from_buffer(self._code.state, FRONT_BYTES + layout.SPECIAL["kick"])
        self._irq_check = True
        self.exits: dict[str, int] = {}
        self._seconds = {"translation": 0.0, "devices": 0.0}
        self._watch_memory()
        self.state.reset()
        self.state.become(model)
        self._native.initialize(self._cpu)
        self._native.refresh_points(self._cpu)
        if "native-ports" not in without:
            self._enter_hints()

    # ---- Python's parts, which are loaded when something is left to them
    @functools.cached_property
    def linear(self) -> assist.LinearMemory:
        return assist.LinearMemory(self._code, self._native, self.state, self._mmio, tsc.read, self._points)

    @functools.cached_property
    def assistant(self) -> assist.Assistant:
        return assist.Assistant(self.state, self.linear, self.ports, self.interrupts, self._msrs, self._answers, self.model)

    def _region_maker(self) -> regions.Regions:
        if self._regions is None:
            self._regions = regions.Regions(self._code, self._native, self.model.name, self._symbols, self._page, self._keep_translations)
        return self._regions

    def _python_translator(self) -> block.Translator:
        if self._translator is None:
            store = shared_store()
            if not store.built:
                image.forget()  # a large cache has been lost: the next start makes it again
            self._compiled_before, self._compiled_ns_before = store.compiled_forms, store.compile_ns
            self._translator = block.Translator(self._code, store, self._symbols, self._tables, self.model)
        return self._translator

    # ---- set-up
    def _make_code(self, ram_pages: int) -> None:
        """The state block and the code region with the run time in it."""
        self._code = CodeMemory(ram_pages)
        self._symbols = image.place_runtime(self._code, shared_store)

    def _function(self, name: str, parameters: int) -> Callable[..., int]:
        """A function of the run time."""
        found: Callable[..., int] = ctypes.CFUNCTYPE(_U64, *[_U64] * parameters)(self._code.rx + self._symbols[name])
        return found

    def _make_tables(self) -> NativeTables | None:
        """What the native translator knows; None where there is none."""
        if "native-translation" in self._without or self.model.generation < 386:  # it knows no encodings but the 386's
            return None
        tables = NativeTables(self._code, self._symbols, model=self.model)
        self._code.put(NT["enabled"], 1)
        return tables

    def _watch_memory(self) -> None:
        self.memory.on_write(self._written, self._written_many)
        self.memory.on_remap(self._remapped)

    def _describe_memory(self) -> None:
        first = 0
        self._first_pages: dict[Region, int] = {}
        for k, region in enumerate(self.memory.stores):
            for n, value in enumerate((region.host_addr, region.host_addr + region.size_bytes, first)):
                self._code.put(STORES + 32 * k + 8 * n, value)
            self._first_pages[region] = first
            first += region.size_bytes // PAGE_BYTES
        self._describe_pieces()

    def _describe_pieces(self) -> None:
        """Guest physical memory as it is now; the largest piece is looked at first."""
        pieces = sorted(self.memory.pieces, key=lambda p: p.base - p.end)
        if len(pieces) > MAX_PIECES:
            raise GuestError(f"guest physical memory is cut into {len(pieces)} pieces, more than {MAX_PIECES}")
        for k, p in enumerate(pieces):
            page = self._first_pages[p.region] + p.offset // PAGE_BYTES | (0 if p.writable else READ_ONLY)
            for n, value in enumerate((p.base, p.end, p.region.host_addr + p.offset, page)):
                self._code.put(PIECES + 32 * k + 8 * n, value)
        self._code.put(PIECES + 32 * len(pieces) + 8, 0)
        lines = (1 << self.model.address_bits) - 1
        self._code.put_word("a20_mask", lines if self.memory.a20 else lines & ~A20)

    def _remapped(self) -> None:
        self._describe_pieces()
        self._native.tlb_flush(self._cpu)

    def _put_constants(self) -> None:
        code = self._code
        code.put_word("code_rx", code.rx)
        code.put_word("code_rw_delta", code.rw - code.rx)
        code.put_word("stub_stale", code.rx + self._symbols["s_stale"])
        code.put_word("budget_slice", SLICE)
        code.put(BUDGET, SLICE, "i")
        for name in ("generation", "generation_user"):
            code.put_word(name, int.from_bytes(os.urandom(8), "little") >> MODE_BITS)
        code.put_word("without_globals", "global-pages" in self._without)

    # ---- the contract
    def run(self, deadline_ns: int | None) -> Exit:
        code = self._code
        self._set_deadline(deadline_ns)
        get, enter, cpu = code.get, self._native.s_enter, self._cpu
        reason_at, reset = WORDS["exit_reason"], code.put
        gathered_at = SHARE["gathered"]
        exits, slow = self.exits, 0
        if self._resumed:
            result = self._pass_breakpoint()
            if result is not None:
                return result
        while True:
            if self._irq_check:
                result = self._offer_interrupt()
                if result is not None:
                    return result
            enter(cpu)
            if get(gathered_at):
                self._hand_over()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
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
            elif reason == LEFT_SAMPLES:
                exits["samples"] = exits.get("samples", 0) + 1
                self._region_maker().take()
            elif reason == LEFT_KICK:
                exits["kick"] = exits.get("kick", 0) + 1
                if self._take_kick():
                    return Interrupted()
            elif reason == LEFT_DEADLINE:
                exits["deadline"] = exits.get("deadline", 0) + 1
                return Interrupted()
            elif reason == LEFT_SHUTDOWN:
                return Shutdown(self._why_shutdown())
            elif reason == LEFT_POINT:
                result = self._point()
                if result is not None:
                    return result
            elif reason in _DELIVERIES:
                result = self._deliver(reason)
                if result is not None:
                    return result
            else:
                return Fault(f"translated code was left for an unknown reason ({reason})")
            # A guest whose every instruction leaves translated code uses up no budget to speak of.
            slow += 1
            if self._kick.value and self._take_kick():
                return Interrupted()
            if not slow & _SLOW_MASK and tsc.read() >= code.word("deadline_tsc"):
                return Interrupted()

    def kick(self) -> None:
        self._kicked = True
        self._kick.value = 1

    def _take_kick(self) -> bool:
        """Whether the machine's loop is wanted: someone else kicked, or a long instruction met the deadline."""
        self._kick.value = 0
        self._irq_check = True
        if self._kicked:
            self._kicked = False
            return True
        return tsc.read() >= self._code.word("deadline_tsc")

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
        code.put_word("deadline_tsc", tsc.read() + delta * tsc.hz() // 1_000_000_000)
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
            if self._linear_rip() in self._points.breakpoints:
                return None
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
        if self._translator is None and (crossed := self._code.get(NT["crossing"])) != self._crossed:
            self._crossed = crossed
            if crossed <= _CROSSINGS:  # a few instructions across a page's end are not worth loading Python's translator
                return self._assist()
        start = time.perf_counter_ns()
        done = self._translate_block()
        self._seconds["translation"] += (time.perf_counter_ns() - start) / 1e9
        return None if done else self._assist()  # it runs on into memory that is not RAM

    def _translate_block(self) -> bool:
        """By Python; False where only the interpreter can go on."""
        code, state = self._code, self.state
        va, ra, mode = state["rip"], code.word("cur_phys"), code.word("mode") | code.get(POINT_NEAR)
        translator = self._python_translator()
        if translator.place_wanted(code):
            return True
        page = self._page(ra >> 12)
        if not translator.translate(va, ra, mode, page, None):
            pointer = self._native.execute_pointer(self._cpu, (va & ~0xFFF) + PAGE_BYTES, mode & 3)
            if pointer:
                second = self._second_page(pointer)
                translator.translate(va, ra, mode, page, (second, self._page(second >> 12)))
            elif code.word("status") == 2:
                self._native.deliver_exception(self._cpu)
            else:
                return False
        for number in translator.fresh_pages:
            self._native.protect_page(self._cpu, number << 12)
        translator.fresh_pages.clear()
        return True

    def _second_page(self, pointer: int) -> int:
        """The RAM offset of the page that a block runs into, from its host address."""
        return int(self._native.ram_offset(self._cpu, pointer))

    def _page(self, number: int) -> memoryview:
        """The bytes of a RAM page in the flat numbering."""
        for region, first in self._first_pages.items():
            if first <= number < first + region.size_bytes // PAGE_BYTES:
                offset = (number - first) * PAGE_BYTES
                return region.view[offset : offset + PAGE_BYTES]
        raise IndexError(number)

    def _enter_hints(self) -> None:
        """Port registers that need no device at every access; those beyond the table's end go to their device."""
        hints: dict[int, PortHint] = getattr(self.ports, "hints", {})
        for k, (port, hint) in enumerate(islice(hints.items(), MAX_PORT_HINTS)):
            self._code.put(PORT_HINTS + 16 * k, port + 1)
            hint.changed = functools.partial(self._put_hint, PORT_HINTS + 16 * k + 8)
            hint.changed(hint)
        self._code.put_word("gather_ticks", tsc.hz() // 1000)

    def _put_hint(self, at: int, hint: PortHint) -> None:
        read = 0 if hint.value is None else HINT_READ | hint.value << 8
        self._code.put(at, read | (HINT_GATHER if hint.gather else 0))

    def _hand_over(self) -> None:
        """Gives gathered writes to their devices."""
        start = time.perf_counter_ns()
        for word in self._take_gathered():
            self.ports.write(word >> 8, 1, word & 0xFF)
        self._seconds["devices"] += (time.perf_counter_ns() - start) / 1e9

    def _take_gathered(self) -> list[int]:
        """As GATHERED of layout.py has them, which is empty then."""
        code, at = self._code, FRONT_BYTES + GATHERED
        words = memoryview(code.state)[at : at + 4 * code.get(SHARE["gathered"])].cast("I").tolist()
        code.put(SHARE["gathered"], 0)
        return words

    def _port_io(self) -> None:
        exits = self.exits
        kind, port, size, value = _EXIT.unpack_from(self._code.state, _EXIT_AT)
        start = time.perf_counter_ns()
        if kind == _OUT:
            self.ports.write(port, size, value)
            exits["port_out"] = exits.get("port_out", 0) + 1
        else:
            self.state.complete_in(size, self.ports.read(port, size))
            exits["port_in"] = exits.get("port_in", 0) + 1
        self._seconds["devices"] += (time.perf_counter_ns() - start) / 1e9

    def _outside(self, address: int, flags: int, value: int) -> int:
        """MMIO from the middle of compiled code (translate/native_outside.py), whose registers are not to be looked at meanwhile.

        Who cannot ask a device now sets the word `outside_refused`; then the instruction is left to the interpreter.
        """
        start = time.perf_counter_ns()
        try:
            if self._code.get(SHARE["gathered"]):
                self._hand_over()  # they came first
            if flags & OUTSIDE_STORE:
                self._mmio.write(address, flags & 0xFF, value)
            else:
                value = self._mmio.read(address, flags & 0xFF)
        except BaseException as failure:  # raised again where Python is in charge
            self._failure = failure
        self.exits["mmio"] = self.exits.get("mmio", 0) + 1
        if self._irq_check or self._failure is not None:
            self._kick.value = 1  # seen before the next block
        self._seconds["devices"] += (time.perf_counter_ns() - start) / 1e9
        return value

    # ---- a debugger's points
    def set_points(self, breakpoints: Sequence[int], watches: Sequence[Watch]) -> None:
        self._points.set(breakpoints, watches)
        self._native.refresh_points(self._cpu)
        self._native.tlb_flush(self._cpu)
        self._resumed = True

    def step(self, interrupts: bool) -> Exit | None:
        self._resumed = True
        self._set_deadline(None)
        if self.state["request"]:
            self._native.serve_requests(self._cpu)
        if interrupts:
            before = self.exits.get("interrupt", 0)
            result = self._offer_interrupt()
            self._irq_check = True
            if result is not None or self.exits.get("interrupt", 0) != before:
                return result
        result = self._assist()
        self._code.put(WORDS["exit_reason"], 0)
        met = self._points.take()
        return result or (Debug(self._linear_rip(), met) if met else None)

    def _point(self) -> Exit | None:
        """An instruction that is a debugger's, or one that the guest's debug registers name."""
        met = self._points.take()
        if met is None and self._linear_rip() not in self._points.breakpoints:
            return self._assist()
        self._resumed = True
        return Debug(self._linear_rip(), met)

    def _pass_breakpoint(self) -> Exit | None:
        """The vCPU goes on at an instruction whose breakpoint was told already."""
        self._resumed = False
        return self._assist() if self._linear_rip() in self._points.breakpoints else None

    def _linear_rip(self) -> int:
        return int(self.state["rip"])

    def _assist(self) -> Exit | None:
        """One instruction in Python."""
        result = self._assist_one()
        if self._points.met is not None:
            self._resumed = True
            met = self._points.take()
            return result or Debug(self._linear_rip(), met)
        return result

    def _assist_one(self) -> Exit | None:
        code, state = self._code, self.state
        self._native.settle_flags(self._cpu)
        code.put(BUDGET, code.get(BUDGET, "i") - 1, "i")
        try:
            self.assistant.step()
        except GuestFault as fault:
            if state["request"]:  # of an instruction that ended in a debug trap
                self._native.serve_requests(self._cpu)
            if fault.vector == SOFT_INTERRUPT:
                self._native.soft_interrupt(self._cpu, fault.error, self.assistant.soft_next)
                return self._why_left()
            state["exc_vector"] = fault.vector
            state["exc_error"] = fault.error
            if fault.vector == _PAGE_FAULT and fault.address is not None:
                code.put_word("fault_addr", fault.address)
            self._native.deliver_exception(self._cpu)
            return self._why_left()
        except Unsupported as error:
            return Fault(str(error))
        if self.assistant.halted:
            self._irq_check = True
            self.exits["halt"] = self.exits.get("halt", 0) + 1
            return Halt(bool(state["rflags_sys"] & IF))
        if state["request"]:
            self._native.serve_requests(self._cpu)
        return None

    def _why_left(self) -> Exit | None:
        """After a delivery from the Python side: what it ended in, if not in the handler."""
        code = self._code
        reason = code.word("exit_reason")
        if reason in _DELIVERIES or reason == LEFT_SHUTDOWN:
            code.put_word("exit_reason", 0)
        if reason in _DELIVERIES:
            return self._deliver(reason)
        return Shutdown(self._why_shutdown()) if reason == LEFT_SHUTDOWN else None

    def _deliver(self, reason: int) -> Exit | None:
        """What compiled delivery leaves: task gates, and tables or stacks that are not RAM."""
        code, state = self._code, self.state
        self.exits["delivered"] = self.exits.get("delivered", 0) + 1
        first = int(state["exc_vector"])
        soft = reason in (LEFT_SOFT, LEFT_REDIRECT)
        try:
            self.assistant.transfers.deliver(code.word("soft_next") if soft else int(state["rip"]), reason == LEFT_REDIRECT)
        except GuestFault as second:
            if state["request"]:
                self._native.serve_requests(self._cpu)
            state["exc_vector"], state["exc_error"] = second.vector, second.error
            if second.vector == _PAGE_FAULT and second.address is not None:
                code.put_word("fault_addr", second.address)
                state["cr2"] = second.address
            if reason == LEFT_DELIVER and first == _DOUBLE_FAULT:
                return Shutdown(self._why_shutdown())
            if reason == LEFT_DELIVER and makes_double_fault(first, second.vector):
                state["exc_vector"], state["exc_error"] = _DOUBLE_FAULT, 0
            self._native.deliver_exception(self._cpu)
            return self._why_left()
        if state["request"]:
            self._native.serve_requests(self._cpu)
        return None

    def _why_shutdown(self) -> str:
        first, last = self._code.word("first_fault"), self.state["exc_vector"]
        where = f"error {self.state['exc_error']:#x}, at RIP {self.state.eip():#x}"
        return f"exception {first} could not be delivered; the last one was {last}, {where}"

    def _dma(self, region: Region, offset: int, size_bytes: int) -> None:
        """Bytes of memory changed from outside of translated code."""
        self._native.drop_range(self._cpu, (self._first_pages[region] << 12) + offset, size_bytes)

    def _written(self, region: Region, offset: int, size_bytes: int) -> None:
        """The same, with a look beforehand at whether blocks were made from that page: no one makes any meanwhile."""
        at = self._first_pages[region] * PAGE_BYTES + offset
        if self._pages[2 * (at // PAGE_BYTES)] or at % PAGE_BYTES + size_bytes > PAGE_BYTES:
            self._dma(region, offset, size_bytes)

    def _written_many(self, region: Region, places: list[tuple[int, int]]) -> None:
        first, pages = self._first_pages[region] * PAGE_BYTES, self._pages
        for offset, size_bytes in places:
            at = first + offset
            if pages[2 * (at // PAGE_BYTES)] or at % PAGE_BYTES + size_bytes > PAGE_BYTES:
                self._dma(region, offset, size_bytes)

    # ---- registers and figures
    def read_state(self) -> dict[str, int]:
        self._native.settle_flags(self._cpu)
        return self.state.registers()

    def write_state(self, values: dict[str, int]) -> None:
        self._native.settle_flags(self._cpu)
        self.state.write_registers(values)
        self.state["request"] = REQUEST_FLUSH | REQUEST_MODE
        if "native-cpuid" not in self._without:
            self._answers.enter(self.state)
        self._irq_check = True

    def guest_instructions(self) -> int:
        """Executed so far, exactly."""
        code = self._code
        return code.word("icount") + code.word("budget_slice") - code.get(BUDGET, "i") & (1 << 64) - 1  # `charge` moves both

    def stats(self) -> dict[str, Any]:
        code, translator = self._code, self._translator
        left, instructions, flushes, compiled, compiled_ns = 0, 0, 0, 0, 0
        if translator is not None:
            left, instructions, flushes = translator.blocks_translated, translator.instructions_translated, translator.flushes
            compiled = translator.store.compiled_forms - self._compiled_before
            compiled_ns = translator.store.compile_ns - self._compiled_ns_before
        return {
            "guest_instructions": self.guest_instructions(),
            "blocks_translated": left + code.get(NT["blocks"]),
            "instructions_translated": instructions + code.get(NT["instructions"]),
            "blocks_left_to_python": {
                "in all": left,
                **{why: code.get(NT[why]) for why in ("unknown", "crossing", "no_template", "full")},
            },
            "blocks_dropped": code.word("invalidated"),
            "code_cache_flushes": flushes,
            "code_cache_rests": self._rests,
            "code_bytes": code.hot + code.cold - COLD_START,
            "stencil_forms_compiled": compiled,
            "stencil_compile_seconds": compiled_ns / 1e9,
            "tlb_refills": code.word("tlb_refills"),
            "tlb_flushes": code.word("tlb_flushes"),
            "lookups": code.word("lookups"),
            "links": code.word("links"),
            "exceptions_delivered": code.word("delivered"),
            "port_accesses_without_device": code.word("port_hits"),
            "seconds": {**self._seconds, "translation": self._seconds["translation"] + code.get(NT["ticks"]) / tsc.hz()},
            "native_translation_seconds": code.get(NT["ticks"]) / tsc.hz(),
            "regions": dict(self._regions.figures) if self._regions is not None else {},
            "exits": dict(self.exits),
        }

    def rest(self) -> int:
        """The guest has been idle for a while: keeps what was learnt, and drops translated code, most of which was for its start.
        Returns how many bytes of code that were.  Between two calls of `run`, on the vCPU's thread."""
        self._keep()
        if self._regions is not None:
            self._regions.keep()
        code = self._code
        size = code.hot + code.cold - COLD_START
        if size < REST_BYTES:
            return 0
        self._drop_code()
        self._rests += 1
        return size

    def _drop_code(self) -> None:
        self._code.drop_blocks()

    def close(self) -> None:
        if self._regions is not None:
            self._regions.close()
        self._keep()

    def _keep(self) -> None:
        """In the user's cache, for the next run."""
        if self._translator is None:
            return  # nothing was learnt
        store = self._translator.store
        if store.recipes_changed:
            self._translator.save_recipes()
            store.save_recipes()
        if self._tables is not None:
            self._tables.save()
        store.save()
        if store.built and len(self._code.natives) > self._natives_placed:
            image.keep_image(self._code, store)
