"""Linux's own floppy driver on the floppy controller and the 8237: formats found, data read and written, disks changed by hand."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

import pytest

from tests.guest.guests import MOUNTS, DebianKernel, Unavailable, _or_skip, _run, debian_package, initramfs
from tests.guest.session import Session

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]


@_or_skip
def debian_kernel() -> DebianKernel:
    """Debian's kernel for ordinary PCs: the cloud kernel knows no floppies."""
    names = re.findall(r"Depends: (linux-image-\S+-amd64)", _run("apt-cache", "depends", "linux-image-amd64"))
    if not names:
        raise Unavailable("apt knows no package linux-image-amd64 here")
    folder = debian_package(names[0])
    images, modules = sorted(folder.glob("boot/vmlinuz-*")), sorted(folder.glob("**/lib/modules/*/"))
    if not images or not modules:
        raise Unavailable(f"the package {names[0]} holds no kernel where it is expected")
    return DebianKernel(images[-1], modules[-1])


# How the module is loaded, and KiB that are read and copied: without DMA every byte costs two port accesses.
@pytest.mark.parametrize(("parameter", "read_kib", "copied_kib"), [("", 1440, 720), ("floppy=nodma", 36, 18)], ids=["dma", "pio"])
def test_linux_reads_and_writes_floppies(tmp_path: Path, parameter: str, read_kib: int, copied_kib: int) -> None:
    kernel = debian_kernel()
    first, second = tmp_path / "a.img", tmp_path / "b.img"
    content = random.Random(3).randbytes(1440 << 10), random.Random(4).randbytes(720 << 10)
    first.write_bytes(content[0])
    second.write_bytes(content[1])
    init = MOUNTS + f"insmod /floppy.ko {parameter}\necho ready\nexec setsid cttyhack sh\n"
    files = {"floppy.ko": kernel.module("floppy").read_bytes()}
    with Session(
        "--kernel", str(kernel.image), "--initrd", str(initramfs(tmp_path, init, files)), "--append", "console=ttyS0 quiet panic=-1",
        "--memory", "300M", "--floppy", str(first), "--floppy", f"{second},readonly",
    ) as guest:  # fmt: skip
        guest.expect(b"ready", 180)
        guest.expect(b"# ")
        messages = guest.ask("dmesg | grep -i -e fd0 -e fd1 -e FDC")
        assert "FDC 0 is a" in messages and "post-1991 82077" in messages, messages
        # The kernel finds each disk's format by trying data rates and sector counts.
        for number, kib in ((0, read_kib), (1, copied_kib)):
            guest.ask(f"echo 0 >/sys/block/fd{number}/queue/read_ahead_kb")
            inside = guest.ask(f"dd if=/dev/fd{number} bs=9k count={kib // 9} 2>/dev/null | sha256sum", timeout_s=120).split()[0]
            assert inside == hashlib.sha256(content[number][: kib << 10]).hexdigest()
        assert "refused" in guest.ask("echo no 2>&1 >/dev/fd1 || echo refused")
        guest.ask(f"dd if=/dev/fd1 of=/dev/fd0 bs=9k count={copied_kib // 9} seek=40 conv=notrunc,fsync 2>/dev/null", timeout_s=120)
        guest.ask("echo hello | dd of=/dev/fd0 bs=512 seek=2879 conv=notrunc,sync,fsync 2>/dev/null")
        guest.ask("echo 3 >/proc/sys/vm/drop_caches")
        inside = guest.ask(f"dd if=/dev/fd0 bs=9k skip=40 count={copied_kib // 9} 2>/dev/null | sha256sum", timeout_s=120).split()[0]
        assert inside == hashlib.sha256(content[1][: copied_kib << 10]).hexdigest()
        messages = guest.ask("dmesg | grep -i -e floppy -e fd0 -e fd1")
        assert "I/O error" not in messages and "timeout" not in messages and "long rw" not in messages, messages
        guest.type("poweroff -f")
        assert guest.end() == 0, guest.story()
    expected = bytearray(content[0])
    expected[360 << 10 : (360 + copied_kib) << 10] = content[1][: copied_kib << 10]
    expected[-512:] = b"hello\n".ljust(512, b"\0")
    assert first.read_bytes() == expected
    assert second.read_bytes() == content[1]
