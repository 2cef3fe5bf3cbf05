"""The image `debian`: built here from the machine's own package sources, and the recipe behind `ringfence run debian`.

An image is a folder: a kernel, a disk whose one ext4 file system is Debian's minimal system with our agent in it, and `image.json`,
which says what it was made of.  The root file system is mounted by the kernel itself, so there is no initramfs.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ringfence.core.errors import UserError
from ringfence.core.paths import user_cache_folder
from ringfence.core.units import GIB, MIB
from ringfence.images import debian_build
from ringfence.images.deb_apt import Package, PrivateApt
from ringfence.images.deb_sources import for_the_guest, machine_sources
from ringfence.images.recipe import Recipe, console_words, named_overlay

Progress = Callable[[str, int, int], None]
KERNEL, DISK, RECORD = "kernel", "disk.qcow2", "image.json"
DEFAULT_SIZE_BYTES = 2 * GIB
MIN_SIZE_BYTES = 512 * MIB
_KERNEL_PACKAGE = "linux-image-cloud-amd64"  # drivers for virtual machines; NVMe and ext4 are built in
# Besides what is essential to every Debian: apt itself, two ways to start, what lets a system be looked at, and Python.
PACKAGES = (
    *("apt", "dbus", "e2fsprogs", "iproute2", "kmod", "login", "mount", "passwd", "procps", "python3-minimal"),
    *("systemd-sysv", "udev", "usr-is-merged"),
)
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")  # Debian Policy 4.6, 5.6.7
_INIT = "/usr/lib/ringfence/init"


@dataclass(frozen=True)
class BuiltImage:
    """A built image.  `root_digest` is the SHA-256 of the root file system's contents, in hexadecimal: names, types, modes, owners, times,
    contents and link targets in the order of names, as a tar archive has them.  `packages` are names and versions."""

    kernel: Path
    disk: Path
    kernel_version: str
    root_digest: str
    packages: dict[str, str]
    initrd: Path | None = None
    disk_format: Literal["qcow2"] = "qcow2"


def build_debian(
    folder: Path,
    *,
    suite: str | None = None,
    size_bytes: int = DEFAULT_SIZE_BYTES,
    packages: Sequence[str] = (),
    offline: bool = False,
    on_progress: Progress | None = None,
) -> BuiltImage:
    """Builds an image in `folder`; further `packages` are installed besides.  Takes a minute or two.  Raises UserError.

    `suite` None takes the machine's own.  `offline` uses the lists and packages of an earlier build.
    """
    progress = on_progress or (lambda label, done, total: None)
    _check(size_bytes, packages)
    sources = machine_sources(suite)
    apt = PrivateApt(apt_folder(suite), sources)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary:
            work = Path(temporary)
            with apt.locked():
                if not offline:
                    apt.update()
                chosen = _resolve(apt, packages, offline)
                files = apt.fetch(chosen, offline=offline, on_progress=progress)
                kernel_package = _kernel_of(chosen)
                installed = {package.name: package.version for package in chosen if not package.name.startswith("linux-image-")}
                further = {f"etc/apt/sources.list.d/{name}": text for name, text in for_the_guest(sources).items()}
                archive = work / "initramfs"
                kernel, epoch_s = debian_build.make_initramfs(
                    archive, [files[name] for name in installed], files[kernel_package], further, progress
                )
            (work / KERNEL).write_bytes(kernel.image)
            digest = debian_build.install(
                work / KERNEL, archive, work / DISK, size_bytes, epoch_s, kernel.version, len(installed), progress
            )
            image = BuiltImage(folder / KERNEL, folder / DISK, kernel.version, digest, installed)
            _record(image, work / RECORD)
            (folder / RECORD).unlink(missing_ok=True)
            for name in (KERNEL, DISK, RECORD):  # the record comes last: where it is, everything is, and of one build
                (work / name).replace(folder / name)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"The image cannot be written to {folder}: {error}.", "Free space there, or choose another folder.") from error
    return image


def _kernel_of(packages: Sequence[Package]) -> str:
    kernels = [package.name for package in packages if re.match(r"linux-image-\d", package.name)]
    if len(kernels) != 1:
        raise UserError(f"{_KERNEL_PACKAGE} means {len(kernels)} kernels here, not one.", "Build from Debian's own package sources.")
    return kernels[0]


def load(folder: Path) -> BuiltImage:
    """The image that `build_debian` left there; raises UserError where there is none."""
    try:
        values = json.loads((folder / RECORD).read_text())
        image = BuiltImage(
            folder / KERNEL, folder / DISK, str(values["kernel_version"]), str(values["root_digest"]), dict(values["packages"])
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"There is no whole Debian image in {folder}: {error}.", "Build it with build_debian.") from error
    for path in (image.kernel, image.disk):
        if not path.is_file():
            raise UserError(f"The Debian image in {folder} has lost its {path.name}.", "Build it again with build_debian.")
    return image


def recipe(
    image: BuiltImage,
    *,
    init: Literal["shell", "systemd", "agent"] = "shell",
    hostname: str = "debian",
    overlay: str | None = None,
    terminal: str | None = None,
    size: tuple[int, int] | None = None,
    append: str = "",
) -> Recipe:
    """Everything to run an image.  `init` "shell" is a root shell on the console and no more, "systemd" Debian's own start with a login
    there, "agent" nothing but what runs commands, which the others do too.  `size` is (columns, rows) of the terminal, `overlay` the name
    of one to be kept."""
    root = ["root=/dev/nvme0n1", "rootfstype=ext4", "rw", f"init={_INIT}"]
    words = [*console_words(init, hostname, terminal, size), *root, *([append] if append else [])]
    disk = image.disk if overlay is None else named_overlay(overlay, image.disk, "debian")
    return Recipe(image.kernel, (), " ".join(words), disk, snapshot=overlay is None, interface="nvme")


def _check(size_bytes: int, packages: Sequence[str]) -> None:
    if size_bytes < MIN_SIZE_BYTES or size_bytes % MIB:
        raise UserError(f"A disk of {size_bytes} bytes is not possible.", f"Use a multiple of 1 MiB, at least {MIN_SIZE_BYTES >> 20} MiB.")
    for name in packages:
        if not _PACKAGE_NAME.fullmatch(name):
            raise UserError(f"{name!r} is not the name of a package.", "Names are small letters, digits and + - .")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(
                f"{tool} is not installed here; a Debian image is built from the machine's own package sources.",
                "Build it on a machine with Debian, and copy the folder.",
            )


def apt_folder(suite: str | None) -> Path:
    """Where package lists and packages are kept for builds of this suite."""
    return user_cache_folder() / "debian" / (suite or "own")


def wanted_packages(further: Sequence[str] = ()) -> list[str]:
    """What apt is asked for."""
    return ["?essential", *PACKAGES, _KERNEL_PACKAGE, *further]


def _resolve(apt: PrivateApt, packages: Sequence[str], offline: bool) -> list[Package]:
    try:
        return apt.resolve(wanted_packages(packages))
    except UserError as error:
        if offline:
            raise UserError(error.cause, "Build once without --offline, which fetches the lists of packages.") from error
        raise


def _record(image: BuiltImage, path: Path) -> None:
    values = {name: value for name, value in asdict(image).items() if name in ("kernel_version", "root_digest", "packages", "disk_format")}
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
