"""What sits on which board, by how the machine starts and what it was given."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import UserError
from ringfence.engine.api import Shutdown
from ringfence.machine.boards.ide_places import place
from ringfence.machine.boards.pc import Pc
from ringfence.machine.boot import kernel_rom
from ringfence.machine.machine import Machine
from ringfence.machine.spec import DiskSpec, MachineSpec
from ringfence.machine.status import Ending
from tests.unit.machine.fakes import ScriptedEngine, Step, out, scripted, tiny_kernel

ROM = b"\x0f\x0b" * (64 << 10)
Build = Callable[..., Machine]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """`build(*steps, **spec fields)` with a ROM of 128 KiB as firmware, unless there is a kernel and no firmware is asked for."""
    made: list[Machine] = []
    rom = tmp_path / "rom.bin"
    rom.write_bytes(ROM)

    def make(*steps: Step, **fields: Any) -> Machine:
        if "kernel" not in fields:
            fields.setdefault("firmware", str(rom))
        made.append(Machine(MachineSpec.build(**{"memory": "8M", **fields}), engine=scripted(*steps)))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def drive(tmp_path: Path, name: str, size_bytes: int = 1 << 20) -> Path:
    path = tmp_path / name
    path.write_bytes(bytes(size_bytes))
    return path


def functions(machine: Machine) -> dict[str, str]:
    assert isinstance(machine.board, Pc)
    return {f"{devfn >> 3}.{devfn & 7}": function.name for devfn, function in machine.board.pci.functions.items()}


def files(machine: Machine) -> dict[str, bytes]:
    """What firmware would read."""
    board: Any = machine.board
    read = board.ports.read
    board.ports.write(0x510, 2, 0x19)
    found = {}
    for _ in range(int.from_bytes(bytes(read(0x511, 1) for _ in range(4)), "big")):
        entry = bytes(read(0x511, 1) for _ in range(64))
        size, key, _, name = struct.unpack(">IHH56s", entry)
        found[name.rstrip(b"\0").decode()] = (key, size)
    contents = {}
    for name, (key, size) in found.items():
        board.ports.write(0x510, 2, key)
        contents[name] = bytes(read(0x511, 1) for _ in range(size))
    return contents


def test_a_whole_pc_behind_firmware(build: Build) -> None:
    machine = build()
    assert functions(machine) == {"0.0": "host-bridge", "1.0": "isa-bridge", "1.1": "piix-ide", "1.3": "power-management", "2.0": "vga"}
    board = machine.board
    assert board.screen is not None and board.keyboard is not None and board.mouse is not None
    names = {entry.name for entry in board.ports}
    assert {"dma-low", "floppy", "lpt1", "keyboard-data", "ide0", "ide1", "fw-cfg", "apm", "vga"} <= names
    assert machine.memory.read(0xFFFF_FFF0, 16) == machine.memory.read(0xFFFF0, 16) == ROM[-16:]


def test_a_kernel_finds_the_lean_machine_of_old(build: Build, tmp_path: Path) -> None:
    machine = build(kernel=tiny_kernel(tmp_path), disks=(DiskSpec(path=drive(tmp_path, "d"), format="raw"),))
    assert functions(machine) == {"0.0": "host-bridge", "1.0": "virtio-blk", "2.0": "virtio-rng"}
    assert machine.board.screen is None and machine.board.keyboard is None
    assert not {"dma-low", "floppy", "lpt1", "ide0", "fw-cfg", "vga"} & {entry.name for entry in machine.board.ports}
    assert machine.memory.contains(0, 8 << 20)


def test_a_kernel_gets_what_was_asked_for(build: Build, tmp_path: Path) -> None:
    kernel, disk = tiny_kernel(tmp_path), DiskSpec(path=drive(tmp_path, "d"), format="raw", interface="ide")
    machine = build(
        kernel=kernel, disks=(disk,), parallel=f"file:{tmp_path}/printed", floppies=(DiskSpec(path=drive(tmp_path, "f", 1440 << 10)),)
    )
    assert functions(machine) == {"0.0": "host-bridge", "1.0": "isa-bridge", "1.1": "piix-ide", "3.0": "virtio-rng"}
    assert {"ide0", "lpt1", "floppy", "dma-low"} <= {entry.name for entry in machine.board.ports}


def test_the_isa_board_has_no_pci(build: Build, tmp_path: Path) -> None:
    machine = build(board="isapc", disks=(DiskSpec(path=drive(tmp_path, "d"), format="raw"),))
    assert 0xCF8 not in {entry.base for entry in machine.board.ports} and machine.board.screen is not None
    assert machine.memory.read(0xE0000, 0x20000) == ROM
    machine.memory.write(0xF0000, b"variables")  # plain RAM
    machine.board.reset()
    assert machine.memory.read(0xF0000, 9) == ROM[:9]


@pytest.mark.parametrize("device", ["virtio-rng", "virtio-console"])
def test_the_isa_board_has_no_place_for_virtio(build: Build, device: str) -> None:
    with pytest.raises(UserError, match="isapc"):
        build(board="isapc", devices=(device,))


def test_firmware_is_told_where_to_start(build: Build, tmp_path: Path) -> None:
    disks = (
        DiskSpec(path=drive(tmp_path, "a"), format="raw"),
        DiskSpec(path=drive(tmp_path, "b"), format="raw", interface="virtio"),
    )
    machine = build(
        disks=disks, cdroms=(drive(tmp_path, "c"),), floppies=(DiskSpec(path=drive(tmp_path, "f", 1440 << 10)),), boot=("cdrom", "disk")
    )
    told = files(machine)
    assert told["bootorder"].rstrip(b"\0").decode().split("\n") == [
        "/pci@i0cf8/ide@1,1/drive@1/disk@0",
        "/pci@i0cf8/scsi@3/disk@0,0",
        "/pci@i0cf8/ide@1,1/drive@0/disk@0",
        "HALT",
    ]
    assert struct.unpack("<QQI", told["etc/e820"]) == (0, 8 << 20, 1)
    assert {"etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader", "etc/smbios/smbios-tables"} <= told.keys()
    assert machine.board.rtc.nvram(0x10) == 0x40 and machine.board.rtc.nvram(0x3D) == 0x23


def test_pam_switches_what_the_guest_sees(build: Build) -> None:
    machine = build()
    ports, memory = machine.board.ports, machine.memory
    ports.write(0xCF8, 4, 0x80000058)
    ports.write(0xCFD, 1, 0x30)
    memory.write(0xF0000, b"shadow")
    assert memory.read(0xF0000, 6) == b"shadow" and memory.read(0xFFFF_0000, 6) == ROM[:6]
    machine.board.reset()
    assert memory.read(0xF0000, 6) == ROM[:6]


def registers(engine: ScriptedEngine) -> dict[str, int]:
    return {name: engine.registers[name] for name in ("rip", "cs", "cs_base", "cr0")}


RESET_VECTOR = {"rip": 0xFFF0, "cs": 0xF000, "cs_base": 0xFFFF_0000, "cr0": 0x6000_0010}


@pytest.mark.parametrize("hard", [True, False])
def test_resets_keep_ram_and_go_to_the_reset_vector(build: Build, hard: bool) -> None:
    seen: list[tuple[dict[str, int], bytes, bool]] = []

    def first(engine: ScriptedEngine) -> None:
        engine.memory.write(0x5000, b"kept")
        engine.ports.write(0xCF8, 4, 0x80000058)
        engine.ports.write(0xCFD, 1, 0x30)
        engine.ports.write(0x92, 1, 0)
        engine.write_state({"rip": 1, "cs": 2, "cs_base": 3})
        engine.ports.write(0xCF9, 1, 6 if hard else 4)

    def second(engine: ScriptedEngine) -> None:
        seen.append((registers(engine), engine.memory.read(0x5000, 4), engine.memory.read(0xFFFF0, 2) == ROM[:2]))
        assert engine.memory.a20

    machine = build(first, second, out(0xF4, 3), devices=("debug-exit",))
    assert machine.run().ending is Ending.DEBUG_EXIT
    assert seen == [(RESET_VECTOR, b"kept", hard)]


def test_a_shutdown_is_a_reset_only_where_it_was_planned(build: Build) -> None:
    def plan(engine: ScriptedEngine) -> Shutdown:
        engine.ports.write(0x70, 1, 0x0F)
        engine.ports.write(0x71, 1, 0x0A)
        return Shutdown("planned")

    machine = build(plan, out(0xF4, 3), devices=("debug-exit",))
    assert machine.run().ending is Ending.DEBUG_EXIT
    status = build(Shutdown("#GP, then #DF")).run()
    assert status.code == 70 and "#DF" in status.reason


def test_a_kernel_through_firmware_is_loaded_when_the_rom_asks(build: Build, tmp_path: Path) -> None:
    seen: list[int] = []

    def ask(engine: ScriptedEngine) -> None:
        assert registers(engine) == RESET_VECTOR and engine.memory.read(0x10_0000, 1) == b"\0"
        engine.ports.write(kernel_rom.KERNEL_PORT, 1, 0)

    def look(engine: ScriptedEngine) -> None:
        seen.append(engine.registers["rip"])
        assert engine.memory.read(0x10_0000, 1) == b"\xf4"

    rom = tmp_path / "rom.bin"
    rom.write_bytes(ROM)
    machine = build(ask, look, out(0xF4, 3), kernel=tiny_kernel(tmp_path), firmware=str(rom), devices=("debug-exit",))
    assert kernel_rom.FILE_NAME in files(machine) and files(machine)["bootorder"].startswith(b"/rom@")
    assert machine.run().ending is Ending.DEBUG_EXIT
    assert seen == [0x10_0000]


def test_a_wrong_kernel_is_told_before_firmware_runs(build: Build, tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(ROM)
    (tmp_path / "k").write_bytes(b"#!/bin/sh\n" * 100)
    with pytest.raises(UserError, match="no kernel"):
        build(kernel=tmp_path / "k", firmware=str(rom))


def test_too_many_drives_for_two_cables(build: Build, tmp_path: Path) -> None:
    disks = tuple(DiskSpec(path=drive(tmp_path, f"d{n}"), format="raw") for n in range(5))
    with pytest.raises(UserError, match="if=virtio"):
        build(disks=disks)
    assert place([]) == {}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"append": "x", "firmware": "seabios"},
        {"kernel": "k", "board": "microvm", "cdroms": ("c",)},
        {"disks": ({"path": "d"},), "board": "microvm"},
        {"disks": ({"path": "d", "interface": "virtio"},), "board": "isapc"},
        {"floppies": ({"path": "a"},) * 3},
        {"cdroms": ("c",), "boot": ("cdrom", "cdrom")},
        {"cdroms": ("c",), "boot": ()},
        {"cdroms": ("c",), "boot": ("tape",)},
        {"cdroms": ("c",), "parallel": "lp0"},
        {"cdroms": ("c",), "cpu": "z80"},
    ],
)
def test_specs_that_do_not_fit_together(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        MachineSpec.build(**fields)
    assert caught.value.remedy
