"""Four-level paging: rights, accessed and dirty bits, reserved bits, large pages, stale translations (SDM 3A chapter 4)."""

from __future__ import annotations

import struct

import pytest

from .system_guest import DATA, KERNEL_CODE, LARGE, NX, PRESENT, TABLES, USER, USER_CODE, WRITABLE, SystemGuest
from .test_system_delivery import GP, PF, fault

PAGE = DATA + 0x1000  # the page under test, at its own physical address
CR0_WP = 1 << 16
CR4_SMEP, CR4_SMAP = 1 << 20, 1 << 21
CR0, CR4 = 0x80050033, 0x620
RIGHTS = PRESENT | WRITABLE | USER
READ, WRITE = f"mov rax, [{PAGE + 8}]", f"mov [{PAGE + 8}], rax"
CALL = f"mov rax, {PAGE}\njmp rax"


def result_of(guest: SystemGuest, entry: int, text: str, cpl: int = 0, **registers: int) -> int | None:
    """The #PF error code of an access to the page with this entry; None when it succeeded."""
    guest.memory.write(PAGE, b"\xf4")
    guest.set_page(PAGE, entry)
    result = guest.run(text, cpl=cpl, **registers)
    if result.frame is None or (cpl == 3 and result.frame.vector == GP):  # HLT in ring 3
        return None
    vector, error = fault(result)
    assert vector == PF
    assert result.registers["cr2"] & ~0xFFF == PAGE
    return error


@pytest.mark.parametrize(
    ("rights", "text", "cpl", "cr0", "cr4", "error"),
    [
        (0, READ, 0, CR0, CR4, 0), (0, WRITE, 0, CR0, CR4, 2), (0, READ, 3, CR0, CR4, 4), (0, WRITE, 3, CR0, CR4, 6),
        (0, CALL, 3, CR0, CR4, 0x14),
        (RIGHTS, READ, 3, CR0, CR4, None), (RIGHTS, WRITE, 3, CR0, CR4, None), (RIGHTS, CALL, 3, CR0, CR4, None),
        (PRESENT | USER, READ, 3, CR0, CR4, None), (PRESENT | USER, WRITE, 3, CR0, CR4, 7),
        (PRESENT | WRITABLE, READ, 3, CR0, CR4, 5), (PRESENT | WRITABLE, WRITE, 3, CR0, CR4, 7),
        (PRESENT | WRITABLE, CALL, 3, CR0, CR4, 0x15),
        (PRESENT, READ, 0, CR0, CR4, None), (PRESENT, WRITE, 0, CR0, CR4, 3), (PRESENT, WRITE, 0, CR0 & ~CR0_WP, CR4, None),
        (PRESENT | USER, WRITE, 3, CR0 & ~CR0_WP, CR4, 7),
        (RIGHTS | NX, CALL, 0, CR0, CR4, 0x11), (RIGHTS | NX, CALL, 3, CR0, CR4, 0x15), (RIGHTS | NX, READ, 3, CR0, CR4, None),
        (RIGHTS, CALL, 0, CR0, CR4, None), (RIGHTS, CALL, 0, CR0, CR4 | CR4_SMEP, 0x11), (PRESENT, CALL, 0, CR0, CR4 | CR4_SMEP, None),
        (RIGHTS, READ, 0, CR0, CR4 | CR4_SMAP, 1), (RIGHTS, WRITE, 0, CR0, CR4 | CR4_SMAP, 3),
        (PRESENT, READ, 0, CR0, CR4 | CR4_SMAP, None),
        (RIGHTS, "stac\n" + READ, 0, CR0, CR4 | CR4_SMAP, None), (RIGHTS, "stac\nclac\n" + READ, 0, CR0, CR4 | CR4_SMAP, 1),
        (RIGHTS, "stac\n" + WRITE, 0, CR0, CR4 | CR4_SMAP, None), (RIGHTS, READ, 3, CR0, CR4 | CR4_SMAP | CR4_SMEP, None),
        (RIGHTS | 1 << 51, READ, 0, CR0, CR4, 9), (RIGHTS | 1 << 51, WRITE, 3, CR0, CR4, 0xF),
    ],
)  # fmt: skip
def test_rights(guest: SystemGuest, rights: int, text: str, cpl: int, cr0: int, cr4: int, error: int | None) -> None:
    assert result_of(guest, PAGE | rights, text, cpl, cr0=cr0, cr4=cr4) == error


def test_nx_is_reserved_without_nxe(guest: SystemGuest) -> None:
    assert result_of(guest, PAGE | RIGHTS | NX, READ, efer=0x501) == 9


def test_fetches_are_not_marked_without_nxe_and_smep(guest: SystemGuest) -> None:
    """SDM 3A 4.7: the I/D flag exists only with EFER.NXE or CR4.SMEP."""
    assert result_of(guest, 0, CALL, efer=0x501) == 0


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(
    ("bit", "text", "cpl", "error"), [(WRITABLE, WRITE, 3, 7), (USER, READ, 3, 5), (PRESENT, READ, 0, 0), (WRITABLE, WRITE, 0, 3)]
)
def test_every_level_takes_rights_away(guest: SystemGuest, level: int, bit: int, text: str, cpl: int, error: int) -> None:
    """The program lives in another branch of the tables, so that only the access is refused."""
    branch = _second_branch(guest)
    entry = guest.memory.read_uint(branch[level], 8)
    guest.memory.write_uint(branch[level], 8, entry & ~bit)
    result = guest.run(text.replace(str(PAGE + 8), "rbx"), cpl=cpl, rbx=FAR + 8)
    assert fault(result) == (PF, error) and result.registers["cr2"] == FAR + 8


@pytest.mark.parametrize("level", [0, 1, 2])
def test_nx_of_an_upper_level(guest: SystemGuest, level: int) -> None:
    branch = _second_branch(guest)
    guest.memory.write_uint(branch[level], 8, guest.memory.read_uint(branch[level], 8) | NX)
    assert fault(guest.run("jmp rbx", rbx=FAR)) == (PF, 0x11)


FAR = 0xFFFF_9000_0000_0000


def _second_branch(guest: SystemGuest) -> list[int]:
    """Maps FAR to PAGE through tables of its own; returns where its entries of all levels lie."""
    tables = [TABLES, 0x5000, 0x6000, 0x7000]
    places = []
    for level, table in enumerate(tables):
        at = table + (FAR >> 39 - 9 * level & 511) * 8
        target = tables[level + 1] if level < 3 else PAGE
        guest.memory.write_uint(at, 8, target | RIGHTS)
        places.append(at)
    guest.memory.write(PAGE, b"\xf4")
    return places


def test_accessed_and_dirty(guest: SystemGuest) -> None:
    """SDM 3A 4.8: A in all levels on a read, D in the last on a write, neither on a refused access."""
    branch = _second_branch(guest)

    def bits() -> list[int]:
        return [guest.memory.read_uint(at, 8) & 0x60 for at in branch]

    guest.run("mov rax, [rbx]", rbx=FAR)
    assert bits() == [0x20, 0x20, 0x20, 0x20]
    guest.run("mov rax, [rbx]\nmov [rbx], rax", rbx=FAR)
    assert bits() == [0x20, 0x20, 0x20, 0x60]
    guest.memory.write_uint(branch[3], 8, PAGE | PRESENT)
    guest.run("mov [rbx], rax", rbx=FAR)
    assert bits()[3] & 0x40 == 0


def test_dirty_after_a_read_of_the_same_page(guest: SystemGuest) -> None:
    branch = _second_branch(guest)
    guest.run("mov rax, [rbx]\nmov rcx, [rdx]\nmov [rbx], rax", rbx=FAR, rdx=branch[3] if branch[3] < 0x200000 else 0)
    assert guest.memory.read_uint(branch[3], 8) & 0x60 == 0x60


@pytest.mark.parametrize("size", [1 << 21, 1 << 30])
def test_large_pages(guest: SystemGuest, size: int) -> None:
    branch = _second_branch(guest)
    at = branch[2 if size == 1 << 21 else 1]
    guest.memory.write_uint(at, 8, 0 | RIGHTS | LARGE)
    guest.memory.write_uint(0x123450, 8, 0x1122334455667788)
    base = FAR & ~(size - 1)
    result = guest.run("mov rax, [rbx]\nmov qword ptr [rbx + 8], 5", rbx=base + 0x123450)
    assert result.frame is None and result.registers["rax"] == 0x1122334455667788
    assert guest.memory.read_uint(0x123458, 8) == 5
    assert guest.memory.read_uint(at, 8) & 0x60 == 0x60


@pytest.mark.parametrize(("level", "bit"), [(2, 13), (2, 20), (1, 13), (1, 29), (0, 7)])
def test_reserved_bits_of_large_pages(guest: SystemGuest, level: int, bit: int) -> None:
    """SDM 3A tables 4-16, 4-18: between PAT and the address; PS in a PML4 entry."""
    branch = _second_branch(guest)
    large = LARGE if level else 0
    guest.memory.write_uint(branch[level], 8, (0x5000 if level == 0 else 0) | RIGHTS | large | 1 << bit)
    assert fault(guest.run("mov rax, [rbx]", rbx=FAR)) == (PF, 9)


@pytest.mark.parametrize("text", ["mov rax, [rbx]", "mov [rbx], rax", "jmp rbx", "xadd [rbx], rax", "movups xmm0, [rbx]"])
@pytest.mark.parametrize("address", [1 << 47, 0xFFFF7FFFFFFFFFFF, 1 << 63, (1 << 47) - 1 + 0])
def test_non_canonical(guest: SystemGuest, text: str, address: int) -> None:
    result = guest.run(text, rbx=address)
    if address == (1 << 47) - 1 and text != "jmp rbx":  # the first byte is canonical, but not mapped
        assert fault(result)[0] in (PF, GP)
    elif address == (1 << 47) - 1:
        assert fault(result) == (PF, 0x10)
    else:
        assert fault(result) == (GP, 0)


def test_access_across_pages(guest: SystemGuest) -> None:
    guest.set_page(PAGE + 0x1000, 0)
    for offset in range(1, 8):
        result = guest.run("mov rax, [rbx]", rbx=PAGE + 0x1000 - offset)
        assert fault(result) == (PF, 0) and result.registers["cr2"] == PAGE + 0x1000
    guest.set_page(PAGE + 0x1000, 0x100000 | RIGHTS)
    guest.memory.write(PAGE + 0xFFC, struct.pack("<I", 0x11111111))
    guest.memory.write(0x100000, struct.pack("<I", 0x22222222))
    result = guest.run("mov rax, [rbx]\nnot qword ptr [rbx]", rbx=PAGE + 0xFFC)
    assert result.registers["rax"] == 0x2222222211111111
    assert guest.memory.read_uint(PAGE + 0xFFC, 4) == 0xEEEEEEEE and guest.memory.read_uint(0x100000, 4) == 0xDDDDDDDD


def test_store_across_pages_happens_wholly_or_not(guest: SystemGuest) -> None:
    guest.set_page(PAGE + 0x1000, 0x100000 | PRESENT | USER)
    before = guest.memory.read_uint(PAGE + 0xFFC, 4)
    assert fault(guest.run("mov rax, -1\nmov [rbx], rax", cpl=3, rbx=PAGE + 0xFFC)) == (PF, 7)
    assert guest.memory.read_uint(PAGE + 0xFFC, 4) == before


@pytest.mark.parametrize("flush", ["invlpg [rbx]", "mov rax, cr3\nmov cr3, rax", "mov rax, cr4\nxor rax, 0x80\nmov cr4, rax"])
def test_changed_entries_are_seen_after_a_flush(guest: SystemGuest, flush: str) -> None:
    guest.memory.write_uint(PAGE, 8, 1)
    guest.memory.write_uint(0x100000, 8, 2)
    entry = guest.page_entry(PAGE)
    text = f"mov rcx, [rbx]\nmov qword ptr [{entry}], {0x100000 | RIGHTS}\n{flush}\nmov rdx, [rbx]"
    result = guest.run(text, rbx=PAGE)
    assert (result.registers["rcx"], result.registers["rdx"]) == (1, 2)


def test_code_follows_its_mapping(guest: SystemGuest) -> None:
    """The same linear address, another physical page: other instructions."""
    guest.memory.write(PAGE, bytes.fromhex("b801000000c3"))  # mov eax, 1; ret
    guest.memory.write(0x100000, bytes.fromhex("b802000000c3"))
    entry = guest.page_entry(PAGE)
    text = f"call rbx\nmov ecx, eax\nmov qword ptr [{entry}], {0x100000 | RIGHTS}\ninvlpg [rbx]\ncall rbx"
    result = guest.run(text, rbx=PAGE)
    assert (result.registers["rcx"], result.registers["rax"]) == (1, 2)


def test_self_modifying_code(guest: SystemGuest) -> None:
    """A store behind the next jump (SDM 3A 9.1.3), to a page executed before, and through another mapping."""
    result = guest.run(f"mov byte ptr [{KERNEL_CODE + 10 + 1}], 7\njmp 1f\n1: mov eax, 1")
    assert result.registers["rax"] == 7
    guest.memory.write(PAGE, bytes.fromhex("b801000000c3"))
    result = guest.run("call rbx\nmov ecx, eax\nmov byte ptr [rbx + 1], 9\ncall rbx", rbx=PAGE)
    assert (result.registers["rcx"], result.registers["rax"]) == (1, 9)
    _second_branch(guest)
    guest.memory.write(PAGE, bytes.fromhex("b801000000c3"))
    result = guest.run("call rbx\nmov ecx, eax\nmov byte ptr [rdx + 1], 9\ncall rbx", rbx=PAGE, rdx=FAR)
    assert (result.registers["rcx"], result.registers["rax"]) == (1, 9)


def test_user_code_page_is_not_ring_0s_business(guest: SystemGuest) -> None:
    assert fault(guest.run(f"mov rax, {KERNEL_CODE}\njmp rax", cpl=3)) == (PF, 0x15)
    guest.memory.write(USER_CODE, b"\xf4")
    assert guest.run(f"mov rax, {USER_CODE}\njmp rax").frame is None
