"""What firmware is given: ROM, CMOS, tables and how to place them, SMBIOS, the ROM that asks for the kernel."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ringfence.core.errors import ImageError, UserError
from ringfence.core.units import GIB, KIB, MIB
from ringfence.devices.ata_geometry import Geometry, Translation
from ringfence.machine.boot import cmos, firmware, firmware_files, kernel_rom, smbios
from ringfence.machine.boot.acpi import AcpiConfig, PciConfig, build_tables
from tests.unit.boot.images import machine_memory

CONFIG = AcpiConfig(ps2=True, vga=True, floppy=True, pci=PciConfig((0x8000_0000, 0x7EC0_0000), pic_irqs=(11, 10, 10, 11)))


def place(files: dict[str, bytes], addresses: dict[str, int]) -> dict[str, bytearray]:
    """Executes the loader's commands as firmware does, with files at the given addresses."""
    placed: dict[str, bytearray] = {}

    def text(at: int) -> str:
        return command[at : at + 56].rstrip(b"\0").decode()

    script = files["etc/table-loader"]
    assert len(script) % 128 == 0
    for start in range(0, len(script), 128):
        command = script[start : start + 128]
        (kind,) = struct.unpack_from("<I", command)
        if kind == 1:
            alignment, zone = struct.unpack_from("<IB", command, 60)
            assert addresses[text(4)] % alignment == 0 and (zone == 2) == (text(4) == "etc/acpi/rsdp")
            placed[text(4)] = bytearray(files[text(4)])
        elif kind == 2:
            offset, size = struct.unpack_from("<IB", command, 116)
            holder = placed[text(4)]
            value = int.from_bytes(holder[offset : offset + size], "little") + addresses[text(60)]
            holder[offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert kind == 3
            offset, first, size = struct.unpack_from("<III", command, 60)
            data = placed[text(4)]
            data[offset] = data[offset] - sum(data[first : first + size]) & 0xFF
    return placed


@pytest.mark.parametrize("base", [0x03FF_E000, 0xBFFF_0000])
def test_tables_that_firmware_places_are_those_that_we_would_place(base: int) -> None:
    placed = place(firmware_files.acpi_files(CONFIG), {"etc/acpi/rsdp": 0xF5000, "etc/acpi/tables": base})
    rsdp, block = placed["etc/acpi/rsdp"], placed["etc/acpi/tables"]
    assert sum(rsdp[:20]) & 0xFF == 0 and sum(rsdp) & 0xFF == 0
    rsdt, xsdt = struct.unpack_from("<I", rsdp, 16)[0] - base, struct.unpack_from("<Q", rsdp, 24)[0] - base
    tables = {}
    for root, width in ((rsdt, 4), (xsdt, 8)):
        length = int.from_bytes(block[root + 4 : root + 8], "little")
        assert sum(block[root : root + length]) & 0xFF == 0
        entries = [int.from_bytes(block[at : at + width], "little") - base for at in range(root + 36, root + length, width)]
        for at in entries:
            size = int.from_bytes(block[at + 4 : at + 8], "little")
            assert sum(block[at : at + size]) & 0xFF == 0
            tables[bytes(block[at : at + 4])] = at
    assert set(tables) == {b"FACP", b"APIC"}
    fadt = tables[b"FACP"]
    facs, dsdt = (value - base for value in struct.unpack_from("<II", block, fadt + 36))
    assert block[facs : facs + 4] == b"FACS" and (base + facs) % 64 == 0
    assert block[dsdt : dsdt + 4] == b"DSDT" and struct.unpack_from("<Q", block, fadt + 140)[0] == base + dsdt


def test_tables_in_memory_have_an_rsdt_for_old_readers() -> None:
    memory = machine_memory()
    rsdp = build_tables(memory, CONFIG)
    assert memory.read(memory.read_uint(rsdp + 16, 4), 4) == b"RSDT" and memory.read(memory.read_uint(rsdp + 24, 8), 4) == b"XSDT"


def test_e820_lists_ram() -> None:
    memory = machine_memory(4 * MIB)
    assert struct.unpack("<QQI", firmware_files.e820(memory)) == (0, 4 * MIB, 1)


def test_cmos_tells_memory_sizes() -> None:
    values = cmos.contents(machine_memory(64 * MIB))
    assert (values[0x15] | values[0x16] << 8, values[0x17] | values[0x18] << 8) == (640, 63 * 1024)
    assert values[0x34] | values[0x35] << 8 == 48 * 16 and values[0x5B] == 0
    assert values[0x2E] << 8 | values[0x2F] == sum(values.get(n, 0) for n in range(0x10, 0x2E))


def test_cmos_tells_drives_and_boot_order() -> None:
    disks = {0: (Geometry(100, 16, 63), Translation.NONE), 3: (Geometry(16383, 16, 63), Translation.LBA)}
    values = cmos.contents(machine_memory(8 * MIB), (1440 * KIB, 360 * KIB), disks, ("cdrom", "disk", "floppy", "net"), mouse=True)
    assert (values[0x10], values[0x12], values[0x14] & 0xC5, values[0x39]) == (0x41, 0xF0, 0x45, 0x40)
    assert (values[0x19], values[0x1B], values[0x1D], values[0x23]) == (47, 100, 16, 63)
    assert (values[0x3D], values[0x38] >> 4, values[0x38] & 1) == (0x23, 1, 1)


def test_firmware_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    rom = tmp_path / "bios-256k.bin"
    with pytest.raises(UserError, match="not installed") as caught:
        firmware.find("seabios", [str(tmp_path)])
    assert "apt install seabios" in caught.value.remedy
    rom.write_bytes(b"\x90" * 5000)
    assert firmware.find("seabios", [str(tmp_path)]) == rom
    data = firmware.read("seabios", [str(tmp_path)])
    assert len(data) == 8192 and data[:3192] == bytes(3192) and data[-16:] == b"\x90" * 16
    assert firmware.read(str(rom)) == data


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no firmware file"), (b"x" * 100, "no firmware ROM"), (bytes(8192), "reset vector"), (b"\xff" * 8192, "reset vector")],
)
def test_what_is_no_rom(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "rom"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        firmware.read(str(path))
    assert caught.value.remedy and (content is None or isinstance(caught.value, ImageError))


def test_smbios_structures_can_be_walked() -> None:
    files = smbios.files("pc", "cpu", [(0, 3 * GIB), (4 * GIB, GIB)])
    anchor, tables = files[smbios.ANCHOR_FILE], files[smbios.TABLES_FILE]
    assert anchor[:4] == b"_SM_" and sum(anchor) & 0xFF == 0 and sum(anchor[16:]) & 0xFF == 0
    kinds, at = [], 0
    while at < len(tables):
        kinds.append(tables[at])
        at = tables.index(b"\0\0", at + tables[at + 1]) + 2
    assert at == len(tables) == struct.unpack_from("<H", anchor, 22)[0]
    assert kinds == [1, 3, 4, 16, 17, 19, 19, 32, 127] and struct.unpack_from("<H", anchor, 28)[0] == len(kinds)


def test_the_kernel_rom_is_an_option_rom_with_a_boot_entry() -> None:
    rom = kernel_rom.build()
    assert rom[:3] == b"\x55\xaa\x01" and len(rom) == 512 and sum(rom) & 0xFF == 0
    pnp = struct.unpack_from("<H", rom, 0x1A)[0]
    assert rom[pnp : pnp + 4] == b"$PnP" and sum(rom[pnp : pnp + 32]) & 0xFF == 0
    entry = struct.unpack_from("<H", rom, pnp + 0x1A)[0]
    assert rom[entry : entry + 4] == b"\xba\x20\x05\xee"
    name = struct.unpack_from("<H", rom, pnp + 0x10)[0]
    assert rom[name:].startswith(b"Ringfence kernel\0")
