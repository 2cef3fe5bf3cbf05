"""A PC's whole way: firmware, GRUB's menu and command line from a disk and a CD of our making, Linux from there, its user space at
screen and keyboard, which finds the files it came from with its own drivers."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ringfence import Machine, MachineSpec
from ringfence.core.errors import UserError
from ringfence.machine.boot import firmware
from ringfence.machine.spec import DiskSpec
from tests.guest import guests

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

GRUB = Path("/usr/lib/grub/i386-pc")
SECTOR = 512
PARTITION_START, PARTITION_BYTES = 2048, 48 << 20
BOOT_S = 240
CONFIGURATION = """
set timeout=-1
menuentry "The wrong one" { echo "not this one"; sleep 1; reboot; }
menuentry "Linux of ours" {
    echo "Loading Linux"
    linux /boot/vmlinuz quiet panic=-1 from=grub
    initrd /boot/initrd
}
"""
MODULES = ("scsi_common", "scsi_mod", "libata", "ata_piix", "cdrom", "sr_mod", "sd_mod", "isofs")


def filled(folder: Path) -> Path:
    """A folder with what belongs on the disk or CD."""
    kernel = guests.debian_cloud_kernel()
    load = "".join(f"insmod /{name}.ko\n" for name in MODULES)
    init = guests.MOUNTS + load + "clear\necho user space\nPS1='# ' exec setsid cttyhack sh\n"
    initrd = guests.initramfs(folder, init, {f"{name}.ko": kernel.module(name).read_bytes() for name in MODULES})
    boot = folder / "tree" / "boot"
    (boot / "grub").mkdir(parents=True)
    shutil.copy(kernel.image, boot / "vmlinuz")
    initrd.rename(boot / "initrd")
    (boot / "grub" / "grub.cfg").write_text(CONFIGURATION)
    return folder / "tree"


def tool(name: str, package: str, *arguments: object) -> None:
    if shutil.which(name) is None or not GRUB.is_dir():
        pytest.skip(f"{package} and grub-pc-bin are not both installed here")
    done = subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode and "xorriso" in done.stderr:
        pytest.skip(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def disk_of(tree: Path, disk: Path) -> None:
    """What grub-install does, in a file: boot sector, core image behind it, modules in the file system of the first partition."""
    core, partition = disk.with_suffix(".core"), disk.with_suffix(".ext4")
    modules = ("biosdisk", "part_msdos", "ext2")
    tool("grub-mkimage", "grub-common", "-O", "i386-pc", "-o", core, "-p", "(hd0,msdos1)/boot/grub", *modules)
    shutil.copytree(
        GRUB, tree / "boot" / "grub" / "i386-pc", ignore=lambda _, names: [n for n in names if not n.endswith((".mod", ".lst"))]
    )
    with open(partition, "wb") as file:
        file.truncate(PARTITION_BYTES)
    tool("mke2fs", "e2fsprogs", "-q", "-F", "-t", "ext4", "-d", tree, partition)
    sector = bytearray((GRUB / "boot.img").read_bytes())
    # One entry of the partition table: active, Linux, first sector and how many; its CHS fields say "see there".
    entry = b"\x80\xfe\xff\xff\x83\xfe\xff\xff" + PARTITION_START.to_bytes(4, "little") + (PARTITION_BYTES // SECTOR).to_bytes(4, "little")
    sector[446:512] = entry.ljust(64, b"\0") + b"\x55\xaa"
    with open(disk, "wb") as file:
        file.write(sector + core.read_bytes())
        assert file.tell() <= PARTITION_START * SECTOR
        file.seek(PARTITION_START * SECTOR)
        file.write(partition.read_bytes())


@pytest.mark.parametrize("medium", ["disk", "cd"])
def test_firmware_grub_linux_user_space(tmp_path: Path, medium: str) -> None:
    try:
        firmware.find("seabios")
    except UserError as reason:
        pytest.skip(reason.cause)
    tree = filled(tmp_path)
    image = tmp_path / "image"
    drive: dict[str, Any]
    if medium == "disk":
        disk_of(tree, image)
        drive, device, kind = {"disks": (DiskSpec(path=image, format="raw"),)}, "/dev/sda1", "ext4"
    else:
        tool("grub-mkrescue", "grub-common", "-d", GRUB, "-o", image, tree)
        drive, device, kind = {"cdroms": (image,)}, "/dev/sr0", "iso9660"
    with Machine(MachineSpec.build(memory="256M", display="none", timeout=380, **drive)) as machine:
        machine.start()
        machine.wait_for_text(re.compile(r"GNU GRUB +version.*\*The wrong one.*\n.* Linux of ours.*Press enter to boot", re.DOTALL), BOOT_S)
        machine.press("c")
        machine.wait_for_text("\ngrub>", 60)
        machine.type("ls /boot\n")
        machine.wait_for_text(re.compile(r"^(?=.*vmlinuz).*initrd", re.MULTILINE), 60)
        machine.press("esc")
        machine.wait_for_text("*The wrong one", 60)
        machine.press("down")
        machine.wait_for_text("*Linux of ours", 60)
        machine.press("enter")
        machine.wait_for_text(re.compile(r"user space.*\n#\s*$", re.DOTALL), BOOT_S)

        def ask(command: str, wanted: str) -> None:
            """On a screen for each: what is asked stands in its first line."""
            machine.type(f"clear; {command}\n")
            machine.wait_for_text(re.compile(rf"(^|\n){wanted}\n#\s*$", re.DOTALL), 60)

        ask("uname -sm", "Linux x86_64")
        ask("cat /proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz quiet panic=-1 from=grub")
        # its own drivers find the files that firmware's have read
        ask(f"mount -o ro -t {kind} {device} /mnt && ls /mnt/boot | sort | head -n 1", "grub")
        for name in ("vmlinuz", "initrd"):
            digest = hashlib.sha256((tree / "boot" / name).read_bytes()).hexdigest()
            ask(f"sha256sum </mnt/boot/{name}", f"{digest}  -")
        machine.type("umount /mnt; poweroff -f\n")
        status = machine.wait(60)
        assert status.code == 0, status.report()
