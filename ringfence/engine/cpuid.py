"""The CPU model x86-64-v2: what CPUID answers (APM 3 appendix E, SDM 2 CPUID).

It tells exactly what is implemented.  Vendor and family are those of AMD's first 64-bit family, whose kernels need no
page-table isolation; features are the x86-64-v2 level (SSE4.2, POPCNT, CX16, SSSE3) and the paging features that the
engine has.  The hypervisor leaves announce kvmclock and PV EOI by KVM's interface.
"""

from __future__ import annotations

import struct

MODEL = "x86-64-v2"
PHYSICAL_BITS, LINEAR_BITS = 40, 48

# Leaf 1 ECX: SSE3 SSSE3 CX16 PCID SSE4.1 SSE4.2 x2APIC POPCNT TSC-deadline hypervisor
_LEAF1_ECX = sum(1 << n for n in (0, 9, 13, 17, 19, 20, 21, 23, 24, 31))
# Leaf 1 EDX: FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
_LEAF1_EDX = sum(1 << n for n in (0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26))
# Leaf 7 EBX: FSGSBASE SMEP ERMS INVPCID SMAP; ECX: UMIP
_LEAF7_EBX = sum(1 << n for n in (0, 7, 9, 10, 20))
_LEAF7_ECX = 1 << 2
# Leaf 0x80000001 ECX: LAHF; EDX: the common bits of leaf 1, SYSCALL NX 1-GiB pages RDTSCP long mode
_EXTENDED_ECX = 1 << 0
_EXTENDED_EDX = (_LEAF1_EDX & 0x0183F3FF) | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
_KVM_FEATURES = 1 << 3 | 1 << 6 | 1 << 24  # CLOCKSOURCE2, PV EOI, stable clocksource
_BRAND = b"Ringfence x86-64-v2 virtual CPU".ljust(48, b"\0")


def _text(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)


def cpuid(leaf: int, subleaf: int, apic_id: int, cr4: int, tsc_khz: int, apic_enabled: bool) -> tuple[int, int, int, int]:
    """(EAX, EBX, ECX, EDX) for a leaf and subleaf; leaves that do not exist answer zeroes."""
    vendor = _text(b"AuthenticAMD")
    match leaf:
        case 0:
            return 7, vendor[0], vendor[2], vendor[1]
        case 1:
            family_model_stepping = 0x00060FB1  # family 15, model 107, stepping 1
            edx = _LEAF1_EDX if apic_enabled else _LEAF1_EDX & ~(1 << 9)
            return family_model_stepping, apic_id << 24 | 1 << 16 | 8 << 8, _LEAF1_ECX, edx
        case 7 if subleaf == 0:
            return 0, _LEAF7_EBX, _LEAF7_ECX, 0
        case 0x40000000:
            signature = _text(b"KVMKVMKVM\0\0\0")
            return 0x40000010, *signature  # type: ignore[return-value]
        case 0x40000001:
            return _KVM_FEATURES, 0, 0, 0
        case 0x40000010:
            return tsc_khz, 1_000_000, 0, 0  # kHz of the TSC and of the local APIC's timer
        case 0x80000000:
            return 0x80000008, vendor[0], vendor[2], vendor[1]
        case 0x80000001:
            return 0x00060FB1, 0, _EXTENDED_ECX, _EXTENDED_EDX
        case 0x80000002 | 0x80000003 | 0x80000004:
            first = (leaf - 0x80000002) * 16
            return _text(_BRAND[first : first + 16])  # type: ignore[return-value]
        case 0x80000005:
            return 0x01FF01FF, 0x01FF01FF, 0x40020140, 0x40020140
        case 0x80000006:
            return 0, 0x42004200, 0x02008140, 0
        case 0x80000007:
            return 0, 0, 0, 1 << 8  # invariant TSC
        case 0x80000008:
            return LINEAR_BITS << 8 | PHYSICAL_BITS, 0, 0, 0
    return 0, 0, 0, 0
