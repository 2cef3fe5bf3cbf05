"""Registers of a local APIC and the bits in them (Intel SDM volume 3A, chapter "Advanced Programmable Interrupt
Controller", edition of 2023; table 11-1 gives the offsets, which here are divided by 16 as in x2APIC numbering)."""

from __future__ import annotations

from ringfence.core.state import Field, State

APIC_BASE, APIC_SIZE = 0xFEE0_0000, 0x1000
MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC, MSR_KVM_PV_EOI_EN = 0x1B, 0x6E0, 0x800, 0x4B56_4D04
# One tick of the timer before the divider; a guest may be told so in CPUID leaf 0x15 or 0x40000010.
APIC_TIMER_HZ = 1_000_000_000

BASE_BSP, BASE_X2APIC, BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11

ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x02, 0x03, 0x08, 0x09, 0x0A, 0x0B, 0x0D, 0x0E, 0x0F
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x10, 0x18, 0x20, 0x28, 0x30, 0x31
LVT, TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE, SELF_IPI = 0x32, 0x38, 0x39, 0x3E, 0x3F
LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(6)

VERSION_VALUE = 0x0005_0014  # integrated APIC, six LVT entries, no suppression of EOI broadcasts
SVR_ENABLE = 1 << 8
LVT_MASKED = 1 << 16
LVT_READ_ONLY = 1 << 14 | 1 << 12
LVT_BITS = (0x710FF, 0x117FF, 0x117FF, 0x1F7FF, 0x1F7FF, 0x110FF)

FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7

ESR_SEND_VECTOR, ESR_RECEIVE_VECTOR, ESR_REGISTER = 1 << 5, 1 << 6, 1 << 7

# Bits that WRMSR may set (SDM 3A table 11-6); other registers are read-only, and so are the ones that are missing here.
X2APIC_WRITABLE = {
    TPR: 0xFF,
    EOI: 0,
    SVR: 0x3FF,
    ESR: 0,
    ICR_LOW: 0xFFFF_FFFF_000C_CFFF,
    **{LVT + n: bits for n, bits in enumerate(LVT_BITS)},
    TIMER_INITIAL: 0xFFFF_FFFF,
    TIMER_DIVIDE: 0x0B,
    SELF_IPI: 0xFF,
}
X2APIC_READABLE = frozenset((ID, VERSION, TPR, PPR, LDR, SVR, *range(ISR, ESR + 1), ICR_LOW, *range(LVT, TIMER_CURRENT + 1), TIMER_DIVIDE))


class LocalApicState(State):
    apic_base = Field(64, reset=APIC_BASE | BASE_ENABLE, doc="IA32_APIC_BASE")
    ident = Field(32, doc="local APIC ID, eight bits in xAPIC mode")
    tpr = Field(8, doc="task priority")
    ldr = Field(32, doc="logical destination (in xAPIC mode bits 31:24)")
    dfr = Field(32, reset=0xFFFF_FFFF, doc="destination format")
    svr = Field(32, reset=0xFF, doc="spurious-interrupt vector and software enable")
    irr = Field(256, doc="interrupt request register, one bit a vector")
    isr = Field(256, doc="in-service register")
    tmr = Field(256, doc="trigger mode register: level-triggered")
    esr = Field(8, doc="error status as the guest reads it")
    errors = Field(8, doc="errors since ESR was written")
    icr = Field(64, doc="interrupt command register; destination in bits 63:32 as x2APIC or 63:56 as xAPIC")
    lvt = Field(32, count=6, reset=LVT_MASKED, doc="local vector table: timer, thermal, perf, LINT0, LINT1, error")
    lint = Field(1, count=2, doc="levels of LINT0 and LINT1")
    extint = Field(1, doc="an ExtINT message waits")
    nmi = Field(1, doc="an NMI waits")
    timer_initial = Field(32, doc="timer initial count")
    timer_divide = Field(4, doc="timer divide configuration")
    timer_age_ns = Field(63, doc="time since the initial count was written (filled in by save)")
    timer_due = Field(1, doc="a one-shot count is under way")
    tsc_deadline = Field(64, doc="IA32_TSC_DEADLINE, 0 when disarmed")
    pv_eoi = Field(64, doc="MSR_KVM_PV_EOI_EN: guest address and enable bit")
    pv_eoi_armed = Field(1, doc="bit 0 at that address was set and not yet seen cleared")
