from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from ringfence.core.errors import UserError
from ringfence.core.units import GIB
from ringfence.machine.boot import acpi, layout
from ringfence.machine.boot.acpi import AcpiConfig, PciConfig, PowerConfig, SerialPort, VirtioMmioSlot
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.boot.images import machine_memory

CONFIGS = {
    "bare": AcpiConfig(serial_ports=(), rtc=False, pic=False),
    "microvm": AcpiConfig(virtio_mmio=tuple(VirtioMmioSlot(0xFEB0_0000 + 0x200 * n, 5 + n) for n in range(8))),
    "pc": AcpiConfig(
        cpus=3, ps2=True, vga=True, hpet_base=0xFED0_0000, pci=PciConfig((0xC000_0000, 0x1000_0000)), power=PowerConfig(pm_timer_bits=24)
    ),
    "express": AcpiConfig(
        cpus=300,
        serial_ports=(SerialPort(), SerialPort(0x2F8, 3)),
        pci=PciConfig(
            (0xC000_0000, 0x1000_0000), gsis=(10, 11), memory_window64=(512 * GIB, 4 * GIB), ecam_base=0xE000_0000, bus_count=256
        ),
    ),
}


def _tables(memory: GuestMemory, rsdp_addr: int) -> dict[str, bytes]:
    rsdp = memory.read(rsdp_addr, 36)
    (xsdt_addr,) = struct.unpack_from("<Q", rsdp, 24)
    tables = {"RSDP": rsdp}
    xsdt = memory.read(xsdt_addr, memory.read_uint(xsdt_addr + 4, 4))
    tables["XSDT"] = xsdt
    addresses = [address for (address,) in struct.iter_unpack("<Q", xsdt[36:])]
    for address in addresses:
        table = memory.read(address, memory.read_uint(address + 4, 4))
        tables[table[:4].decode()] = table
    for key, offset in (("DSDT", 40), ("FACS", 36)):
        (address,) = struct.unpack_from("<I", tables["FACP"], offset)
        tables[key] = memory.read(address, memory.read_uint(address + 4, 4))
        if key == "FACS":
            assert address % 64 == 0
    return tables


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> AcpiConfig:
    return CONFIGS[request.param]


@pytest.fixture
def tables(config: AcpiConfig) -> dict[str, bytes]:
    memory = machine_memory()
    return _tables(memory, acpi.build_tables(memory, config))


def test_checksums_and_lengths(tables: dict[str, bytes], config: AcpiConfig) -> None:
    assert sum(tables["RSDP"][:20]) % 256 == 0
    for name, table in tables.items():
        if name != "FACS":
            assert sum(table) % 256 == 0, name
    assert len(tables["FACP"]) == 276
    assert ("MCFG" in tables) == bool(config.pci and config.pci.ecam_base)
    assert ("HPET" in tables) == (config.hpet_base is not None)


def test_madt_lists_every_cpu(tables: dict[str, bytes], config: AcpiConfig) -> None:
    madt, offset, seen, overrides = tables["APIC"], 44, [], {}
    while offset < len(madt):
        kind, length = madt[offset], madt[offset + 1]
        if kind == 0:
            seen.append(madt[offset + 3])
        elif kind == 9:
            seen.append(int.from_bytes(madt[offset + 4 : offset + 8], "little"))
        elif kind == 2:
            overrides[madt[offset + 3]] = struct.unpack_from("<IH", madt, offset + 4)
        offset += length
    assert offset == len(madt)
    assert seen == list(range(config.cpus))
    assert overrides[9] == (9, 0xD)
    assert (overrides.get(0) == (2, 0)) == config.pic


def test_fadt_names_the_boards_ports(tables: dict[str, bytes], config: AcpiConfig) -> None:
    fadt = tables["FACP"]
    assert struct.unpack_from("<I", fadt, 56) == (config.power.pm1_event_port,)
    assert struct.unpack_from("<I", fadt, 64) == (config.power.pm1_control_port,)
    assert struct.unpack_from("<I", fadt, 76) == (config.power.pm_timer_port,)
    assert fadt[116:129] == b"\x01\x08\x00\x01" + struct.pack("<Q", config.power.reset_port) + bytes([config.power.reset_value])
    (boot_flags, flags) = struct.unpack_from("<HxI", fadt, 109)
    assert bool(boot_flags & 4) != config.vga
    assert bool(boot_flags & 32) != config.rtc
    assert bool(flags & 1 << 8) == (config.power.pm_timer_bits == 32)
    assert not flags & 1 << 20


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="do not fit"):
        acpi.build_tables(machine_memory(), AcpiConfig(cpus=4096))
    with pytest.raises(UserError, match="CPUs"):
        acpi.build_tables(machine_memory(), AcpiConfig(cpus=0))


def test_reserved_ranges_go_into_the_memory_map() -> None:
    assert CONFIGS["express"].reserved_ranges() == [(0xE000_0000, 0x1000_0000)]
    assert layout.memory_map(machine_memory(), CONFIGS["express"].reserved_ranges())[-1].base == 0xE000_0000


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is not installed (Debian package acpica-tools)")
@pytest.mark.parametrize("name", ["XSDT", "FACP", "APIC", "DSDT", "HPET", "MCFG"])
def test_iasl_reads_the_tables_back(tables: dict[str, bytes], name: str, tmp_path: Path) -> None:
    if name not in tables:
        return
    (tmp_path / "t.aml").write_bytes(tables[name])
    done = subprocess.run(["iasl", "-d", "t.aml"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    text = done.stdout + done.stderr
    assert done.returncode == 0 and "Error" not in text and "Warning" not in text, text
    if name == "DSDT":
        done = subprocess.run(["iasl", "-p", "again", "t.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert "0 Errors, 0 Warnings" in done.stdout, done.stdout + done.stderr
