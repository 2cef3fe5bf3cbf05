"""CPUID's answers, made from a CPU model (APM 3 appendix E, SDM 2 CPUID, AP-485).

They tell exactly what is implemented.  Vendor and family of the x86-64 models are those of AMD's first 64-bit family, whose
kernels need no page-table isolation; their hypervisor leaves announce kvmclock and PV EOI by KVM's interface.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ringfence.engine.api import MsrHandler
from ringfence.isa.x86.models import DEFAULT, MODELS, CpuidTable, CpuModel

__all__ = ["MODEL", "MODELS", "cpuid", "has_msr"]
MODEL = DEFAULT.name
LINEAR_BITS = 48
Answer = tuple[int, int, int, int]
_KVM_FEATURES = 1 << 3 | 1 << 6 | 1 << 24  # CLOCKSOURCE2, PV EOI, stable clocksource
_FIRST_EXTENDED, _FIRST_HYPERVISOR = 0x80000000, 0x40000000
_HTT, _CMP_LEGACY = 1 << 28, 1 << 1  # several logical processors in a package, which are cores
_CLFLUSH_UNITS = 8 << 8
_NOTHING = (0, 0, 0, 0)
APIC_BASE = 0x1B  # its bit 11 enables the local APIC, which CPUID tells
# Leaf and subleaf of the rows in isa/x86/state.py; some stand for all leaves that have no row.
LEAVES = (
    *((leaf, 0) for leaf in (*range(16), *range(0x80000000, 0x80000010), *range(0x40000000, 0x40000020))),
    *((0x3FFFFFFF, 0), (0x7FFFFFFF, 0), (0xFFFFFFFF, 0), (7, 1)),
)


def _text(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)


def cpuid(model: CpuModel, leaf: int, subleaf: int, apic_id: int, tsc_khz: int, apic_enabled: bool, cpus: int = 1) -> Answer:
    """(EAX, EBX, ECX, EDX) for a leaf and subleaf of a model that has CPUID.

    Of several vCPUs, those of the x86-64 models are cores of one package, numbered by APIC id (APM 3, "Legacy Method"); all others are
    packages of one core each.
    """
    table = model.cpuid
    if table is None:
        raise ValueError(f"a {model.name} has no CPUID")
    if leaf >= _FIRST_EXTENDED and table.max_extended:
        return _extended(model, table, leaf, cpus)
    if leaf >= _FIRST_HYPERVISOR and table.paravirtual:
        return _hypervisor(leaf, tsc_khz)
    if leaf > table.max_leaf and table.vendor == b"GenuineIntel":
        leaf = table.max_leaf  # SDM 2 CPUID: beyond the last leaf Intel's CPUs answer as for the last
    match leaf:
        case 0:
            vendor = _text(table.vendor)
            return table.max_leaf, vendor[0], vendor[2], vendor[1]
        case 1:
            edx = table.leaf1_edx if apic_enabled else table.leaf1_edx & ~(1 << 9)
            cores = cpus if _has_cores(model, cpus) else 1
            edx |= _HTT if cores > 1 else 0
            misc = cores << 16 | _CLFLUSH_UNITS if table.leaf1_edx >> 19 & 1 else 0
            misc |= apic_id << 24 if table.leaf1_edx & 1 << 9 else 0
            return model.signature, misc, table.leaf1_ecx, edx
        case 2:
            return table.leaf2
        case 7 if subleaf == 0:
            return 0, table.leaf7_ebx, table.leaf7_ecx, 0
    return _NOTHING


def _hypervisor(leaf: int, tsc_khz: int) -> Answer:
    match leaf:
        case 0x40000000:
            return 0x40000010, *_text(b"KVMKVMKVM\0\0\0")  # type: ignore[return-value]
        case 0x40000001:
            return _KVM_FEATURES, 0, 0, 0
        case 0x40000010:
            return tsc_khz, 1_000_000, 0, 0  # kHz of the TSC and of the local APIC's timer
    return _NOTHING


def has_apic(model: str) -> bool:
    """Whether CPUs of this model have a local APIC."""
    table = MODELS[model].cpuid
    return table is not None and bool(table.leaf1_edx >> 9 & 1)


def _has_cores(model: CpuModel, cpus: int) -> bool:
    return cpus > 1 and model.has_long_mode


def _extended(model: CpuModel, table: CpuidTable, leaf: int, cpus: int) -> Answer:
    match leaf:
        case 0x80000000:
            vendor = _text(table.vendor)
            return table.max_extended, vendor[0], vendor[2], vendor[1]
        case 0x80000001:
            return model.signature, 0, table.extended_ecx | (_CMP_LEGACY if _has_cores(model, cpus) else 0), table.extended_edx
        case 0x80000002 | 0x80000003 | 0x80000004:
            brand = f"Ringfence {model.name} virtual CPU".encode().ljust(48, b"\0")
            first = (leaf - 0x80000002) * 16
            return _text(brand[first : first + 16])  # type: ignore[return-value]
        case 0x80000005:
            return 0x01FF01FF, 0x01FF01FF, 0x40020140, 0x40020140
        case 0x80000006:
            return 0, 0x42004200, 0x02008140, 0
        case 0x80000007:
            return 0, 0, 0, 1 << 8  # invariant TSC
        case 0x80000008:
            cores = (cpus - 1).bit_length() << 12 | cpus - 1 if _has_cores(model, cpus) else 0
            return LINEAR_BITS << 8 | model.address_bits, 0, cores, 0
    return _NOTHING


def has_msr(model: CpuModel, index: int) -> bool:
    """Whether the model's generation brought this model-specific register; others raise #GP."""
    table = model.cpuid
    if table is None:
        return False
    edx, ecx = table.leaf1_edx, table.leaf1_ecx
    if index >= 0xC0000000:
        return model.has_long_mode
    match index:
        case 0x17:  # IA32_PLATFORM_ID came with the Pentium II (SDM 4, table 2-67); AMD has none
            return model.generation == 686 and bool(edx >> 23 & 1)
        case 0x1B | 0x8B:
            return model.generation > 586
        case 0xFE | 0x2FF:
            return bool(edx >> 12 & 1)
        case 0x174 | 0x175 | 0x176:
            return bool(edx >> 11 & 1)
        case 0x179 | 0x17A:
            return bool(edx >> 14 & 1)
        case 0x277:
            return bool(edx >> 16 & 1)
        case _ if 0x200 <= index <= 0x26F:
            return bool(edx >> 12 & 1)
        case _ if 0x800 <= index <= 0x8FF:
            return bool(ecx >> 21 & 1)
        case 0x11 | 0x12 | 0x3A | 0x3B | 0x6E0:
            return table.paravirtual
        case _ if 0x4B564D00 <= index <= 0x4B564DFF:
            return table.paravirtual
    return True


class CpuidAnswers:
    """One vCPU's CPUID.  `tsc_hz()` is the rate of its time-stamp counter."""

    def __init__(self, model: CpuModel, msrs: MsrHandler, tsc_hz: Callable[[], int]) -> None:
        self.model = model
        self.apic_id, self.cpus = 0, 1
        self._msrs = msrs
        self._tsc_hz = tsc_hz

    def answer(self, leaf: int, subleaf: int) -> Answer:
        base = self._msrs.read_msr(APIC_BASE)
        enabled = base is not None and bool(base & 1 << 11)
        return cpuid(self.model, leaf, subleaf, self.apic_id, self._tsc_hz() // 1000, enabled, self.cpus)

    def enter(self, state: Any) -> None:
        """Fills the rows that the body of CPUID looks at; again whenever something that the answers tell of has changed."""
        if self.model.cpuid is None:
            return
        for row, (leaf, subleaf) in enumerate(LEAVES):
            a, b, c, d = self.answer(leaf, subleaf)
            state["cpuid_ab"][row], state["cpuid_cd"][row] = a | b << 32, c | d << 32
        state["cpuid_rows"] = len(LEAVES)
