"""The vCPU's registers at the reset vector or at a kernel's entry point, and the tables they refer to.

Of a kernel there are two states: 64-bit mode with paging on and the first 4 GiB mapped one to one (Linux
Documentation/arch/x86/boot.rst, "64-bit boot protocol"), and flat 32-bit protected mode with paging off (Xen docs/misc/pvh,
"x86/HVM direct boot ABI").

Registers are named as `Engine.write_state` takes them.  `<segment>_attr` holds the descriptor's attribute bits: descriptor bits
40-47 (type, S, DPL, P) in bits 0-7, descriptor bits 52-55 (AVL, L, D/B, G) in bits 8-11 (SDM 3A 3.4.5).
"""

from __future__ import annotations

import struct

from ringfence.core.units import GIB, MIB
from ringfence.engine import cpuid
from ringfence.machine.boot import layout
from ringfence.memory.guest_memory import GuestMemory

CODE_SELECTOR = 0x10  # __BOOT_CS
DATA_SELECTOR = 0x18  # __BOOT_DS

_CODE64_ATTR = 0xA9B  # G, L; present, execute/read, accessed
_CODE32_ATTR = 0xC9B  # G, D
_DATA_ATTR = 0xC93  # G, B; present, read/write, accessed
_TSS32_BUSY_ATTR = 0x08B
_LDT_ATTR = 0x082
_REAL_ATTR, _REAL_CODE_ATTR = 0x093, 0x09B  # 16 bits, present, accessed: data, code

_CR0_PE, _CR0_ET, _CR0_PG = 1 << 0, 1 << 4, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_RFLAGS_FIXED = 1 << 1

_PTE_PRESENT_WRITE = 0b11
_PDE_LARGE = 1 << 7
_MAPPED_GIB = 4

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))


def power_on(cpu: str = cpuid.MODEL) -> dict[str, int]:
    """After power-on, reset and INIT (SDM 3A table 9-1): real mode, the first instruction 16 bytes below 4 GiB, or below the end of
    what the CPU model can address.

    What INIT leaves alone (x87, SSE, MSRs) is not named here.
    """
    registers = dict.fromkeys(_GENERAL, 0)
    registers.update(cr2=0, cr3=0, cr4=0, efer=0)
    registers.update(dr0=0, dr1=0, dr2=0, dr3=0, dr6=0xFFFF_0FF0, dr7=0x400)
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"):
        registers[name] = registers[f"{name}_base"] = 0
        registers[f"{name}_limit"] = 0xFFFF
        registers[f"{name}_attr"] = _REAL_ATTR
    registers.update(cs_attr=_REAL_CODE_ATTR, ldtr_attr=_LDT_ATTR, tr_attr=_TSS32_BUSY_ATTR, **cpuid.MODELS[cpu].power_on())
    registers.update(gdtr_base=0, gdtr_limit=0xFFFF, idtr_base=0, idtr_limit=0xFFFF, cpl=0, halted=0)
    return registers


def long_mode(memory: GuestMemory, entry: int, rsi: int) -> dict[str, int]:
    """Registers for `entry` in 64-bit mode, interrupts off; writes the GDT and the page tables."""
    _write_identity_map(memory)
    registers = _flat(memory, _CODE64_ATTR)
    registers.update(
        rip=entry,
        rsi=rsi,
        rsp=layout.STACK_TOP_ADDR,
        cr0=_CR0_PG | _CR0_ET | _CR0_PE,
        cr3=layout.PAGE_TABLES_ADDR,
        cr4=_CR4_PAE,
        efer=_EFER_LME | _EFER_LMA,
    )
    return registers


def real_mode(segment: int, stack_top: int) -> dict[str, int]:
    """Registers for the start of a setup code at `segment` (boot.rst, "Running the Kernel"); interrupts off."""
    registers = dict.fromkeys(_GENERAL, 0)
    registers.update(rip=0, rsp=stack_top, rflags=_RFLAGS_FIXED, cr0=_CR0_ET, cr2=0, cr3=0, cr4=0, efer=0)
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        selector = segment + 0x20 if name == "cs" else segment
        registers.update({name: selector, f"{name}_base": selector << 4, f"{name}_limit": 0xFFFF})
        registers[f"{name}_attr"] = _REAL_CODE_ATTR if name == "cs" else _REAL_ATTR
    registers.update(idtr_base=0, idtr_limit=0x3FF, gdtr_base=0, gdtr_limit=0, cpl=0, halted=0)
    return registers


def protected_mode(memory: GuestMemory, entry: int, *, eax: int = 0, ebx: int = 0, esi: int = 0) -> dict[str, int]:
    """Registers for `entry` in flat 32-bit protected mode, paging and interrupts off; writes the GDT."""
    registers = _flat(memory, _CODE32_ATTR)
    registers.update(rip=entry, rax=eax, rbx=ebx, rsi=esi, cr0=_CR0_ET | _CR0_PE, cr3=0, cr4=0, efer=0)
    registers.update(tr=0, tr_base=0, tr_limit=0x67, tr_attr=_TSS32_BUSY_ATTR)
    return registers


def _flat(memory: GuestMemory, code_attr: int) -> dict[str, int]:
    descriptors = [0, 0, _flat_descriptor(code_attr), _flat_descriptor(_DATA_ATTR)]
    memory.write(layout.GDT_ADDR, struct.pack("<4Q", *descriptors))
    registers = dict.fromkeys(_GENERAL, 0)
    registers.update(rflags=_RFLAGS_FIXED, cr2=0)
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        registers[name] = CODE_SELECTOR if name == "cs" else DATA_SELECTOR
        registers[f"{name}_base"] = 0
        registers[f"{name}_limit"] = 0xFFFF_FFFF
        registers[f"{name}_attr"] = code_attr if name == "cs" else _DATA_ATTR
    registers.update(gdtr_base=layout.GDT_ADDR, gdtr_limit=8 * len(descriptors) - 1, idtr_base=0, idtr_limit=0)
    return registers


def _flat_descriptor(attr: int) -> int:
    """A segment descriptor of base 0 and limit 4 GiB - 1 (SDM 3A figure 3-8)."""
    return 0xFFFF | (attr & 0xFF) << 40 | 0xF << 48 | (attr >> 8) << 52


def _write_identity_map(memory: GuestMemory) -> None:
    """Four-level tables with 2 MiB pages, which every long-mode CPU has (1 GiB pages are a CPUID feature)."""
    pdpt_addr = layout.PAGE_TABLES_ADDR + 0x1000
    directory_addr = pdpt_addr + 0x1000
    directories = [directory_addr + 0x1000 * n for n in range(_MAPPED_GIB)]
    pages = range(0, _MAPPED_GIB * GIB, 2 * MIB)
    memory.write(layout.PAGE_TABLES_ADDR, _table([pdpt_addr | _PTE_PRESENT_WRITE]))
    memory.write(pdpt_addr, _table([addr | _PTE_PRESENT_WRITE for addr in directories]))
    memory.write(directory_addr, _table([page | _PDE_LARGE | _PTE_PRESENT_WRITE for page in pages]))


def _table(entries: list[int]) -> bytes:
    size = -(-len(entries) // 512) * 512
    return struct.pack(f"<{size}Q", *entries, *[0] * (size - len(entries)))
