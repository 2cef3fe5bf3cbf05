"""ACPI fixed hardware (ACPI Specification 6.5, section 4.8): PM1 event and control, power management timer, GPE block 0.

Without firmware the machine is always in ACPI mode: the FADT gives no SMI command port, and SCI_EN reads as 1.  With it the
machine starts in legacy mode, and the chipset's SMI command port switches (`set_acpi_mode`); events interrupt only in ACPI mode.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.bus.irq import IrqPin
from ringfence.core.clock import Clock
from ringfence.core.state import Field, State
from ringfence.devices.ports import BytePorts
from ringfence.devices.timed import TimedDevice

PM1_EVENT_PORTS, PM1_CONTROL_PORTS, PM_TIMER_PORTS, GPE0_PORTS = 4, 2, 4, 4
PM_TIMER_HZ = 3_579_545
S5_SLP_TYP = 5  # for \_S5 in the DSDT
_NS = 1_000_000_000
_TMR, _GBL, _PWRBTN, _SLPBTN, _RTC, _WAK = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10, 1 << 15
_STATUS_BITS = _TMR | 1 << 4 | _GBL | _PWRBTN | _SLPBTN | _RTC | _WAK
_ENABLE_BITS = _TMR | _GBL | _PWRBTN | _SLPBTN | _RTC
_SCI_EN, _BM_RLD, _SLP_TYP_SHIFT, _SLP_EN = 1, 2, 10, 1 << 13


class AcpiPmState(State):
    pm1_sts = Field(16, doc="PM1 status: bits are cleared by writing 1")
    pm1_en = Field(16, doc="PM1 enable")
    pm1_cnt = Field(16, reset=_SCI_EN, doc="PM1 control without SLP_EN")
    gpe0_sts = Field(16, doc="general-purpose event status")
    gpe0_en = Field(16, doc="general-purpose event enable")
    timer_age_ns = Field(63, doc="time since the PM timer was 0 (filled in by save)")
    carry_seen = Field(63, doc="changes of the PM timer's highest bit that TMR_STS has told")
    irq_level = Field(1, doc="level of the SCI pin (filled in by save)")


class _PmTimer:
    """The PM timer register, read thousands of times a second by some guests: one subtraction and one division."""

    __slots__ = ("_clock", "_mask", "start_ns")

    def __init__(self, clock: Clock, bits: int) -> None:
        self._clock = clock
        self._mask = (1 << bits) - 1
        self.start_ns = clock.now_ns()

    def ticks(self) -> int:
        return (self._clock.now_ns() - self.start_ns) * PM_TIMER_HZ // _NS

    def read(self, offset: int, size: int) -> int:
        return ((self._clock.now_ns() - self.start_ns) * PM_TIMER_HZ // _NS & self._mask) >> 8 * offset

    def write(self, offset: int, size: int, value: int) -> None:
        """The register is read-only."""


class AcpiPm(TimedDevice):
    """Bus handlers: `pm1_event` (4 ports: PM1_STS, PM1_EN), `pm1_control` (2), `timer` (4), `gpe0` (4: GPE0_STS, GPE0_EN).

    `irq` is the SCI, a level.  `on_poweroff` is called from within the guest's write of SLP_EN with S5's SLP_TYP.
    `legacy_start` is for boards with firmware: SCI_EN is 0 until the operating system asks for ACPI mode.
    """

    name = "acpi-pm"

    def __init__(
        self, irq: IrqPin, clock: Clock, on_poweroff: Callable[[], None], timer_bits: int = 32, *, legacy_start: bool = False
    ) -> None:
        if timer_bits not in (24, 32):
            raise ValueError("the PM timer has 24 or 32 bits")
        self.state: AcpiPmState = AcpiPmState()
        self._irq = irq
        self._clock = clock
        self._on_poweroff = on_poweroff
        self._legacy_start = legacy_start
        if legacy_start:
            self.state.pm1_cnt = 0
        self._half_ticks = 1 << timer_bits - 1
        self._carry_timer = clock.timer(self._update)
        self.timer = _PmTimer(clock, timer_bits)
        self.pm1_event = BytePorts(PM1_EVENT_PORTS, self._read_event, self._write_event)
        self.pm1_control = BytePorts(PM1_CONTROL_PORTS, lambda k: self.state.pm1_cnt >> 8 * k & 0xFF, self._write_control)
        self.gpe0 = BytePorts(GPE0_PORTS, self._read_gpe0, self._write_gpe0)

    def reset(self) -> None:
        self.state.reset()
        if self._legacy_start:
            self.state.pm1_cnt = 0
        self.timer.start_ns = self._clock.now_ns()
        self._update()

    def _freeze(self) -> None:
        self.state.timer_age_ns = self._clock.now_ns() - self.timer.start_ns
        self.state.irq_level = int(self._irq.level)

    def _thaw(self) -> None:
        self.timer.start_ns = self._clock.now_ns() - self.state.timer_age_ns
        self._irq.restore(bool(self.state.irq_level))
        self._update()

    def _stop_timers(self) -> None:
        self._carry_timer.cancel()

    def set_acpi_mode(self, enabled: bool) -> None:
        """What a write of ACPI_ENABLE or ACPI_DISABLE to the SMI command port does."""
        self.state.pm1_cnt = self.state.pm1_cnt & ~_SCI_EN | (_SCI_EN if enabled else 0)
        self._update()

    def press_power_button(self) -> None:
        """The user's wish to shut down; the guest's ACPI driver answers it."""
        self.state.pm1_sts |= _PWRBTN
        self._update()

    def raise_gpe(self, number: int) -> None:
        """General-purpose event `number` (0-15) happened."""
        self.state.gpe0_sts |= 1 << number
        self._update()

    def _update(self) -> None:
        s = self.state
        changes = self.timer.ticks() // self._half_ticks
        if changes != s.carry_seen:
            s.carry_seen = changes
            s.pm1_sts |= _TMR
        if s.pm1_en & ~s.pm1_sts & _TMR:
            next_ticks = (changes + 1) * self._half_ticks
            self._carry_timer.arm(self.timer.start_ns - -next_ticks * _NS // PM_TIMER_HZ)
        else:
            self._carry_timer.cancel()
        self._irq.set(bool(s.pm1_cnt & _SCI_EN and (s.pm1_sts & s.pm1_en or s.gpe0_sts & s.gpe0_en)))

    def _read_event(self, k: int) -> int:
        self._update()
        s = self.state
        return int(s.pm1_sts >> 8 * k if k < 2 else s.pm1_en >> 8 * (k - 2)) & 0xFF

    def _write_event(self, k: int, value: int) -> None:
        s = self.state
        self._update()
        if k < 2:
            s.pm1_sts &= ~(value << 8 * k)
        else:
            shift = 8 * (k - 2)
            s.pm1_en = (s.pm1_en & ~(0xFF << shift) | value << shift) & _ENABLE_BITS
        self._update()

    def _write_control(self, k: int, value: int) -> None:
        s = self.state
        if k == 0:
            # 4.8.3.2.1: software treats SCI_EN as read-only
            s.pm1_cnt = s.pm1_cnt & (0xFF00 | _SCI_EN) | value & _BM_RLD
            return
        s.pm1_cnt = s.pm1_cnt & 0xFF | (value << 8 & 7 << _SLP_TYP_SHIFT)
        # Sleep states other than S5 are not offered by the DSDT; asking for one changes nothing.
        if value << 8 & _SLP_EN and s.pm1_cnt >> _SLP_TYP_SHIFT == S5_SLP_TYP:
            self._on_poweroff()

    def _read_gpe0(self, k: int) -> int:
        s = self.state
        return int(s.gpe0_sts >> 8 * k if k < 2 else s.gpe0_en >> 8 * (k - 2)) & 0xFF

    def _write_gpe0(self, k: int, value: int) -> None:
        s = self.state
        if k < 2:
            s.gpe0_sts &= ~(value << 8 * k)
        else:
            shift = 8 * (k - 2)
            s.gpe0_en = s.gpe0_en & ~(0xFF << shift) | value << shift
        self._update()
