"""Global pages, the tables of CPUID, and port registers that need no device: what translated code does by itself."""

from __future__ import annotations

import struct

import pytest

from ringfence.core.port_hint import PortHint
from ringfence.engine import tsc
from ringfence.engine.cpuid import cpuid
from ringfence.isa.x86.models import DEFAULT

from .system_guest import DATA, PRESENT, TABLES, USER, WRITABLE, SystemGuest

PAGE, OTHER = DATA + 0x1000, 0x100000
GLOBAL = 1 << 8
PGE = 1 << 7
CR4 = 0x620
RIGHTS = PRESENT | WRITABLE | USER
RELOAD = "mov rax, cr3\nmov cr3, rax"
ALL = "mov rax, cr4\nxor rax, 0x80\nmov cr4, rax"


def two_pages(guest: SystemGuest) -> int:
    """PAGE and OTHER hold a function each, returning 1 and 2; returns the place of PAGE's entry."""
    guest.memory.write(PAGE, bytes.fromhex("b801000000c3"))
    guest.memory.write(OTHER, bytes.fromhex("b802000000c3"))
    return guest.page_entry(PAGE)


@pytest.mark.parametrize("rights", [RIGHTS, RIGHTS | GLOBAL])
@pytest.mark.parametrize(
    "flush", ["invlpg [rbx]", ALL, "mov rcx, 2\nmov qword ptr [rsp - 8], 0\nmov qword ptr [rsp - 16], 0\ninvpcid rcx, [rsp - 16]"]
)
@pytest.mark.parametrize("cr4", [CR4, CR4 | PGE])
def test_every_flush_but_that_of_cr3_drops_global_pages(guest: SystemGuest, rights: int, flush: str, cr4: int) -> None:
    entry = two_pages(guest)
    guest.set_page(PAGE, PAGE | rights)
    text = f"call rbx\nmov esi, eax\nmov qword ptr [{entry}], {OTHER | rights}\n{flush}\nmov edi, [rbx + 1]\ncall rbx"
    result = guest.run(text, rbx=PAGE, cr4=cr4)
    assert [result.registers[name] for name in ("rsi", "rdi", "rax")] == [1, 2, 2]


@pytest.mark.parametrize("cr4", [CR4, CR4 | PGE])
def test_cr3_drops_what_is_not_global(guest: SystemGuest, cr4: int) -> None:
    """In both halves of the jump cache: code of ring 0, called before and after; many times, so that all tables are in use."""
    entry = two_pages(guest)
    guest.set_page(PAGE, PAGE | RIGHTS)
    guest.set_page(PAGE + 0x1000, PAGE + 0x1000 | RIGHTS | GLOBAL)
    guest.memory.write(PAGE + 0x1000, bytes.fromhex("b803000000c3"))
    text = f"""
        lea rdx, [rbx + 0x1000]
        xor esi, esi
        mov edi, 5
    1:  mov qword ptr [{entry}], {PAGE | RIGHTS}
        {RELOAD}
        call rbx
        add esi, eax
        mov qword ptr [{entry}], {OTHER | RIGHTS}
        {RELOAD}
        call rbx
        add esi, eax
        call rdx
        add esi, eax
        dec edi
        jnz 1b
    """
    assert guest.run(text, rbx=PAGE, cr4=cr4).registers["rsi"] == 5 * (1 + 2 + 3)


def test_the_global_bit_counts_with_pge_only(guest: SystemGuest) -> None:
    entry = two_pages(guest)
    guest.set_page(PAGE, PAGE | RIGHTS | GLOBAL)
    text = f"call rbx\nmov esi, eax\nmov qword ptr [{entry}], {OTHER | RIGHTS | GLOBAL}\n{RELOAD}\nmov edi, [rbx + 1]\ncall rbx"
    result = guest.run(text, rbx=PAGE, cr4=CR4)
    assert [result.registers[name] for name in ("rsi", "rdi", "rax")] == [1, 2, 2]


def test_more_pages_than_the_list_of_local_ones_holds(guest: SystemGuest) -> None:
    """Each is mapped elsewhere in turn: after a write of CR3 none of the old translations may be left."""
    first, last = 0x140000, 0x1C0000
    guest.memory.write_uint(0x140000, 8, 1)
    guest.memory.write_uint(OTHER, 8, 2)
    table = guest.page_entry(first)
    fill = f"mov rsi, {first}\nLABEL: mov rax, [rsi]\nadd rdx, rax\nadd rsi, 4096\ncmp rsi, {last}\njb LABELb"
    text = f"""
        mov ecx, 20
    3:  xor edx, edx
        {RELOAD}
        {fill.replace("LABEL", "1")}
        mov rdi, {table}
        mov rax, {OTHER | RIGHTS}
        lea r8, [rdi + {(last - first) // 4096 * 8}]
    2:  mov [rdi], rax
        add rdi, 8
        cmp rdi, r8
        jb 2b
        dec ecx
        jnz 3b
        xor edx, edx
        {RELOAD}
        {fill.replace("LABEL", "4")}
    """
    for k in range(128):
        guest.set_page(first + 4096 * k, first | RIGHTS)
    assert guest.run(text, cr3=TABLES).registers["rdx"] == 256


def test_cpuid(guest: SystemGuest) -> None:
    """Every leaf as the engine's function tells it, whoever answers."""
    for leaf in (*range(20), *range(0x40000000, 0x40000024), 0x40000100, 0x7FFFFFFF, *range(0x80000000, 0x80000014), 0xFFFFFFFF):
        for subleaf in (0, 1, 5):
            found = guest.run("cpuid\nmov rdi, rbx", rax=0xABCD_0000_0000 | leaf, rcx=0x1234_0000_0000 | subleaf, rbx=-1 & (1 << 64) - 1)
            answer = cpuid(DEFAULT, leaf, subleaf, 0, tsc.hz() // 1000, False)
            assert tuple(found.registers[name] for name in ("rax", "rbx", "rcx", "rdx")) == answer, f"leaf {leaf:#x}, {subleaf}"


def test_port_registers_that_need_no_device(guest: SystemGuest) -> None:
    """Reads are answered as told, writes arrive in order and before whatever else reaches a device."""
    status, data = PortHint(), PortHint()
    guest.ports.hints = {0x3FD: status, 0x3F8: data}  # type: ignore[attr-defined]
    guest.engine._enter_hints()
    status.set(0x61, False)
    data.set(None, True)
    text = """
        mov ecx, 1500
    1:  mov edx, 0x3fd
        in al, dx
        mov ebx, eax
        mov edx, 0x3f8
        mov eax, ecx
        out dx, al
        dec ecx
        jnz 1b
        mov edx, 0x80
        mov eax, 0x5678
        out dx, ax
    """
    result = guest.run(text, rax=0x11223344)
    sent = [(0x3F8, 1, k & 0xFF) for k in range(1500, 0, -1)]
    assert guest.ports.writes == [*sent, (0x80, 2, 0x5678)]
    assert result.registers["rbx"] & 0xFF == 0x61
    guest.ports.writes.clear()
    status.set(None, False)
    data.set(None, False)
    result = guest.run("mov edx, 0x3fd\nin al, dx\nmov edx, 0x3f8\nout dx, al")
    assert result.registers["rax"] == struct.pack("<I", 0x12345678)[0]
    assert guest.ports.writes == [(0x3F8, 1, 0x78)]
