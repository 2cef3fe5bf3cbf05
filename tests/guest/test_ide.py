"""Linux's own drivers on the IDE controllers: what they read and write is what the host's files hold."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.guest.guests import MOUNTS, debian_cloud_kernel, initramfs
from tests.guest.session import Session

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]
DISK_BYTES, CD_BYTES = 24 << 20, 6 << 20
PATTERN_BYTES = 9 << 20
MODULES = ("scsi_common", "scsi_mod", "libata", "cdrom", "sr_mod", "sd_mod")
# Board, driver, a parameter of libata, the mode it chooses, and the MiB that go through it (PIO moves two bytes an instruction).
CASES = {
    "dma": ("pc", "ata_piix", "", "XFER_MW_DMA_2", 24),
    "pio": ("pc", "ata_piix", "dma=0", "XFER_PIO_4", 2),
    "isa": ("isapc", "pata_legacy", "", "XFER_PIO_0", 2),
}


@pytest.mark.parametrize("case", CASES)
def test_linux_reads_and_writes_with_equal_checksums(tmp_path: Path, case: str) -> None:
    board, driver, parameter, mode, mib = CASES[case]
    kernel = debian_cloud_kernel()
    disk, cdrom = tmp_path / "disk.img", tmp_path / "cd.iso"
    content, cd_content = random.Random(11).randbytes(DISK_BYTES), random.Random(12).randbytes(CD_BYTES)
    disk.write_bytes(content)
    cdrom.write_bytes(cd_content)
    modules = (*MODULES[:3], driver, *MODULES[3:])
    load = "".join(f"insmod /{name}.ko {parameter if name == 'libata' else ''}\n" for name in modules)
    files = {f"{name}.ko": kernel.module(name).read_bytes() for name in modules}
    with Session(
        "--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, MOUNTS + load + "echo ready\nexec setsid cttyhack sh\n", files)),
        "--append", "console=ttyS0 quiet panic=-1", "--board", board,
        "--memory", "300M", "--disk", f"{disk},format=raw,if=ide", "--cdrom", str(cdrom),
    ) as guest:  # fmt: skip
        guest.expect(b"ready", 120)
        guest.expect(b"# ")
        guest.ask("while ! [ -b /dev/sda -a -b /dev/sr0 ]; do sleep 1; done", timeout_s=60)
        assert guest.ask("cat /sys/block/sda/size").strip() == str(DISK_BYTES // 512)
        assert guest.ask("cat /sys/block/sr0/size").strip() == str(CD_BYTES // 512)
        assert guest.ask("cat /sys/block/sda/device/model").strip() == "Ringfence Disk"
        assert guest.ask("cat /sys/class/ata_device/dev1.0/xfer_mode").strip() == mode
        read = "dd if=/dev/{} bs=1M count={} 2>/dev/null | sha256sum"
        assert guest.ask(read.format("sda", mib), timeout_s=120).split()[0] == hashlib.sha256(content[: mib << 20]).hexdigest()
        cd_mib = min(mib, CD_BYTES >> 20)
        expected = hashlib.sha256(cd_content[: cd_mib << 20]).hexdigest()
        assert guest.ask(read.format("sr0", cd_mib), timeout_s=120).split()[0] == expected
        count = min(PATTERN_BYTES >> 20, mib)
        guest.ask(f"dd if=/dev/sda of=/tmp/a bs=1M count={count} iflag=direct 2>/dev/null", timeout_s=60)
        guest.ask("dd if=/tmp/a of=/dev/sda bs=1M seek=12 oflag=direct conv=notrunc,fsync 2>/dev/null", timeout_s=60)
        guest.ask("echo small and late | dd of=/dev/sda bs=512 seek=47000 conv=notrunc,sync,fsync 2>/dev/null")
        guest.ask("dd if=/dev/zero of=/dev/sda bs=4k seek=5500 count=8 conv=notrunc,fsync 2>/dev/null")
        guest.ask("eject /dev/sr0; eject -t /dev/sr0")
        assert guest.ask("head -c 2048 /dev/sr0 | sha256sum").split()[0] == hashlib.sha256(cd_content[:2048]).hexdigest()
        messages = guest.ask("dmesg | grep -iE 'ata|sd|sr0|scsi'")
        for bad in ("exception", "timeout", "failed", "lost interrupt", "frozen", "I/O error"):
            assert bad not in messages, messages
        guest.type("poweroff -f")
        if board == "pc":
            assert guest.end() == 0, guest.story()
    after = disk.read_bytes()
    assert after[12 << 20 : (12 << 20) + (count << 20)] == content[: count << 20]
    assert after[47000 * 512 :].startswith(b"small and late") and after[5500 * 4096 : 5508 * 4096] == bytes(8 * 4096)
