"""Debian's stock cloud kernel with a small user space of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guest.guests import MOUNTS, debian_cloud_kernel, debian_minbase, initramfs, load_modules, virtio_modules
from tests.guest.session import Session, run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]
APPEND = "console=ttyS0 quiet panic=-1"


@pytest.mark.parametrize("board", ["pc", "microvm"])
def test_reaches_user_space_and_powers_off(tmp_path: Path, board: str) -> None:
    kernel = debian_cloud_kernel()
    init = MOUNTS + "echo user space of $(uname -r)\npoweroff -f\n"
    stats_file = tmp_path / "stats.json"
    arguments = ["--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init)), "--append", APPEND, "--board", board]
    status, console, messages = run(*arguments, "--stats", str(stats_file), timeout_s=180)
    assert b"user space of " in console, messages
    assert status == 0, messages
    stats = json.loads(stats_file.read_text())
    assert stats["guest_instructions"] > 100_000_000
    assert stats["blocks_translated"] > 10_000
    assert stats["tlb_refills"] > 10_000
    assert stats["memory"]["guest_pages_touched"] > 1000
    assert stats["ended"]["status"] == 0


def test_the_machine_is_what_was_asked_for(tmp_path: Path) -> None:
    """CPU, memory, clock and disk as the guest sees them."""
    kernel = debian_cloud_kernel()
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"first sector".ljust(512, b".") + bytes((1 << 20) - 512))
    init = MOUNTS + load_modules() + "echo ready\nexec setsid cttyhack sh\n"
    with Session(
        "--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init, virtio_modules())),
        "--append", APPEND, "--memory", "300M", "--disk", f"{disk},format=raw",
    ) as guest:  # fmt: skip
        guest.expect(b"ready", 120)
        guest.expect(b"# ")
        cpuinfo = guest.ask("cat /proc/cpuinfo")
        for flag in ("sse4_2", "popcnt", "cx16", "lahf_lm", "ssse3"):
            assert flag in cpuinfo.split()
        total_kib = int(guest.ask("grep MemTotal /proc/meminfo").split()[1])
        assert 200 << 10 < total_kib <= 300 << 10
        assert guest.ask("cat /sys/block/vda/size").strip() == "2048"
        assert guest.ask("head -c 12 /dev/vda").strip() == "first sector"
        guest.ask("echo written by the guest | dd of=/dev/vda bs=512 seek=3 conv=notrunc,fsync 2>/dev/null")
        first, second = (int(guest.ask("cut -d. -f1 /proc/uptime; sleep 2").split()[0]) for _ in range(2))
        assert 2 <= second - first <= 30
        guest.type("poweroff -f")
        assert guest.end() == 0, guest.story()
    assert disk.read_bytes()[3 * 512 :].startswith(b"written by the guest")


def test_reboot_starts_the_machine_again(tmp_path: Path) -> None:
    """The disk tells the second start from the first."""
    kernel = debian_cloud_kernel()
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    init = (
        MOUNTS
        + load_modules()
        + "[ $(head -c 4 /dev/vda) = seen ] 2>/dev/null && echo second start && poweroff -f\n"
        + "echo first start; printf seen | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; reboot -f\n"
    )
    status, console, messages = run(
        "--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init, virtio_modules())),
        "--append", APPEND, "--disk", f"{disk},format=raw", timeout_s=240,
    )  # fmt: skip
    assert b"first start" in console and b"second start" in console, messages
    assert status == 0, messages


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_minimal_debian_boots_from_a_virtio_disk(tmp_path: Path) -> None:
    """The stock kernel, its modules in an initramfs, a debootstrap system on ext4; the image itself stays untouched."""
    kernel, disk = debian_cloud_kernel(), debian_minbase()
    init = MOUNTS + load_modules() + "mount -t ext4 /dev/vda /mnt\nmount --move /dev /mnt/dev\nexec switch_root /mnt /bin/bash -l\n"
    with Session(
        "--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init, virtio_modules())),
        "--append", APPEND, "--disk", f"{disk},format=raw,snapshot",
    ) as guest:  # fmt: skip
        guest.expect(b"# ", 180)
        guest.ask("mount -t proc proc /proc; mount -o remount,rw /; export LC_ALL=C")
        assert "perl 5" in guest.ask("perl -e 'printf(\"perl %vd\\n\", $^V)'", timeout_s=120)
        assert "ii  dpkg" in guest.ask("dpkg -l dpkg | tail -1", timeout_s=120)
        assert guest.ask("dpkg --verify dpkg; echo verified $?", timeout_s=240).strip().endswith("verified 0")
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        assert empty in guest.ask("sha256sum </dev/null")
        assert guest.ask("python3 -c 'print(sum(k * k for k in range(1000)), 2 ** 0.5)'", timeout_s=120).split() == [
            "332833500", "1.4142135623730951",
        ]  # fmt: skip
        guest.type("sync; echo o >/proc/sysrq-trigger")
        assert guest.end() == 0, guest.story()
