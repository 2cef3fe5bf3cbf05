"""Kernels that are entered in 32-bit or real mode: Multiboot, i386 Linux, images with setup code only."""

from __future__ import annotations

import struct

import pytest

from ringfence.core.errors import ImageError, UserError
from ringfence.core.units import MIB
from ringfence.machine.boot import layout
from ringfence.machine.boot.load import BootState, load_kernel, needs_firmware
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.boot.images import bzimage, elf32, elf64, gzip_payload, machine_memory, multiboot_elf32, multiboot_flat, multiboot_header


def u32(memory: GuestMemory, address: int) -> int:
    return memory.read_uint(address, 4)


def text(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, 200).split(b"\0")[0]


def check_protected_mode(state: BootState) -> None:
    r = state.registers
    assert r["rip"] == state.entry and r["cr0"] & 0x8000_0001 == 1 and not r["rflags"] & 0x20200 and not r["efer"]
    assert (r["cs_attr"], r["cs_base"], r["cs_limit"]) == (0xC9B, 0, 0xFFFF_FFFF)
    assert all((r[f"{s}_attr"], r[f"{s}_base"], r[f"{s}_limit"]) == (0xC93, 0, 0xFFFF_FFFF) for s in ("ds", "es", "fs", "gs", "ss"))


def test_multiboot_elf32_with_modules_and_memory_map() -> None:
    memory = machine_memory()
    state = load_kernel(memory, multiboot_elf32(), [b"first", b"second module"], "a=b c")
    assert (state.protocol, state.entry) == ("multiboot", 0x20_000C)
    check_protected_mode(state)
    assert state.registers["rax"] == 0x2BADB002
    info = state.registers["rbx"]
    flags = u32(memory, info)
    assert flags & 0b1001101 == 0b1001101 and not flags & 1 << 12
    assert u32(memory, info + 4) == 639 and u32(memory, info + 8) == 63 * 1024
    assert text(memory, u32(memory, info + 16)) == b"kernel a=b c"
    modules = [struct.unpack("<IIII", memory.read(u32(memory, info + 24) + 16 * n, 16)) for n in range(u32(memory, info + 20))]
    assert [memory.read(start, end - start) for start, end, _, _ in modules] == [b"first", b"second module"]
    assert all(start % 4096 == 0 and start >= state.kernel_end for start, _, _, _ in modules)
    at, end, entries = u32(memory, info + 48), u32(memory, info + 48) + u32(memory, info + 44), []
    while at < end:
        entries.append(struct.unpack("<QQI", memory.read(at + 4, 20)))
        at += 4 + u32(memory, at)
    assert entries == [tuple(entry) for entry in layout.memory_map(memory)]
    assert text(memory, u32(memory, info + 64)) == b"Ringfence"


def test_multiboot_names_its_modules(tmp_path: object) -> None:
    from pathlib import Path

    file = Path(str(tmp_path)) / "initrd.img"
    file.write_bytes(b"x")
    memory = machine_memory()
    info = load_kernel(memory, multiboot_elf32(), [file]).registers["rbx"]
    assert text(memory, u32(memory, u32(memory, info + 24) + 8)) == str(file).encode()


def test_multiboot_behind_firmware_is_told_of_the_text_screen_and_spares_the_top_of_ram() -> None:
    memory = machine_memory(16 * MIB)
    info = load_kernel(memory, multiboot_elf32(flags=7), behind_firmware=True).registers["rbx"]
    assert u32(memory, info) & 1 << 12
    assert struct.unpack("<QIIIBB", memory.read(info + 88, 22)) == (0xB8000, 160, 80, 25, 16, 2)
    assert u32(memory, info + 8) == 14 * 1024


def test_multiboot_elf64_is_entered_in_32_bits() -> None:
    code = multiboot_header(0) + b"\xf4" * 4
    state = load_kernel(machine_memory(), elf64(code, entry=0x20_000C))
    assert (state.protocol, state.entry) == ("multiboot", 0x20_000C)
    check_protected_mode(state)


@pytest.mark.parametrize("load_end", [0, 0x10_0040])
def test_multiboot_flat_file_tells_its_addresses(load_end: int) -> None:
    memory = machine_memory()
    memory.write(0x10_0000, b"\xff" * 0x3000)
    state = load_kernel(memory, multiboot_flat(load_end=load_end))
    assert (state.protocol, state.entry, state.kernel_base, state.kernel_end) == ("multiboot", 0x10_0020, 0x10_0000, 0x10_2000)
    assert u32(memory, 0x10_0000) == 0x1BADB002
    loaded = 0x40 if load_end else 32 + 64
    assert memory.read(0x10_0000 + loaded - 1, 2) == b"\xf4\0" and memory.read(0x10_1FFF, 2) == b"\0\xff"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (multiboot_elf32(flags=8), "features that do not exist"),
        (multiboot_flat(base=0x7000), "0x7000"),
        (multiboot_flat(load_end=0x20_0000), "outside of the file"),
        (multiboot_flat(junk=0)[:20], "no kernel"),
        (bytes(8192) + multiboot_flat(junk=0), "no kernel"),
        (multiboot_header(0) + bytes(600), "no kernel"),
    ],
)
def test_multiboot_that_cannot_be(image: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_kernel(machine_memory(), image)


def test_modules_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="modules"):
        load_kernel(machine_memory(8 * MIB), multiboot_elf32(), [bytes(4 * MIB), bytes(4 * MIB)])


def test_i386_linux_is_unpacked_and_entered_with_the_zero_page_in_esi() -> None:
    memory = machine_memory()
    image = bzimage(gzip_payload(elf32(b"\x90\xf4", paddr=0x100_0000)), xloadflags=0)
    state = load_kernel(memory, image, b"initrd", "console=ttyS0")
    assert (state.protocol, state.entry) == ("linux-elf32", 0x100_0000)
    check_protected_mode(state)
    page = state.registers["rsi"]
    assert memory.read(page + 0x202, 4) == b"HdrS" and memory.read(0x100_0000, 2) == b"\x90\xf4"
    assert u32(memory, page + 0x218) == state.initrd_base and memory.read(state.initrd_base, 6) == b"initrd"


def test_i386_image_that_names_no_payload_unpacks_itself() -> None:
    state = load_kernel(machine_memory(), bzimage(xloadflags=4, pref_address=0x10_0000, relocatable=False))
    assert (state.protocol, state.entry) == ("linux-bzimage32", 0x10_0000)
    check_protected_mode(state)


def test_text_screen_is_told_behind_firmware_only() -> None:
    memory = machine_memory()
    page = load_kernel(memory, bzimage(xloadflags=4), behind_firmware=True).registers["rsi"]
    assert (memory.read_uint(page + 6, 1), memory.read_uint(page + 7, 1), memory.read_uint(page + 14, 1)) == (3, 80, 25)
    assert memory.read_uint(page + 15, 1) == 1 and memory.read_uint(page + 16, 2) == 16
    e820 = [struct.unpack("<QQI", memory.read(page + 0x2D0 + 20 * n, 20)) for n in range(memory.read_uint(page + 0x1E8, 1))]
    assert (63 * MIB, MIB, 2) in e820


def setup_only(**fields: int) -> bytes:
    return bzimage(xloadflags=0, code32_start=0, version=fields.get("version", 0x207))


def test_setup_code_is_entered_in_real_mode() -> None:
    memory = machine_memory()
    image = setup_only()
    assert needs_firmware(image) and not needs_firmware(bzimage())
    state = load_kernel(memory, image, b"initrd", "autoboot", behind_firmware=True)
    assert state.protocol == "linux-bzimage16"
    r = state.registers
    assert (r["cs"], r["cs_base"], r["rip"]) == (0x1020, 0x10200, 0)
    assert all((r[s], r[f"{s}_base"], r[f"{s}_limit"]) == (0x1000, 0x10000, 0xFFFF) for s in ("ds", "es", "fs", "gs", "ss"))
    assert not r["cr0"] & 1 and not r["rflags"] & 0x200 and r["idtr_limit"] == 0x3FF
    assert memory.read(0x10000, 0x200)[0x1FE:] == b"\x55\xaa" and memory.read(0x10_0000, 4) == b"\xf4" * 4
    assert memory.read_uint(0x10210, 1) == 0xFF and memory.read_uint(0x10211, 1) == 0x81
    assert r["rsp"] == memory.read_uint(0x10224, 2) + 0x200
    assert text(memory, u32(memory, 0x10228)) == b"autoboot"
    assert memory.read(u32(memory, 0x10218), u32(memory, 0x1021C)) == b"initrd"


def test_command_line_of_the_oldest_protocols() -> None:
    memory = machine_memory()
    load_kernel(memory, setup_only(version=0x201), None, "root=/dev/fd0", behind_firmware=True)
    assert memory.read_uint(0x10020, 2) == 0xA33F
    assert text(memory, 0x10000 + memory.read_uint(0x10022, 2)) == b"root=/dev/fd0"


def test_setup_code_without_firmware_is_refused() -> None:
    with pytest.raises(ImageError, match="real mode only") as caught:
        load_kernel(machine_memory(), setup_only())
    assert "--firmware" in caught.value.remedy


def test_too_long_a_command_line_for_real_mode() -> None:
    with pytest.raises(UserError, match="at most"):
        load_kernel(machine_memory(), setup_only(), None, "x" * 5000, behind_firmware=True)
