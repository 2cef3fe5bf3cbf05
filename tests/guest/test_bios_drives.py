"""Firmware starts boot sectors from floppies of all drives' kinds and from NVMe disks, and these use their drives through it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ringfence.core.errors import UserError
from ringfence.machine.boot import firmware
from tests.guest.bare import HERE, PASS
from tests.guest.session import run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


def boot_sector(folder: Path, name: str, **defines: int) -> bytes:
    """512 bytes, made from `name`.S beside the bare kernels."""
    code, image = folder / f"{name}.o", folder / f"{name}.bin"
    macros = [f"-D{key}={value}" for key, value in defines.items()]
    try:
        for command in (
            ["gcc", "-m32", "-c", *macros, "-o", str(code), str(HERE / f"{name}.S")],
            ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", str(image), str(code)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
    except FileNotFoundError:
        pytest.skip("gcc is not installed here")
    return image.read_bytes()[:512]


def start(*arguments: str) -> None:
    try:
        firmware.find("seabios")
    except UserError as reason:
        pytest.skip(reason.cause)
    status, console, messages = run(*arguments, "--memory", "64M", "--device", "debug-exit", "--timeout", "90", timeout_s=120)
    assert status == PASS, f"{status}\n{console[-2000:].decode(errors='replace')}\n{messages}"


@pytest.mark.parametrize(("cylinders", "sectors", "kind"), [(40, 9, 1), (80, 15, 2), (80, 18, 4), (80, 36, 5)])
def test_floppies_through_int_13h(tmp_path: Path, cylinders: int, sectors: int, kind: int) -> None:
    count = cylinders * 2 * sectors
    content = bytearray(b"".join(number.to_bytes(2, "little") * 256 for number in range(count)))
    content[:512] = boot_sector(tmp_path, "bios_floppy", CYLINDERS=cylinders, SECTORS=sectors, KIND=kind)
    disk = tmp_path / "a.img"
    disk.write_bytes(content)
    start("--floppy", str(disk))
    track = sectors * 512
    content[10 * track : 11 * track] = content[-track:]
    assert disk.read_bytes() == content


@pytest.mark.parametrize("interface", ["ide", "nvme"])
def test_a_disk_through_int_13h(tmp_path: Path, interface: str) -> None:
    pieces, piece = 12, 96
    size = (pieces + 2) * piece + 1
    content = bytearray(b"".join(number.to_bytes(4, "little") * 128 for number in range(size)))
    last = 1 + pieces * piece
    content[:512] = boot_sector(tmp_path, "bios_disk", PIECE=piece, LAST=last)
    disk = tmp_path / "disk.img"
    disk.write_bytes(content)
    start("--disk", f"{disk},format=raw,if={interface}")
    content[last * 512 : (last + piece) * 512] = content[(last - piece) * 512 : last * 512]
    assert disk.read_bytes() == content
