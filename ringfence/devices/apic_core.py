"""The working part of a local APIC: accepting interrupts, priorities, and what an engine asks (Intel SDM volume 3A, chapter
"Advanced Programmable Interrupt Controller", edition of 2023).  `apic.py` puts the registers' faces in front of it.

    LINT0 <- 8259 pair (ExtINT)     LINT1 <- NMI     ApicBus <- IPIs, MSIs, I/O APIC     timer <- clock
                        \\________________ IRR -> priority -> pending/acknowledge -> engine

Power-on state is that of a PC whose firmware has set up virtual wire mode: LINT0 of the boot processor takes ExtINT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ringfence.core.clock import Clock
from ringfence.core.errors import SnapshotError
from ringfence.core.trace import tracer
from ringfence.devices import apic_state as r
from ringfence.devices.apic_state import LocalApicState
from ringfence.devices.apic_timer import ApicTimer
from ringfence.devices.pv_eoi import PvEoi
from ringfence.devices.timed import TimedDevice
from ringfence.memory.guest_memory import GuestMemory

_ALL_ONES = 0xFFFF_FFFF
_trace = tracer("apic")


class ExtIntSource(Protocol):
    """The 8259 pair, as the CPU's INTA cycle sees it."""

    def acknowledge(self) -> int: ...


class ApicCore(TimedDevice):
    """See `LocalApic`."""

    def __init__(
        self,
        apic_id: int,
        clock: Clock,
        tsc_hz: int,
        read_tsc: Callable[[], int],
        notify: Callable[[], None],
        on_eoi: Callable[[int], None],
        memory: GuestMemory | None,
        on_init: Callable[[], None],
        on_startup: Callable[[int], None],
        is_elsewhere: Callable[[], bool],
    ) -> None:
        self.name = f"apic{apic_id}"
        self.apic_id = apic_id
        self.state: LocalApicState = LocalApicState()
        self._notify = notify
        self._on_eoi = on_eoi
        self._on_init = on_init
        self._on_startup = on_startup
        self._is_elsewhere = is_elsewhere
        self._pic: ExtIntSource | None = None
        self._ppr = 0
        self._pv_eoi = PvEoi(self.state, memory)
        self._timer = ApicTimer(self.state, clock, tsc_hz, read_tsc, self._timer_expired)
        self._clear()

    def on_init(self, told: Callable[[], None]) -> None:
        """`told` is called after an INIT message in place of what the constructor was given."""
        self._on_init = told

    def connect_pic(self, pic: ExtIntSource) -> None:
        """Who answers ExtINT; its output drives `set_lint0`."""
        self._pic = pic

    # --- life ---------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self._clear()

    def _clear(self, keep_base: bool = False) -> None:
        """Power-up state; the levels of LINT0 and LINT1 belong to whoever drives them."""
        s = self.state
        base, lint = s.apic_base, s.lint
        self._pv_eoi.revoke()
        s.reset()
        s.lint = lint
        s.ident = self.apic_id
        if self.apic_id == 0:
            s.apic_base |= r.BASE_BSP
            s.lvt[r.LVT_LINT0] = r.EXTINT << 8
        if keep_base:
            s.apic_base = base
            if base & r.BASE_X2APIC:
                s.ldr = self._x2apic_ldr()
        self._pv_eoi.locate()
        self._ppr = 0
        self._timer.thaw()

    def _freeze(self) -> None:
        self._settle()
        self._timer.freeze()

    def _thaw(self) -> None:
        self._pv_eoi.locate()
        self._update_ppr()
        self._timer.thaw()

    def _stop_timers(self) -> None:
        self._timer.stop()

    def load(self, saved: dict[str, Any]) -> None:
        if saved.get("ident") != self.apic_id:
            raise SnapshotError(f"{self.name}: the saved state is that of APIC {saved.get('ident')}")
        super().load(saved)

    # --- what an engine asks ------------------------------------------------------------------------------------------

    def pending(self) -> bool:
        """Asked by the vCPU's own thread."""
        s = self.state
        if s.pv_eoi_armed:
            self._settle()
            if s.irr and s.pv_eoi_armed:  # came from elsewhere
                self._pv_eoi.revoke()
        irr = s.irr
        if irr and irr.bit_length() - 1 & 0xF0 > self._ppr & 0xF0 and s.apic_base & r.BASE_ENABLE:
            return True
        return self._extint()

    def acknowledge(self) -> int:
        s = self.state
        if self._extint():
            s.extint = 0
            if self._pic is not None:
                return self._pic.acknowledge()
        if s.pv_eoi_armed:
            self._settle()
        vector: int = s.irr.bit_length() - 1
        if vector < 0 or vector & 0xF0 <= self._ppr & 0xF0 or not s.apic_base & r.BASE_ENABLE:
            return int(s.svr) & 0xFF  # SDM 3A 11.9: the spurious vector does not enter ISR
        bit = 1 << vector
        s.irr ^= bit
        s.isr |= bit
        self._ppr = vector & 0xF0  # it was above TPR
        if not s.irr and not s.tmr & bit and self._pv_eoi.usable:
            self._pv_eoi.arm()
        return vector

    @property
    def nmi_pending(self) -> bool:
        return bool(self.state.nmi)

    def acknowledge_nmi(self) -> None:
        self.state.nmi = 0

    def get_tpr(self) -> int:
        """CR8: bits 7:4 of TPR."""
        return int(self.state.tpr) >> 4

    def set_tpr(self, value: int) -> None:
        """MOV to CR8 with `value` 0-15."""
        self._write_tpr((value & 15) << 4)

    tpr = property(get_tpr, set_tpr)

    # --- inputs -------------------------------------------------------------------------------------------------------

    def set_lint0(self, level: bool) -> None:
        self._set_lint(0, level)

    def set_lint1(self, level: bool) -> None:
        self._set_lint(1, level)

    def tsc_changed(self) -> None:
        """The guest's TSC was set: a TSC deadline lies elsewhere now."""
        self._timer.arm()

    def deliver(self, mode: int, vector: int, level_triggered: bool = False) -> None:
        """A message for this APIC, `mode` as in the ICR."""
        s = self.state
        if mode in (r.FIXED, r.LOWEST_PRIORITY):
            if vector < 16:
                self._error(r.ESR_RECEIVE_VECTOR)
            elif s.svr & r.SVR_ENABLE and s.apic_base & r.BASE_ENABLE:
                self._request(vector, level_triggered)
        elif mode == r.NMI:
            s.nmi = 1
            self._notify()
        elif mode == r.EXTINT:
            s.extint = 1
            self._notify()
        elif mode == r.INIT:
            self._clear(keep_base=True)
            self._on_init()
        elif mode == r.STARTUP:
            self._on_startup(vector)
        if _trace:
            _trace("%s: mode %d vector %#x", self.name, mode, vector)

    def is_destination(self, destination: int, logical: bool) -> bool:
        """Whether a message is meant for this APIC (SDM 3A 11.6.2); `destination` is in the format of its mode."""
        s = self.state
        if not s.apic_base & r.BASE_ENABLE:
            return False
        if s.apic_base & r.BASE_X2APIC:
            if destination in (_ALL_ONES, 0xFF):  # a message of the old format can name only eight bits
                return True
            if not logical:
                return bool(destination == s.ident)
            return bool(destination >> 16 == s.ldr >> 16 and destination & s.ldr & 0xFFFF)
        if destination in (0xFF, _ALL_ONES):
            return True
        if not logical:
            return bool(destination == s.ident)
        ldr = s.ldr >> 24
        if s.dfr >> 28 == 0xF:
            return bool(destination & ldr)
        return bool(destination >> 4 == ldr >> 4 and destination & ldr & 0x0F)

    def priority(self) -> int:
        """The PPR, for lowest-priority arbitration."""
        return self._read_ppr()

    def _set_lint(self, number: int, level: bool) -> None:
        s = self.state
        rising = level and not s.lint[number]
        s.lint[number] = int(level)
        entry = s.lvt[r.LVT_LINT0 + number]
        if rising and not entry & r.LVT_MASKED:
            if entry >> 8 & 7 == r.EXTINT:
                self._notify()
            else:
                self._local(r.LVT_LINT0 + number)
        elif rising and not s.apic_base & r.BASE_ENABLE:
            self._notify()

    def _extint(self) -> bool:
        """Whether the 8259 pair's INT reaches the CPU.  With the APIC disabled LINT0 is the INTR pin (SDM 3A 11.4.3)."""
        s = self.state
        if s.extint:
            return True
        if not s.lint[0]:
            return False
        return bool(s.lvt[r.LVT_LINT0] & (r.LVT_MASKED | 0x700) == r.EXTINT << 8 or not s.apic_base & r.BASE_ENABLE)

    def _timer_expired(self) -> None:
        self._local(r.LVT_TIMER)

    def _local(self, number: int) -> None:
        """An event of the local vector table."""
        entry = self.state.lvt[number]
        if not entry & r.LVT_MASKED:
            mode = r.FIXED if number in (r.LVT_TIMER, r.LVT_ERROR) else entry >> 8 & 7
            if mode in (r.FIXED, r.NMI, r.EXTINT):
                self.deliver(mode, entry & 0xFF)

    def _error(self, bit: int) -> None:
        s = self.state
        if not s.errors & bit:  # once a bit, so that a bad error vector cannot go round for ever
            s.errors |= bit
            self._local(r.LVT_ERROR)

    # --- priorities ---------------------------------------------------------------------------------------------------

    def _request(self, vector: int, level_triggered: bool) -> None:
        s = self.state
        bit = 1 << vector
        late = False
        if s.pv_eoi_armed:
            self._settle()
            # The guest clears its flag by an instruction that is not atomic: it must not be executing when the flag is taken back.
            late = bool(s.pv_eoi_armed) and self._is_elsewhere()
            if not late:
                self._pv_eoi.revoke()
        if level_triggered:
            s.tmr |= bit
        else:
            s.tmr &= ~bit
        if not s.irr & bit:
            s.irr |= bit
            if late or vector & 0xF0 > self._ppr & 0xF0:
                self._notify()

    def _settle(self) -> None:
        """Catches up with an EOI that the guest made by clearing its flag."""
        s = self.state
        if s.pv_eoi_armed and self._pv_eoi.taken():
            s.pv_eoi_armed = 0
            self._end_of_interrupt()

    def _update_ppr(self) -> None:
        """SDM 3A 11.8.3.1, and what becomes deliverable by it."""
        s = self.state
        in_service = s.isr.bit_length() - 1 & 0xF0 if s.isr else 0
        self._ppr = s.tpr if s.tpr & 0xF0 >= in_service else in_service
        if s.irr and s.irr.bit_length() - 1 & 0xF0 > self._ppr & 0xF0:
            self._notify()

    def _end_of_interrupt(self) -> None:
        s = self.state
        isr = s.isr
        if not isr:
            return
        vector = isr.bit_length() - 1
        bit = 1 << vector
        s.isr = isr ^ bit
        self._update_ppr()
        if s.tmr & bit:
            self._on_eoi(vector)

    def _write_eoi(self) -> None:
        if self.state.pv_eoi_armed:
            self._settle()
            self._pv_eoi.revoke()
        self._end_of_interrupt()

    def _read_ppr(self) -> int:
        self._settle()
        return self._ppr

    def _write_tpr(self, value: int) -> None:
        self._settle()
        self.state.tpr = value
        self._update_ppr()

    def _x2apic_ldr(self) -> int:
        return self.apic_id >> 4 << 16 | 1 << (self.apic_id & 15)
