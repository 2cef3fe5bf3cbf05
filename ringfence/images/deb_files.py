"""Files out of Debian's packages, without unpacking them on the host: owners, modes and devices stay what they are in the archive.

Specification: deb(5); dpkg-deb takes the archive apart, as it knows each compression.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from ringfence.core.errors import UserError
from ringfence.images.cpio import CpioArchive

_UNPACK_S = 120.0
MERGED = ("bin", "sbin", "lib", "lib64")
"""Links into /usr, https://www.freedesktop.org/wiki/Software/systemd/TheCaseForTheUsrMerge; packages name files by either path."""


# Left out until the packages are installed: nothing that installs them reads it.
_LATER = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/zoneinfo/")


def _part(package: Path, option: str) -> bytes:
    """One of a package's two archives as it was before it was compressed.  Raises UserError for a damaged package."""
    if shutil.which("dpkg-deb") is None:
        raise UserError("dpkg-deb is not installed here; it opens Debian's packages.", "Install the package dpkg.")
    done = subprocess.run(["dpkg-deb", option, str(package)], capture_output=True, check=False, timeout=_UNPACK_S)
    if done.returncode:
        raise damaged(package)
    return done.stdout


def damaged(package: Path) -> UserError:
    return UserError(f"The package {package.name} cannot be unpacked.", f"Remove {package} and build again.")


def files_of(package: Path) -> bytes:
    """Its files, a tar archive."""
    return _part(package, "--fsys-tarfile")


def uncompressed(package: Path, files: bytes) -> bytes:
    """The package once more without compression, which costs a guest more than the host.  deb(5); ar as in its section FORMAT."""
    members = (("debian-binary", b"2.0\n"), ("control.tar", _part(package, "--ctrl-tarfile")), ("data.tar", files))
    parts = [b"!<arch>\n"]
    for name, data in members:
        parts += [f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode(), data, bytes(len(data) % 2)]
    return b"".join(parts)


def merged(name: str) -> str:
    """A path of an archive as it is on a system with merged /usr, without a leading slash; "" for the root folder."""
    name = name.removeprefix(".").strip("/")
    return f"usr/{name}" if name.split("/", 1)[0] in MERGED else name


def add_to(archive: CpioArchive, package: Path, files: bytes, have: set[str]) -> int:
    """Adds a package's files to an initramfs; `have` are the folders that are in it.  Returns the latest time of a file, in seconds."""
    latest_s = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(files)) as members:
            for member in members:
                latest_s = max(latest_s, int(member.mtime))
                name = merged(member.name)
                links_itself = member.issym() and member.name.removeprefix(".").strip("/") in MERGED  # ./bin -> usr/bin
                if not name or links_itself or name.startswith(_LATER):
                    continue
                if member.isdir():
                    if name not in have:
                        archive.directory(name, member.mode & 0o7777, int(member.mtime))
                        have.add(name)
                elif member.isreg() and (data := members.extractfile(member)) is not None:
                    archive.file(name, data.read(), member.mode & 0o7777)
                elif member.islnk():  # for the time until the package is installed properly
                    archive.symlink(name, f"/{merged(member.linkname)}")
                elif member.issym():
                    archive.symlink(name, member.linkname)
    except (tarfile.TarError, EOFError) as error:
        raise damaged(package) from error
    return latest_s
