"""`ringfence run alpine`: a whole distribution, used from its root shell."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.guests import alpine_files, alpine_python_path
from tests.guest.session import Session

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]
BOOT_S = 180

SORT = "awk 'BEGIN { x = 1; for (i = 0; i < 1000000; i++) { x = (x * 16807) % 2147483647; print x } }' | sort | sha256sum"
AWK = "awk 'BEGIN { for (i = 1; i < 200000; i++) s += sin(i) * exp(-i / 1e5) / sqrt(i); printf \"%.12g\\n\", s }'"
LOOP = "i=0; s=0; while [ $i -lt 100000 ]; do s=$((s + i * i % 7)); i=$((i + 1)); done; echo $s"
SHA = "dd if=/dev/zero bs=1M count=64 2>/dev/null | sha256sum"


@pytest.fixture(scope="module")
def alpine() -> Iterator[Session]:
    """One boot for the tests that only look; the disk's base must be the same afterwards."""
    files, environment = alpine_files(), alpine_python_path()
    before = hashlib.sha256(files.disk.read_bytes()).hexdigest()
    with Session("alpine", "--hostname", "prairie", environment=environment) as guest:
        guest.expect(b"prairie:~# ", BOOT_S)
        yield guest
        guest.type("poweroff")
        assert guest.end() == 0, guest.story()
    assert hashlib.sha256(files.disk.read_bytes()).hexdigest() == before


def test_it_is_alpine(alpine: Session) -> None:
    assert alpine.ask("uname -a").startswith("Linux prairie ")
    assert "alpine-baselayout" in alpine.ask("apk info 2>/dev/null", timeout_s=120)
    assert "model name" in alpine.ask("cat /proc/cpuinfo")
    assert "ext4" in alpine.ask("dmesg | tail -20").lower()
    assert "Alpine" in alpine.ask("cat /etc/os-release")


def test_the_disk_is_writable(alpine: Session) -> None:
    alpine.ask("dd if=/dev/urandom of=/root/noise bs=64k count=64 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches")
    first = alpine.ask("sha256sum /root/noise").split()[0]
    alpine.ask("echo 3 >/proc/sys/vm/drop_caches")
    assert alpine.ask("sha256sum /root/noise").split()[0] == first


def test_the_shell_has_job_control(alpine: Session) -> None:
    assert "Running" in alpine.ask("sleep 30 & jobs; kill %1")


@pytest.mark.parametrize("command", [SHA, SORT, AWK, LOOP], ids=["sha256sum", "sort", "awk", "loop"])
def test_computes_what_the_host_computes(alpine: Session, command: str) -> None:
    missing = [tool for tool in ("awk", "sort", "sha256sum", "dd") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this host: {', '.join(missing)}")
    environment = {**os.environ, "LC_ALL": "C"}
    host = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert alpine.ask(f"export LC_ALL=C; {command}", timeout_s=300).split() == host.stdout.split()


def test_a_named_overlay_keeps_what_was_written(tmp_path: Path) -> None:
    environment = {**alpine_python_path(), "XDG_DATA_HOME": str(tmp_path)}
    for command, expected in (("echo kept >/root/file; echo made", "made"), ("cat /root/file", "kept")):
        with Session("alpine", "--overlay", "test", environment=environment) as guest:
            guest.expect(b":~# ", BOOT_S)
            assert expected in guest.ask(command)
            guest.type("exit")  # the end of the shell switches the machine off
            assert guest.end() == 0, guest.story()
        (overlay,) = tmp_path.rglob("*.qcow2")
        if shutil.which("qemu-img"):
            subprocess.run(["qemu-img", "check", "-q", str(overlay)], check=True, timeout=60)


def test_killed_outright_the_overlay_stays_whole(tmp_path: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed here")
    environment = {**alpine_python_path(), "XDG_DATA_HOME": str(tmp_path)}
    with Session("alpine", "--overlay", "test", environment=environment) as guest:
        guest.expect(b":~# ", BOOT_S)
        guest.ask("echo safe >/root/file; sync")
        guest.type("while true; do dd if=/dev/urandom of=/root/x bs=64k count=20 conv=fsync 2>/dev/null; done")
        guest.pause(3)
        guest.kill()
    with Session("alpine", "--overlay", "test", environment=environment) as guest:
        guest.expect(b":~# ", BOOT_S)
        assert "safe" in guest.ask("cat /root/file")
        guest.type("poweroff")
        assert guest.end() == 0, guest.story()
    (overlay,) = tmp_path.rglob("*.qcow2")
    subprocess.run(["qemu-img", "check", "-q", str(overlay)], check=True, timeout=60)


@pytest.mark.slow
def test_the_distributions_own_start() -> None:
    with Session("alpine", "--init", "openrc", "--hostname", "prairie", environment=alpine_python_path()) as guest:
        guest.expect(b"Welcome to Alpine", 300)
        guest.expect(b"prairie:~# ")
        assert "getty" in guest.ask("ps")
        guest.type("poweroff")
        assert guest.end(120) == 0, guest.story()
