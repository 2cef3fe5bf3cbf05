"""Loops are found in bytes: what belongs to a region, where it is entered, and where it ends."""

from __future__ import annotations

import pytest

from ringfence.isa.x86 import bodies  # noqa: F401  (fills INSTRUCTIONS)
from ringfence.isa.x86.models import DEFAULT
from ringfence.isa.x86.modes import LONG
from ringfence.translate.region_caches import smooth_registers
from ringfence.translate.region_flags import UNKNOWN, entry_kinds
from ringfence.translate.region_graph import MAX_INSTRUCTIONS, PAGE_BYTES, Explorer, Region, find_region
from tests.differential.system_guest import assembled


def region_of(text: str, seed: int = 0, at: int = 0x100) -> Region | None:
    """The region around offset `seed` of the program, which lies at `at` of its page."""
    return find_region(explorer_of(text, at), at + seed)


def explorer_of(text: str, at: int = 0x100) -> Explorer:
    code = bytes(at) + assembled(text)
    pages = {k: code[k * PAGE_BYTES : (k + 1) * PAGE_BYTES].ljust(PAGE_BYTES, b"\xf4") for k in range(-(-len(code) // PAGE_BYTES))}
    return Explorer(pages, LONG, DEFAULT)


def test_a_loop_and_nothing_around_it() -> None:
    region = region_of("1: add rax, rcx\ndec ecx\njnz 1b\nmov rdx, rax\nhlt")
    assert region is not None
    assert region.instructions == 3 and region.headers == [0x100] and region.entries == [0x100]
    assert region.ranges() == [(0x100, 0x100 + 7)]


def test_any_place_in_a_loop_gives_the_same_region() -> None:
    """The translator's blocks begin anywhere."""
    text = "2: mov ecx, 5\n1:" + "add rax, rcx\n" * 100 + "dec ecx\njnz 1b\ndec esi\njnz 2b\nhlt"
    inner = [region_of(text, seed=5 + 3 * k) for k in range(0, 100, 7)]
    first = inner[0]
    assert first is not None and first.instructions == 105
    for region in inner:
        assert region is not None
        assert (region.entries, list(region.blocks), region.ranges()) == (first.entries, list(first.blocks), first.ranges())


def test_straight_code_is_no_region() -> None:
    assert region_of("add rax, rcx\nsub rax, 1\nhlt") is None


def test_the_outer_loop_belongs_to_it_and_both_heads_are_entries() -> None:
    region = region_of("mov esi, 9\n2: mov ecx, 5\n1: dec ecx\njnz 1b\ndec esi\njnz 2b\nhlt", seed=10)
    assert region is not None
    assert len(region.headers) == 2 and set(region.headers) <= set(region.entries)


@pytest.mark.parametrize("instruction", ["cpuid", "hlt", "wrmsr", "fld1", "rep stosb", "in al, dx", "int3", "sti", "popfq"])
def test_what_has_no_place_in_a_region_ends_it(instruction: str) -> None:
    assert region_of(f"1: {instruction}\ndec ecx\njnz 1b\nhlt", seed=0) is None
    # A loop that only sometimes gets there is one all the same.
    region = region_of(f"1: test ecx, 7\nje 2f\ndec ecx\njnz 1b\n2: {instruction}\njmp 1b")
    assert region is not None
    assert region.instructions == 4


def test_a_function_on_the_same_page_is_part_of_the_loop() -> None:
    region = region_of("1: call 2f\ndec ecx\njnz 1b\nhlt\n2: add rax, 1\nret")
    assert region is not None
    assert region.instructions == 5 and len(region.return_sites) == 1


def test_a_call_elsewhere_leaves_and_comes_back_to_an_entry() -> None:
    region = region_of("1: call rbx\ndec ecx\njnz 1b\nhlt")
    assert region is not None
    call, site = region.blocks[0x100], 0x102
    assert call.leaves and call.successors == [site] and site in region.entries


def test_a_page_that_is_not_there_is_named() -> None:
    explorer = explorer_of("1: test ecx, ecx\nje 3f\ndec ecx\njmp 1b\n.org 0x1800\n3: jmp 1b")
    del explorer.pages[1]
    assert find_region(explorer, 0x100) is not None
    assert explorer.missing == {1}


def test_a_loop_over_a_page_end_is_told_by_page() -> None:
    region = region_of("1: add rax, 1\nadd rbx, 2\nadd rdx, 3\ndec ecx\njnz 1b\nhlt", at=PAGE_BYTES - 6)
    assert region is not None
    assert [low // PAGE_BYTES for low, _ in region.ranges()] == [0, 1]
    assert region.ranges()[0][1] == PAGE_BYTES == region.ranges()[1][0]


def test_what_is_too_large_loses_its_outer_loops() -> None:
    filling = "add rax, rbx\n" * MAX_INSTRUCTIONS
    region = region_of(f"2: mov ecx, 9\n1: dec ecx\njnz 1b\n{filling}\njmp 2b", seed=5)
    assert region is not None
    assert region.instructions == 2


def test_kinds_of_flags_are_those_that_all_ways_bring() -> None:
    region = region_of("1: cmp rax, rbx\nje 2f\nadd rax, 1\n2: mov rdx, 3\ndec ecx\njnz 1b")
    assert region is not None
    kinds = entry_kinds(region)
    assert UNKNOWN in kinds.values() and any(kind is not UNKNOWN for kind in kinds.values())


def test_pointers_that_are_stepped_are_smooth_and_computed_ones_are_not() -> None:
    region = region_of("1: mov rax, [rsi]\nadd rsi, 8\nmov rbx, rsi\nadd rdi, rax\nmov [rdi], rcx\ndec ecx\njnz 1b")
    assert region is not None
    smooth = smooth_registers(list(region.blocks.values()))
    assert {"rsi", "rbx", "rcx"} <= smooth and not {"rax", "rdi"} & smooth
