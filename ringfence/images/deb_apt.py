"""apt with a root of its own below the user's cache: finds, downloads and checks packages, and installs nothing.

Needs no root rights.  Addresses, keys, proxies and passwords are the machine's; signatures of package lists and checksums of packages
are checked by apt, and packages once more here, as apt takes a file of the right size in its cache for the right one.
Specification: apt-get(8), apt.conf(5) of apt 2.6; a repository's format: https://wiki.debian.org/DebianRepository/Format.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from ringfence.core.errors import UserError

Progress = Callable[[str, int, int], None]
ARCHITECTURE = "amd64"
_UPDATE_S, _RESOLVE_S, _DOWNLOAD_S = 600.0, 120.0, 7200.0
_LOOK_S = 0.2
# Hooks of the machine's are for its own packages.  A package of another supplier does not take a distribution's place.
_HOOKS = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Pre-Install-Pkgs")
_CLEARED = (*_HOOKS, "APT::Architectures")
_PREFERENCES = "Package: *\nPin: release o={origin}\nPin-Priority: 500\n\nPackage: *\nPin: release o=*\nPin-Priority: -1\n"
# A kernel's package wants the tools that would make an initrd and a boot menu of it; here nothing of the kind is made.
_STATUS = f"""Package: ringfence-no-boot-loader
Status: install ok installed
Maintainer: none
Architecture: {ARCHITECTURE}
Version: 1
Provides: linux-initramfs-tool, initramfs-tools (= 9999), linux-base (= 9999)
Description: stands for what a kernel's package needs on a machine that starts it by itself

"""


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    file_name: str
    address: str
    size_bytes: int
    sha256: str


class PrivateApt:
    """`folder` keeps lists and packages from one use to the next; one process at a time has it (`locked`)."""

    def __init__(self, folder: Path, sources: Mapping[str, str], *, origin: str = "Debian") -> None:
        self._folder = folder
        self._archives = folder / "archives"
        paths = {
            "Dir::Etc::sourcelist": Path("/dev/null"),
            "Dir::Etc::sourceparts": folder / "sources",
            "Dir::Etc::preferences": folder / "preferences",
            "Dir::Etc::preferencesparts": Path("/dev/null"),
            "Dir::State": folder / "state",
            "Dir::State::lists": folder / "state" / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Cache::archives": self._archives,
        }
        values = {
            **{name: str(path) for name, path in paths.items()},
            "APT::Architecture": ARCHITECTURE,
            "APT::Architectures::": ARCHITECTURE,
            "APT::Install-Recommends": "false",
            "APT::Install-Suggests": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::ForceHash": "SHA256",
        }
        self._options = ["-c", str(folder / "apt.conf"), *(word for name, value in values.items() for word in ("-o", f"{name}={value}"))]
        try:
            for path in (folder / "state" / "lists" / "partial", self._archives / "partial"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.rmtree(folder / "sources", ignore_errors=True)
            (folder / "sources").mkdir(mode=0o700)
            for name, text in sources.items():
                (folder / "sources" / name).write_text(text)
            (folder / "preferences").write_text(_PREFERENCES.format(origin=origin))
            (folder / "status").write_text(_STATUS)
            (folder / "apt.conf").write_text("".join(f"#clear {name};\n" for name in _CLEARED))
        except OSError as error:
            raise _no_room(folder, error) from error

    def update(self) -> None:
        """Fetches the lists of packages; raises UserError with what apt says."""
        # A source that is out of reach must not leave an image of half of the sources.
        self._run("update", "-o", "APT::Update::Error-Mode=any", timeout_s=_UPDATE_S)

    def resolve(self, wanted: Sequence[str]) -> list[Package]:
        """These packages (or apt's patterns) and all that they need, sorted by name.  Raises UserError."""
        with tempfile.TemporaryDirectory(dir=self._folder) as empty:  # so that nothing is there yet, and everything is printed
            (Path(empty) / "partial").mkdir()
            options = ("--yes", "--print-uris", "-o", f"Dir::Cache::archives={empty}")
            printed = self._run("install", *options, "--", *wanted, timeout_s=_RESOLVE_S)
        packages = []
        for address, file_name, size, digest in re.findall(r"(?m)^'([^']+)' (\S+) (\d+) (\S*)$", printed):
            name, version, _ = file_name.split("_", 2)
            if not (found := re.fullmatch(r"SHA256:([0-9a-f]{64})", digest)) or "/" in file_name:
                raise UserError(f"The package {name} has no SHA-256 in the list of packages.", "Use a package source that has.")
            packages.append(Package(name, unquote(version), file_name, address, int(size), found[1]))
        return sorted(packages, key=lambda package: package.name)

    def fetch(self, packages: Sequence[Package], *, offline: bool = False, on_progress: Progress | None = None) -> dict[str, Path]:
        """The packages' files by name.  What is there and right is used; a download goes on where it was interrupted."""
        found = {package.name: self._path(package) for package in packages}
        missing = [package for package in packages if not _is_right(found[package.name], package)]
        for _ in range(2):  # a file that was damaged on this disk is fetched once more
            if not missing:
                return found
            if offline:
                names = ", ".join(package.name for package in missing[:5]) + (", …" if len(missing) > 5 else "")
                raise UserError(f"{len(missing)} packages have not been downloaded yet: {names}.", "Build once without --offline.")
            for package in missing:
                if _is_below(found[package.name], self._archives):
                    found[package.name].unlink(missing_ok=True)
            self._download(missing, on_progress)
            missing = [package for package in missing if not _is_right(found[package.name], package)]
        names = ", ".join(package.name for package in missing[:5])
        raise UserError(f"Downloaded packages are damaged: {names}.", f"Check the disk, and remove {self._archives}.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else uses the folder meanwhile; waits for whoever does."""
        try:
            file = open(self._folder / "in-use", "w")  # noqa: SIM115  (closed below)
        except OSError as error:
            raise _no_room(self._folder, error) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, package: Package) -> Path:
        # apt does not copy what is on a disk of this machine's.
        scheme, _, path = package.address.partition(":")
        return Path(unquote(re.sub("^/*", "/", path))) if scheme == "file" else self._archives / package.file_name

    def _download(self, packages: Sequence[Package], on_progress: Progress | None) -> None:
        total = sum(package.size_bytes for package in packages)
        paths = [self._archives / folder / package.file_name for package in packages for folder in (".", "partial")]

        def look() -> None:
            if on_progress is not None:
                done = sum(path.stat().st_size for path in paths if path.exists())
                on_progress("download packages, KiB", min(done, total) >> 10, total >> 10)

        words = [f"{package.name}={package.version}" for package in packages]
        # Each is wanted by itself: what it depends on is among the others or there already.
        self._run("install", "--yes", "--download-only", "--", "?essential", *words, timeout_s=_DOWNLOAD_S, look=look)

    def _run(self, *words: str, timeout_s: float, look: Callable[[], None] = lambda: None) -> str:
        """What apt-get prints; `look` is called while it runs."""
        command = ["apt-get", "--quiet", *self._options, *words]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment)
            except OSError as error:
                raise UserError(f"apt-get cannot be run: {error}.", "Build the image on Debian.") from error
            with process:
                try:
                    _wait(process, timeout_s, look)
                except BaseException:
                    process.terminate()  # what has come of a file is kept
                    raise
            look()
            if process.returncode:
                raise UserError(f"apt-get {words[0]} failed: {_last_words(errors, output)}.", _remedy(words[0]))
            output.seek(0)
            return output.read().decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], timeout_s: float, look: Callable[[], None]) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            process.wait(_LOOK_S)
            return
        except subprocess.TimeoutExpired:
            look()
        if time.monotonic() > deadline:
            raise UserError(f"apt-get has not come to an end within {timeout_s:g} s.", "Check the network, or use --offline.")


def _last_words(errors: IO[bytes], output: IO[bytes]) -> str:
    """apt's errors, or what it printed last."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")] or lines[-2:]
    if not told:
        output.seek(0)
        told = output.read().decode(errors="replace").strip().splitlines()[-1:]
    return "; ".join(told[:4]).rstrip(".") or "it gave no reason"


def _remedy(action: str) -> str:
    if action == "update":
        return "Check that `apt-get update` works on this machine; --offline uses what has been downloaded before."
    return "Check that this machine's package sources are Debian's and up to date."


def _is_right(path: Path, package: Package) -> bool:
    try:
        if path.stat().st_size != package.size_bytes:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except OSError:
        return False


def _is_below(path: Path, folder: Path) -> bool:
    return folder in path.parents


def _no_room(folder: Path, error: OSError) -> UserError:
    return UserError(f"The cache folder {folder} cannot be written: {error}.", "Free space there, or set XDG_CACHE_HOME.")
