"""Programs of the distribution's packages, openssl, sqlite3 and python3, with the libraries that they come with.

The packages are unpacked into one tree.  Native runs and guests start the same files through the tree's own dynamic loader, so
that both compute with the same code.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from bench.figures import BenchError
from bench.programs import SOURCES
from ringfence.images.cpio import CpioArchive
from tests.guest import guests

WANTED = ("openssl", "sqlite3", "python3-minimal")
# Of what these depend on: libraries, not the tools of the package manager.
_LIBRARIES = re.compile(r"(openssl|sqlite3|python3\.\d+-minimal|zlib1g|lib(c6|ssl|sqlite|readline|tinfo|expat|python3)\S*)$")
_NEEDED = ("/bin/", "/lib/", "/lib64/")
_TEXT_BYTES = 4 << 20
TIMED = ("openssl-dgst", "openssl-enc", "sqlite3", "python3")
SPEED = {"openssl-speed-sha256": "sha256", "openssl-speed-aes": "aes-128-cbc"}  # row -> what openssl calls it


def tree(folder: Path) -> Path:
    """The unpacked packages, as far as programs need them, with the inputs of the programs.  Raises guests.Unavailable."""
    root = folder / "packages"
    root.mkdir()
    depends = ["apt-cache", "depends", "--recurse", "--important", *WANTED]
    done = subprocess.run(depends, capture_output=True, text=True, timeout=60, check=False)
    names = sorted({name for name in done.stdout.splitlines() if _LIBRARIES.match(name)})
    if not names:
        raise guests.Unavailable("apt knows none of the packages here (run apt-get update)")
    for name in names:
        package = guests.debian_package(name)
        for path in sorted(package.rglob("*")):
            inside = path.relative_to(package)
            if path.is_file() and not path.is_symlink() and _is_needed(f"/{inside}"):
                _copy(path, root / inside)
        for path in sorted(package.rglob("*")):
            inside = path.relative_to(package)
            if path.is_symlink() and _is_needed(f"/{inside}") and not path.readlink().is_absolute() and path.is_file():
                _copy(path.resolve(), root / inside)
    (root / "text").write_bytes(bytes((k * k * 31 + (k >> 7)) & 255 for k in range(_TEXT_BYTES)))
    shutil.copy(SOURCES / "workload.py", root)
    return root


def _is_needed(name: str) -> bool:
    return any(part in name for part in _NEEDED) and "/gconv/" not in name and "/share/" not in name


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)


def size_inputs(root: Path, percent: int) -> None:
    (root / "workload.sql").write_text((SOURCES / "workload.sql").read_text().replace("@SIZE@", str(600 * percent)))


def archive(root: Path, inside: str) -> bytes:
    """The tree as an initramfs that is appended to another."""
    packed = CpioArchive()
    packed.directory(inside)
    for path in sorted(root.rglob("*")):
        name = f"{inside}/{path.relative_to(root)}"
        if path.is_dir():
            packed.directory(name)
        else:
            packed.file(name, path.read_bytes(), 0o755)
    return packed.to_bytes()


def script(root: Path, prefix: str, timed: str, percent: int) -> str:
    """Lines of a shell that run the programs of the tree at `prefix`, by the program `timed`, which tells time and checksum."""
    loaders = sorted(root.rglob("ld-linux-x86-64.so.2"))
    pythons = sorted(root.glob("usr/bin/python3.*"))
    if not loaders or not pythons:
        raise BenchError("the packages hold no dynamic loader or no python3 where they are expected")
    libraries = {path.parent.relative_to(root) for path in root.rglob("*.so*") if path.parent.name == "x86_64-linux-gnu"}
    folders = ":".join(sorted(f"{prefix}/{folder}" for folder in libraries))
    start = f"{prefix}/{loaders[0].relative_to(root)} --library-path {folders} {prefix}/usr/bin"
    openssl, python = f"{start}/openssl", f"{start}/{pythons[0].name}"
    key = "-K 000102030405060708090a0b0c0d0e0f -iv 0f0e0d0c0b0a09080706050403020100"
    seconds = 1 if percent < 100 else 2
    lines = [
        f"cd {prefix}",
        "export OPENSSL_CONF=/dev/null",
        f"export PYTHONHOME={prefix}/usr",
        f"{timed} openssl-dgst {openssl} dgst -r -sha256 text",
        f"{timed} openssl-enc {openssl} enc -aes-128-cbc {key} -in text",
        f"{timed} sqlite3 {start}/sqlite3 -init /dev/null -batch :memory: '.read workload.sql'",
        f"{timed} python3 {python} -S -s -B workload.py {500 * percent}",
    ]
    for row, algorithm in SPEED.items():
        rate = f"$({openssl} speed -elapsed -seconds {seconds} -bytes 8192 -evp {algorithm} 2>/dev/null | tail -n 1)"
        lines += [f"echo begin {row}", f"set -- {rate}", f'echo "rate {row} $2"']
    return "\n".join(lines) + "\n"
