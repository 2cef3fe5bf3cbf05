"""What our ready images have in common: how one is run, the words that its first program understands, and overlays with names.

The base of an image is never written.  Writes go to an overlay: a throw-away one, or a named one in the user's data folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ringfence.backends.block.open import create_overlay
from ringfence.core.errors import UserError
from ringfence.core.paths import data_folder

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")  # RFC 1123 2.1, also used for overlays


@dataclass(frozen=True)
class Recipe:
    """Values for the fields of a MachineSpec with the same names; `snapshot` and `interface` go into the DiskSpec."""

    kernel: Path
    initrd: tuple[Path, ...]
    append: str
    disk: Path
    snapshot: bool
    board: Literal["pc", "microvm"] = "pc"
    interface: Literal["virtio", "nvme"] = "virtio"


def console_words(init: str, hostname: str, terminal: str | None, size: tuple[int, int] | None) -> list[str]:
    """Words of the kernel's command line that our images understand; raises UserError."""
    if not _NAME.fullmatch(hostname):
        raise UserError(f"{hostname!r} is not a host name.", "Use up to 63 letters, digits and hyphens.")
    words = ["console=ttyS0", "quiet", f"ringfence.init={init}", f"ringfence.hostname={hostname}"]
    if terminal and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,40}", terminal):
        words.append(f"ringfence.term={terminal}")
    if size and all(0 < n < 10_000 for n in size):
        words.append(f"ringfence.size={size[0]}x{size[1]}")
    return words


def overlay_path(name: str, image: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be the name of an overlay.", "Use up to 63 letters, digits and hyphens.")
    return data_folder() / "overlays" / f"{image}-{name}.qcow2"


def named_overlay(name: str, base: Path, image: str) -> Path:
    """The overlay of that name, made on first use; later uses find what was written before."""
    path = overlay_path(name, image)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The overlay {name!r} cannot be made: {error}.", "Check the folder, or set XDG_DATA_HOME.") from error
        create_overlay(path, base, "qcow2")
    return path
