"""The guest that installs Debian: a machine of ours becomes the new system in its memory, and writes it to a disk.

    packages -> initramfs: their files unpacked, and the packages themselves     dpkg, as root of that guest, on that kernel
             -> dpkg --unpack, --configure in the guest -> mkfs, tar -> disk -> digest of what is on the disk

So nothing needs root rights here, and maintainer scripts of packages run where they can do no harm.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ringfence.backends.block import qcow2_create
from ringfence.core.errors import UserError
from ringfence.core.units import MIB
from ringfence.images.cpio import CpioArchive
from ringfence.images.deb_files import MERGED, add_to, damaged, files_of, merged, uncompressed
from ringfence.machine.guest_process import GuestGone, GuestProcess, NoAgent
from ringfence.machine.machine import Machine, MachineBusy
from ringfence.machine.spec import DiskSpec, MachineSpec

Progress = Callable[[str, int, int], None]
MIN_MEMORY_BYTES = 1536 * MIB
BUILD_S = 3600.0
_READY_S = 180.0
_LOOK_S = 2.0
_SWITCH_OFF_S = 60.0
_SHOWN_BYTES = 2000
_DISK = "/dev/nvme0n1"  # the cloud kernel has NVMe and ext4 built in
_AGENT_MODULES = re.compile(r"(virtio|virtio_ring|virtio_pci\w*|virtio_mmio|virtio_console)\.ko(\.\w+)?")
# From our folder of files for guests to where they are in the image, with what mode.
_OWN = {
    "agent": ("usr/lib/ringfence/agent", 0o755),
    "start": ("usr/lib/ringfence/start", 0o755),
    "debian-init": ("usr/lib/ringfence/init", 0o755),
    "debian-shell": ("usr/lib/ringfence/shell", 0o755),
    "debian-poweroff": ("usr/lib/ringfence/poweroff", 0o755),
    "debian-agent.service": ("etc/systemd/system/ringfence-agent.service", 0o644),
    "debian-autologin.conf": ("etc/systemd/system/serial-getty@ttyS0.service.d/ringfence.conf", 0o644),
}
# Names, modes, owners, times, contents and links of all files.
_CANONICAL = ["tar", "-c", "--sort=name", "--numeric-owner", "--format=posix", "--xattrs", "--xattrs-include=*"]
_CANONICAL += ["--pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime", "-C", "/mnt", "."]
_TOLD_LINES, _MAX_LINE_BYTES = 15, 400


@dataclass(frozen=True)
class Kernel:
    image: bytes
    version: str


def make_initramfs(
    target: Path, packages: Sequence[Path], kernel_package: Path, files: Mapping[str, str], on_progress: Progress
) -> tuple[Kernel, int]:
    """Writes the guest's initramfs; `files` are further ones for the image.  Returns its kernel, and the latest time of a file in s."""
    archive = CpioArchive()
    archive.directory("usr")
    for name in MERGED:
        archive.directory(f"usr/{name}")
        archive.symlink(name, f"usr/{name}")
    have = {"usr", *MERGED, *(f"usr/{name}" for name in MERGED)}
    _folders(archive, have, "ringfence/debs")
    latest_s = 0
    for done, package in enumerate(packages):
        on_progress("open packages", done, len(packages))
        data = files_of(package)
        latest_s = max(latest_s, add_to(archive, package, data, have))
        archive.file(f"ringfence/debs/{package.name}", uncompressed(package, data))
    _folders(archive, have, "ringfence/modules")
    kernel = _add_kernel(archive, kernel_package, have)
    guest = resources.files("ringfence.images") / "guest"
    for name in ("agent", "start"):
        archive.file(f"ringfence/{name}", (guest / name).read_bytes(), 0o755)
    archive.file("ringfence/build", (guest / "debian-build").read_bytes(), 0o755)
    archive.file("init", (guest / "debian-build-init").read_bytes(), 0o755)
    own = [(place, (guest / name).read_bytes(), mode) for name, (place, mode) in _OWN.items()]
    for place, data, mode in (*own, *((name, text.encode(), 0o644) for name, text in files.items())):
        _folders(archive, have, f"ringfence/files/{place}".rpartition("/")[0])
        archive.file(f"ringfence/files/{place}", data, mode)
    with open(target, "wb") as file:
        file.writelines(archive.parts())
    return kernel, latest_s


def _folders(archive: CpioArchive, have: set[str], path: str) -> None:
    """This folder and those above it."""
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        folder = "/".join(parts[:count])
        if folder not in have:
            archive.directory(folder)
            have.add(folder)


def _add_kernel(archive: CpioArchive, package: Path, have: set[str]) -> Kernel:
    """The modules go where they are in the image, those for the agent to /ringfence/modules as well."""
    image, version = b"", ""
    try:
        with tarfile.open(fileobj=io.BytesIO(files_of(package))) as members:
            for member in members:
                name = merged(member.name)
                if member.isdir() and name.startswith("usr/lib/modules"):
                    _folders(archive, have, name)
                if not member.isreg() or (data := members.extractfile(member)) is None:
                    continue
                if name.startswith("boot/vmlinuz-"):
                    image, version = data.read(), name.removeprefix("boot/vmlinuz-")
                elif name.startswith("usr/lib/modules/"):
                    content = data.read()
                    archive.file(name, content)
                    if _AGENT_MODULES.fullmatch(file_name := name.rpartition("/")[2]):
                        archive.file(f"ringfence/modules/{file_name}", content)
    except (tarfile.TarError, EOFError) as error:
        raise damaged(package) from error
    if not image:
        raise UserError(f"The package {package.name} holds no kernel.", "Build from Debian's own package sources.")
    return Kernel(image, version)


def install(
    kernel: Path, initramfs: Path, disk: Path, size_bytes: int, epoch_s: int, version: str, packages: int, on_progress: Progress
) -> str:
    """Runs the guest, which leaves a root file system on the new qcow2 image `disk`.  Returns the SHA-256 of its contents."""
    qcow2_create.create(disk, size_bytes)
    spec = MachineSpec.build(
        name="build-debian",
        kernel=kernel,
        initrd=(initramfs,),
        append="console=ttyS0 quiet",
        memory=_memory_bytes(initramfs.stat().st_size),
        disks=(DiskSpec(path=disk, format="qcow2", interface="nvme"),),
        devices=("agent",),
        timeout=BUILD_S,
    )
    with Machine(spec, on_progress=on_progress) as machine:
        machine.start()
        try:
            _wait_for_agent(machine)
            with machine.popen(["/ringfence/build", str(epoch_s), version, _DISK]) as process:
                _follow(process, packages, on_progress)
            on_progress("check the disk", 0, 1)
            digest = _digest(machine)
            if machine.exec(["umount", "/mnt"]).status:
                raise _failed("its disk could not be unmounted")
            machine.switch_off()
            machine.wait(_SWITCH_OFF_S)
        except MachineBusy as error:
            raise _failed("it did not switch itself off") from error
        except (GuestGone, NoAgent) as error:
            seen = machine.console.transcript[-_SHOWN_BYTES:].decode(errors="replace").strip()
            why = "Its kernel gave up." if _has_panicked(machine) else error.cause
            raise _failed(f"{why} Its console:\n{seen}") from error
    on_progress("check the disk", 1, 1)
    return digest


def _memory_bytes(initramfs_bytes: int) -> int:
    """Linux gives a file system in memory a half of what is left beside the archive; it has to hold the archive's files and what becomes
    of them."""
    return max(MIN_MEMORY_BYTES, (initramfs_bytes * 13 // 4 // MIB + 512) * MIB)


def _wait_for_agent(machine: Machine) -> None:
    """Raises NoAgent, soon where the kernel has given up."""
    waited_s = 0.0
    while True:
        try:
            return machine.wait_ready(_LOOK_S)
        except GuestGone:
            raise
        except NoAgent:
            waited_s += _LOOK_S
            if waited_s >= _READY_S or _has_panicked(machine):
                raise


def _has_panicked(machine: Machine) -> bool:
    return b"Kernel panic" in machine.console.transcript


def _follow(process: GuestProcess, packages: int, on_progress: Progress) -> None:
    """Until the installation has ended; raises UserError with what it printed last where it failed."""
    counts = {b"Unpacking ": 0, b"Setting up ": 0}
    labels = {b"Unpacking ": "unpack packages in the guest", b"Setting up ": "set up packages in the guest"}
    lines: list[bytes] = []
    rest = b""
    for piece in process.stdout:
        *new, rest = (rest + piece).split(b"\n")
        rest = rest[-_MAX_LINE_BYTES:]
        for line in new:
            for word, label in labels.items():
                if line.startswith(word):
                    counts[word] = min(counts[word] + 1, packages)
                    on_progress(label, counts[word], packages)
        lines = [*lines, *(line[:_MAX_LINE_BYTES] for line in new)][-_TOLD_LINES:]
    if (status := process.wait()) != 0:
        told = b"\n".join([*lines, rest]).decode(errors="replace").strip()
        raise _failed(f"status {status}:\n{told}")


def _digest(machine: Machine) -> str:
    total = hashlib.sha256()
    with machine.popen(_CANONICAL) as process:
        for piece in process.stdout:
            total.update(piece)
        if process.wait() != 0:
            raise _failed(f"its files could not be read: {process.stderr.read()[-_MAX_LINE_BYTES:].decode(errors='replace')}")
    return total.hexdigest()


def _failed(why: str) -> UserError:
    full = "No space left on device" in why
    remedy = "Give the disk a larger size." if full else "Build again; if it fails in the same way, try another suite, or report it."
    return UserError(f"The guest could not install Debian: {why}", remedy)
