"""Files out of Debian's packages, without unpacking them on the host: owners, modes and devices stay what they are in the archive.

Specification: deb(5); dpkg-deb takes the archive apart, as it knows each compression.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ringfence.core.errors import UserError
from ringfence.images.cpio import CpioArchive

MERGED = ("bin", "sbin", "lib", "lib64")
"""Links into /usr, https://www.freedesktop.org/wiki/Software/systemd/TheCaseForTheUsrMerge; packages name files by either path."""


@contextmanager
def open_files(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a package as a stream: each is read before the next one is asked for.  Raises UserError for a damaged package."""
    if shutil.which("dpkg-deb") is None:
        raise UserError("dpkg-deb is not installed here; it opens Debian's packages.", "Install the package dpkg.")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", errorlevel=2) as archive:
                yield archive
            assert process.stdout is not None
            while process.stdout.read(1 << 20):  # the padding at its end
                pass
        except (tarfile.TarError, EOFError) as error:
            raise _damaged(package) from error
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise _damaged(package)


def _damaged(package: Path) -> UserError:
    return UserError(f"The package {package.name} cannot be unpacked.", f"Remove {package} and build again.")


def merged(name: str) -> str:
    """A path of an archive as it is on a system with merged /usr, without a leading slash; "" for the root folder."""
    name = name.removeprefix(".").strip("/")
    return f"usr/{name}" if name.split("/", 1)[0] in MERGED else name


def add_to(archive: CpioArchive, package: Path, have: set[str]) -> int:
    """Adds a package's files to an initramfs; `have` are the folders that are in it.  Returns the latest time of a file, in seconds."""
    latest_s = 0
    with open_files(package) as files:
        for member in files:
            latest_s = max(latest_s, int(member.mtime))
            name = merged(member.name)
            if not name:
                continue
            if member.isdir():
                if name not in have:
                    archive.directory(name, member.mode & 0o7777)
                    have.add(name)
            elif member.isreg():
                data = files.extractfile(member)
                archive.file(name, data.read() if data is not None else b"", member.mode & 0o7777)
            elif member.islnk():  # for the time until the package is installed properly
                archive.symlink(name, f"/{merged(member.linkname)}")
            elif member.issym():
                archive.symlink(name, member.linkname)
    return latest_s
