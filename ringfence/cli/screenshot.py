"""`ringfence screenshot` and `--screenshot-at-exit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ringfence.core.errors import UserError
from ringfence.machine.control_client import ask, find_machine

if TYPE_CHECKING:
    from PIL import Image


def save_image(image: Image.Image, path: Path) -> None:
    """Writes a PNG, whatever the file is called; raises UserError."""
    try:
        image.save(path, "PNG")
    except OSError as error:
        raise UserError(f"The screenshot cannot be written to {path}: {error.strerror or error}.", "Choose another file.") from error


def take(machine: str | None, file: str) -> None:
    """Writes the picture of a running machine's screen; raises UserError."""
    head, data = ask(find_machine(machine), "screenshot")
    if file == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        Path(file).write_bytes(data)
    except OSError as error:
        raise UserError(f"The screenshot cannot be written to {file}: {error.strerror}.", "Choose another file.") from error
    print(f"{file}: {head['width']} x {head['height']} pixels", file=sys.stderr)


def print_text(machine: str | None) -> None:
    _, data = ask(find_machine(machine), "text")
    print(data.decode().rstrip("\n"))
