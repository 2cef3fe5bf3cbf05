"""Finds and reads a firmware ROM, by name or path.

A ROM of a PC is a whole number of 4 KiB pages, is seen up to 4 GiB, and its last 128 KiB up to 1 MiB too: the CPU's first instruction
is 16 bytes before its end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ringfence.core.errors import ImageError, UserError
from ringfence.core.units import KIB, MIB, PAGE_BYTES, format_size
from ringfence.machine.boot.load import needs_firmware
from ringfence.machine.spec import MachineSpec

SEABIOS = "seabios"
VGA_BIOS = "vgabios-stdvga.bin"
_FOLDERS = (
    "/usr/share/seabios",  # Debian, Ubuntu, Fedora
    "/usr/share/qemu",  # Arch, openSUSE, Alpine, and QEMU's own installation
    "/usr/local/share/qemu",
    "/usr/share/qemu-kvm",
    "/usr/share/kvm",
    "/usr/share/seavgabios",
    "/opt/homebrew/share/qemu",
)
_NAMES = ("bios-256k.bin", "bios.bin")
# SeaBIOS of 256 KiB needs a chipset whose shadow RAM it can unlock; without one it crashes (in QEMU too), that of 128 KiB does not.
_ISA_NAMES = ("bios.bin",)
_MIN_BYTES, _MAX_BYTES = 4 * KIB, 16 * MIB
_REMEDY = "Install SeaBIOS (Debian, Ubuntu: apt install seabios; Fedora: dnf install seabios-bin), or give a ROM file with --firmware FILE."


def find(name: str, folders: Sequence[str] = _FOLDERS, *, isa: bool = False) -> Path:
    """The ROM file that `name` means: "seabios", or a path.  `isa`: for a board without a PCI chipset.  Raises UserError."""
    if name != SEABIOS:
        return Path(name)
    for folder in folders:
        for file in _ISA_NAMES if isa else _NAMES:
            path = Path(folder) / file
            if path.is_file():
                return path
    raise UserError("The firmware SeaBIOS is not installed on this host.", _REMEDY)


def find_vga_bios(file: str = VGA_BIOS, folders: Sequence[str] = _FOLDERS) -> Path | None:
    """The video card's expansion ROM, None where it is not installed."""
    return next((path for folder in folders if (path := Path(folder) / file).is_file()), None)


def choose(spec: MachineSpec) -> bytes | None:
    """The content of the ROM that starts the machine, None where a kernel is entered directly.  Raises UserError."""
    isa = spec.board == "isapc"
    if spec.firmware is not None or spec.kernel is None:
        return read(spec.firmware or SEABIOS, isa=isa)
    if spec.board == "microvm":
        return None
    if needs_firmware(spec.kernel):
        return read(SEABIOS, isa=isa)
    # Firmware sets up the screen; where it is not installed a kernel that can do so itself still runs.
    return read(SEABIOS, isa=isa) if spec.has_screen and _installed(isa) else None


def _installed(isa: bool) -> bool:
    try:
        return find(SEABIOS, isa=isa).is_file()
    except UserError:
        return False


def read(name: str, folders: Sequence[str] = _FOLDERS, *, isa: bool = False) -> bytes:
    """The ROM's content, filled up to whole pages at its front.  Raises UserError (ImageError for what cannot be a ROM)."""
    path = find(name, folders, isa=isa)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"There is no firmware file {os.fspath(path)!r}.", _REMEDY) from error
    except OSError as error:
        raise UserError(f"The firmware {os.fspath(path)!r} cannot be read: {error}.", "Check the path and its permissions.") from error
    if not _MIN_BYTES <= len(data) <= _MAX_BYTES:
        raise ImageError(
            f"{os.fspath(path)!r} has {format_size(len(data))}, which no firmware ROM has.",
            f"A ROM is {format_size(_MIN_BYTES)} to {format_size(_MAX_BYTES)} long.",
        )
    if not any(data[-16:]) or data[-16:] == b"\xff" * 16:
        raise ImageError(
            f"{os.fspath(path)!r} holds no instruction at the reset vector, 16 bytes before its end.",
            "Give the ROM's image as it is burnt; a UEFI image in two files needs both joined, which comes in a later version.",
        )
    return bytes(-len(data) % PAGE_BYTES) + data
