"""Opens what a spec names on the host: disks and the serial line's other end."""

from __future__ import annotations

from collections.abc import Callable

from ringfence.backends.api import Block, Char
from ringfence.backends.block.open import open_block, temporary_overlay
from ringfence.backends.char.file import FileChar
from ringfence.backends.char.null import NullChar
from ringfence.backends.char.pty import PtyChar
from ringfence.backends.char.stdio import StdioConsole
from ringfence.core.errors import UserError
from ringfence.machine.console import Console
from ringfence.machine.spec import DiskSpec


def open_disk(disk: DiskSpec) -> Block:
    """Raises UserError when there is no such image or it is damaged."""
    if disk.snapshot:
        return temporary_overlay(disk.path, disk.format)
    return open_block(disk.path, readonly=disk.readonly, format=disk.format)


def open_serial(name: str, on_quit: Callable[[], None]) -> Char:
    """The `Char` that a MachineSpec's `serial` names; `on_quit` is called when the user leaves the terminal."""
    kind, _, path = name.partition(":")
    match kind:
        case "buffer":
            return Console()
        case "null":
            return NullChar()
        case "stdio":
            return StdioConsole(on_quit)
        case "pty":
            return PtyChar()
        case "file":
            return FileChar(path)
    raise UserError(f"{name!r} is not a place for the serial line.", "Use stdio, pty, file:PATH, null or buffer.")
