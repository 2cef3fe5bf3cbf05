"""Local APIC: xAPIC page, x2APIC and related MSRs (Intel SDM volume 3A, chapter "Advanced Programmable Interrupt
Controller", edition of 2023).

The page stays at 0xfee00000; after a guest moves it through IA32_APIC_BASE it is nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ringfence.core.clock import Clock
from ringfence.devices import apic_state as r
from ringfence.devices.apic_bus import ApicBus
from ringfence.devices.apic_core import ApicCore
from ringfence.devices.apic_state import APIC_BASE, APIC_SIZE, APIC_TIMER_HZ
from ringfence.memory.guest_memory import GuestMemory

__all__ = ["APIC_BASE", "APIC_SIZE", "APIC_TIMER_HZ", "ApicBus", "LocalApic"]

_PHYSICAL_ADDRESS_BITS = 52
_ALL_ONES = 0xFFFF_FFFF


class IpiSink(Protocol):
    """Takes interprocessor interrupts; `destination` has 8 bits (xAPIC) or 32 (x2APIC), `icr` is the low half."""

    def send_ipi(self, source: LocalApic, destination: int, icr: int) -> None: ...


def _nothing() -> None:
    """A lone vCPU has nobody to wake."""


def _no_startup(vector: int) -> None:
    """A lone vCPU is never started by another."""


def _here() -> bool:
    """A lone vCPU's thread is the only one."""
    return False


class LocalApic(ApicCore):
    """One vCPU's local APIC: MMIO handler, MSR handler and interrupt controller for an engine.

    `notify()` is called whenever an interrupt or NMI becomes deliverable.  `on_eoi(vector)` follows the EOI of a
    level-triggered interrupt.  `on_init()` and `on_startup(vector)` carry INIT and SIPI to whoever runs the vCPU.
    `is_elsewhere()` tells whether the calling thread is not the vCPU's own, so that the vCPU may be executing.
    """

    def __init__(
        self,
        apic_id: int,
        clock: Clock,
        tsc_hz: int,
        read_tsc: Callable[[], int],
        notify: Callable[[], None],
        on_eoi: Callable[[int], None],
        ipis: IpiSink,
        memory: GuestMemory | None = None,
        on_init: Callable[[], None] = _nothing,
        on_startup: Callable[[int], None] = _no_startup,
        is_elsewhere: Callable[[], bool] = _here,
    ) -> None:
        super().__init__(apic_id, clock, tsc_hz, read_tsc, notify, on_eoi, memory, on_init, on_startup, is_elsewhere)
        self._ipis = ipis

    # --- registers ----------------------------------------------------------------------------------------------------

    def _read_register(self, register: int) -> int:
        s = self.state
        if register == r.TIMER_CURRENT:
            return self._timer.current_count()
        if r.ISR <= register < r.ESR:
            self._settle()
            bits = s.isr if register < r.TMR else s.tmr if register < r.IRR else s.irr
            return int(bits) >> 32 * (register & 7) & _ALL_ONES
        if r.LVT <= register < r.LVT + 6:
            return int(s.lvt[register - r.LVT])
        match register:
            case r.ID:
                return int(s.ident if s.apic_base & r.BASE_X2APIC else s.ident << 24 & _ALL_ONES)
            case r.VERSION:
                return r.VERSION_VALUE
            case r.TPR:
                return int(s.tpr)
            case r.PPR:
                return self._read_ppr()
            case r.LDR:
                return int(s.ldr)
            case r.DFR:
                return int(s.dfr)
            case r.SVR:
                return int(s.svr)
            case r.ESR:
                return int(s.esr)
            case r.ICR_LOW:
                return int(s.icr) & _ALL_ONES
            case r.ICR_HIGH:
                return int(s.icr) >> 32
            case r.TIMER_INITIAL:
                return int(s.timer_initial)
            case r.TIMER_DIVIDE:
                return int(s.timer_divide)
            case r.APR | r.EOI:
                return 0
        self._error(r.ESR_REGISTER)
        return 0

    def _write_register(self, register: int, value: int) -> None:
        """`value` has 32 bits, and no reserved ones that matter."""
        s = self.state
        if register == r.EOI:
            self._write_eoi()
        elif register == r.TIMER_INITIAL:
            self._timer.write_initial(value)
        elif register == r.TPR:
            self._write_tpr(value & 0xFF)
        elif register == r.ICR_LOW:
            s.icr = s.icr & ~_ALL_ONES | value & 0x000C_CFFF
            self._send_ipi(s.icr >> 56)
        elif register == r.ICR_HIGH:
            s.icr = s.icr & _ALL_ONES | value << 32
        elif r.LVT <= register < r.LVT + 6:
            self._write_lvt(register - r.LVT, value)
        elif register == r.TIMER_DIVIDE:
            self._timer.write_divide(value)
        elif register == r.SVR:
            s.svr = value & 0x3FF
            if not value & r.SVR_ENABLE:  # SDM 3A 11.4.7.2: all LVT entries are masked while it is off
                for number in range(6):
                    s.lvt[number] |= r.LVT_MASKED
        elif register == r.ESR:
            s.esr, s.errors = s.errors, 0
        elif register == r.LDR:
            s.ldr = value & 0xFF00_0000
        elif register == r.DFR:
            s.dfr = value | 0x0FFF_FFFF
        elif register == r.ID:
            s.ident = self.apic_id  # some parts let software change it; nothing relies on that
        else:
            self._error(r.ESR_REGISTER)

    def _write_lvt(self, number: int, value: int) -> None:
        s = self.state
        old = s.lvt[number]
        entry = value & r.LVT_BITS[number] & ~r.LVT_READ_ONLY
        if not s.svr & r.SVR_ENABLE:
            entry |= r.LVT_MASKED
        s.lvt[number] = entry
        if number == r.LVT_TIMER:
            self._timer.mode_changed(old >> 17 & 3)
        elif number == r.LVT_LINT0 and self._extint():
            self._notify()

    def _send_ipi(self, destination: int) -> None:
        s = self.state
        icr = int(s.icr) & _ALL_ONES
        if icr >> 8 & 7 in (r.FIXED, r.LOWEST_PRIORITY) and icr & 0xFF < 16:
            self._error(r.ESR_SEND_VECTOR)
        else:
            self._ipis.send_ipi(self, destination, icr)

    def read(self, offset: int, size: int) -> int:
        """xAPIC page.  Only aligned 32-bit accesses are defined; others read as parts of the register (or 0 between)."""
        if self.state.apic_base & ~r.BASE_BSP != APIC_BASE | r.BASE_ENABLE:
            return (1 << 8 * size) - 1
        byte = offset & 15
        return self._read_register(offset >> 4) >> 8 * byte if byte < 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size >= 4 and not offset & 15 and self.state.apic_base & ~r.BASE_BSP == APIC_BASE | r.BASE_ENABLE:
            self._write_register(offset >> 4, value & _ALL_ONES)

    # --- MSRs ---------------------------------------------------------------------------------------------------------

    def read_msr(self, index: int) -> int | None:
        s = self.state
        if index == r.MSR_TSC_DEADLINE:
            return int(s.tsc_deadline)
        if index == r.MSR_APIC_BASE:
            return int(s.apic_base)
        if index == r.MSR_KVM_PV_EOI_EN:
            return int(s.pv_eoi)
        register = index - r.MSR_X2APIC
        if register not in r.X2APIC_READABLE or not s.apic_base & r.BASE_X2APIC:
            return None
        return int(s.icr) if register == r.ICR_LOW else self._read_register(register)

    def write_msr(self, index: int, value: int) -> bool:
        if index == r.MSR_TSC_DEADLINE:
            self._timer.write_deadline(value)
            return True
        if index == r.MSR_APIC_BASE:
            return self._write_apic_base(value)
        if index == r.MSR_KVM_PV_EOI_EN:
            self._settle()
            return self._pv_eoi.configure(value)
        s = self.state
        register = index - r.MSR_X2APIC
        allowed = r.X2APIC_WRITABLE.get(register)
        if allowed is None or value & ~allowed or not s.apic_base & r.BASE_X2APIC:
            return False
        if register == r.ICR_LOW:
            s.icr = value
            self._send_ipi(value >> 32)
        elif register == r.SELF_IPI:
            s.icr = value | 1 << 18
            self._send_ipi(self.apic_id)
        else:
            self._write_register(register, value)
        return True

    def _write_apic_base(self, value: int) -> bool:
        """SDM 3A 11.12.5: the modes are disabled, xAPIC and x2APIC; x2APIC is entered from xAPIC and left by disabling."""
        s = self.state
        reserved = 0x2FF | ~((1 << _PHYSICAL_ADDRESS_BITS) - 1)
        modes = r.BASE_ENABLE | r.BASE_X2APIC
        old, new = s.apic_base & modes, value & modes
        if value & reserved or new == r.BASE_X2APIC:
            return False
        if old != new and (old, new) in ((0, modes), (modes, r.BASE_ENABLE)):
            return False
        if not new and old:
            self._clear()
        s.apic_base = value
        if new == modes and old != modes:
            s.ldr = self._x2apic_ldr()
            s.icr &= _ALL_ONES
        return True
