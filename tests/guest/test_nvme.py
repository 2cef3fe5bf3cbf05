"""Linux's own NVMe driver on the NVMe controller: what it reads and writes is what the host's file holds."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.guest.guests import MOUNTS, debian_cloud_kernel, initramfs
from tests.guest.session import Session

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]
SIZE_BYTES = 24 << 20
PATTERN_BYTES = 9 << 20


@pytest.mark.parametrize("pins", [False, True], ids=["msi-x", "intx"])
def test_linux_reads_and_writes_with_equal_checksums(tmp_path: Path, pins: bool) -> None:
    kernel = debian_cloud_kernel()
    disk = tmp_path / "disk.img"
    content = random.Random(11).randbytes(SIZE_BYTES)
    disk.write_bytes(content)
    before = hashlib.sha256(content).hexdigest()
    init = MOUNTS + "echo ready\nexec setsid cttyhack sh\n"
    append = "console=ttyS0 quiet panic=-1" + (" pci=nomsi" if pins else "")
    with Session(
        "--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init)), "--append", append,
        "--memory", "300M", "--disk", f"{disk},format=raw,if=nvme",
    ) as guest:  # fmt: skip
        guest.expect(b"ready", 120)
        guest.expect(b"# ")
        assert guest.ask("cat /sys/block/nvme0n1/size").strip() == str(SIZE_BYTES // 512)
        assert guest.ask("cat /sys/class/nvme/nvme0/model").strip() == "Ringfence NVMe"
        assert guest.ask("cat /sys/class/nvme/nvme0/serial").strip() == "ringfence-nvme0"
        interrupts = guest.ask("grep nvme /proc/interrupts")
        assert ("MSI" in interrupts) is not pins, interrupts
        # everything through the page cache, with large and small reads, then past the cache
        assert guest.ask("sha256sum </dev/nvme0n1", timeout_s=120).split()[0] == before
        count = PATTERN_BYTES >> 20
        guest.ask(f"dd if=/dev/nvme0n1 of=/tmp/a bs=1M count={count} iflag=direct 2>/dev/null", timeout_s=60)
        guest.ask("dd if=/tmp/a of=/dev/nvme0n1 bs=1M seek=12 oflag=direct conv=notrunc,fsync 2>/dev/null", timeout_s=60)
        guest.ask("echo small and late | dd of=/dev/nvme0n1 bs=512 seek=47000 conv=notrunc,sync,fsync 2>/dev/null")
        guest.ask("dd if=/dev/zero of=/dev/nvme0n1 bs=4k seek=5500 count=8 conv=notrunc,fsync 2>/dev/null")
        guest.ask("blkdiscard -z -o $((23*1024*1024)) -l 4096 /dev/nvme0n1; echo 3 >/proc/sys/vm/drop_caches")
        inside = guest.ask("sha256sum </dev/nvme0n1", timeout_s=120).split()[0]
        messages = guest.ask("dmesg | grep -i nvme")
        assert "timeout" not in messages and "error" not in messages.lower(), messages
        guest.type("poweroff -f")
        assert guest.end() == 0, guest.story()
    after = disk.read_bytes()
    assert hashlib.sha256(after).hexdigest() == inside != before
    assert after[12 << 20 : (12 << 20) + PATTERN_BYTES] == content[:PATTERN_BYTES]
    assert after[47000 * 512 :].startswith(b"small and late") and after[5500 * 4096 : 5508 * 4096] == bytes(8 * 4096)
