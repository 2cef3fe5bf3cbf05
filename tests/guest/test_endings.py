"""Every way in which a run can end, and the exit status that tells it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.guest.guests import MOUNTS, debian_cloud_kernel, initramfs, static_program
from tests.guest.session import REPOSITORY, Session, run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]
APPEND = "console=ttyS0 quiet panic=-1"


def arguments(folder: Path, commands: str, append: str = "", files: dict[str, bytes] | None = None) -> list[str]:
    init = MOUNTS + commands + "\npoweroff -f\n"
    return [
        "--kernel", str(debian_cloud_kernel().image), "--initrd", str(initramfs(folder, init, files)), "--append", f"{APPEND} {append}",
    ]  # fmt: skip


def test_halted_for_ever_is_70(tmp_path: Path) -> None:
    status, _, messages = run(*arguments(tmp_path, "halt -f"))
    assert status == 70
    assert "halted for ever" in messages and "rip" in messages and "Halt" in messages


def test_triple_fault_is_70(tmp_path: Path) -> None:
    status, _, messages = run(*arguments(tmp_path, "reboot -f", "reboot=t"))
    assert status == 70
    assert "triple fault" in messages and "cr3" in messages


def test_timeout_is_124(tmp_path: Path) -> None:
    started = time.monotonic()
    status, _, messages = run(*arguments(tmp_path, "sleep 1000"), "--timeout", "8")
    assert status == 124 and "8 s" in messages
    assert time.monotonic() - started < 60


def test_debug_exit(tmp_path: Path) -> None:
    program = static_program(tmp_path, "leave", "#include <sys/io.h>\nint main(void) { ioperm(0xf4, 1, 1); outb(21, 0xf4); return 0; }\n")
    status, _, messages = run(*arguments(tmp_path, "/leave", files={"leave": program}), "--device", "debug-exit")
    assert status == 43, messages


def test_serial_to_a_file(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    status, console, messages = run(*arguments(tmp_path, "echo to the file"), "--serial", f"file:{log}")
    assert status == 0, messages
    assert b"to the file" in log.read_bytes() and console == b""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_end_the_machine(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with Session(*arguments(tmp_path, "echo up; sleep 1000")) as guest:
        guest.expect(b"up", 120)
        guest.signal(number)
        assert guest.end(30) == status, guest.story()


def test_the_terminal_comes_back_as_it_was(tmp_path: Path) -> None:
    """Ctrl-C goes to the guest; Ctrl-] q leaves; even a kill leaves the terminal in order."""
    init = "echo ready; setsid cttyhack sh -c 'trap \"echo interrupted\" INT; while true; do sleep 1; done'"
    for ending in ("escape", "kill"):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        command = [sys.executable, "-m", "ringfence", "run", *arguments(tmp_path, init)]
        child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=REPOSITORY, start_new_session=True)
        try:
            seen = _read_until(master, b"ready", 120)
            assert termios.tcgetattr(slave)[3] & termios.ICANON == 0
            time.sleep(1)
            os.write(master, b"\x03")
            seen += _read_until(master, b"interrupted", 30)
            if ending == "escape":
                os.write(master, b"\x1dq")
                assert child.wait(30) == 130, seen
            else:
                child.kill()
                child.wait(30)
                time.sleep(0.5)
            assert termios.tcgetattr(slave) == before
        finally:
            if child.poll() is None:
                child.kill()
                child.wait(30)
            os.close(master)
            os.close(slave)


def _read_until(descriptor: int, wanted: bytes, timeout_s: float) -> bytes:
    os.set_blocking(descriptor, False)
    seen, deadline = b"", time.monotonic() + timeout_s
    while wanted not in seen:
        assert time.monotonic() < deadline, f"{wanted!r} did not come: {seen!r}"
        try:
            seen += os.read(descriptor, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
    return seen


HOSTILE = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <sys/mman.h>

/* 20,000 writes of random values to every port or MMIO page, except those that are there to end or restart the machine. */
static int spared(unsigned port) {
    return port == 0xcf9 || port == 0x64 || port == 0x92 || (port >= 0x3f8 && port < 0x400) || (port & ~3u) == 0x604;
}

int main(int argc, char **argv) {
    srandom(atoi(argv[2]));
    if (argv[1][0] == 'p') {
        if (iopl(3)) { perror("iopl"); return 1; }
        for (int n = 0; n < 20000; n++) {
            unsigned port = random() & 1 ? random() & 0xffff : random() & 0x7ff;
            uint32_t value = random();
            if (spared(port) || spared(port + 1) || spared(port + 2) || spared(port + 3)) continue;
            switch (random() % 3) {
            case 0: outb(value, port); inb(port); break;
            case 1: outw(value, port); inw(port); break;
            case 2: outl(value, port); inl(port); break;
            }
        }
    } else {
        static const uint64_t bases[] = {0xfec00000, 0xfee00000, 0xfeb00000, 0xfed00000, 0xe0000000, 0xe0004000, 0xfebf0000};
        int file = open("/dev/mem", O_RDWR | O_SYNC);
        for (int n = 0; n < 20000; n++) {
            static volatile uint8_t *maps[7];
            int which = random() % 7;
            if (!maps[which]) {
                void *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, bases[which]);
                if (map == MAP_FAILED) continue;
                maps[which] = map;
            }
            unsigned offset = random() & 0xfff;
            switch (random() % 3) {
            case 0: maps[which][offset] = random(); break;
            case 1: *(volatile uint32_t *)(maps[which] + (offset & ~3)) = random(); break;
            case 2: (void)*(volatile uint64_t *)(maps[which] + (offset & ~7)); break;
            }
        }
    }
    puts("20000 done");
    return 0;
}
"""


@pytest.mark.parametrize("what", ["ports", "mmio"])
@pytest.mark.parametrize("board", ["pc", "microvm"])
def test_random_writes_to_hardware_do_not_harm_the_monitor(tmp_path: Path, what: str, board: str) -> None:
    """The machine goes on, or that guest ends with status 70 and a reason, or hangs by itself until the timeout."""
    program = static_program(tmp_path, "hostile", HOSTILE)
    commands = f"/hostile {what} 7\nsync"
    options = ["--board", board, "--timeout", "60", "--device", "virtio-rng"]
    status, console, messages = run(*arguments(tmp_path, commands, "iomem=relaxed", {"hostile": program}), *options, timeout_s=120)
    assert status in (0, 70, 124), messages
    assert "fault in the monitor" not in messages and "Traceback" not in messages, messages
    if status == 70:
        assert "The guest crashed: " in messages
    if status == 0:
        assert b"20000 done" in console


def test_options_that_cannot_be_are_125(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a kernel " * 100)
    image = tmp_path / "bad.qcow2"
    image.write_bytes(b"QFI\xfb" + b"\xff" * 600)
    kernel = str(debian_cloud_kernel().image)
    for options, word in (
        (["--kernel", "/nowhere/vmlinuz"], "vmlinuz"),
        (["--kernel", str(text)], "kernel"),
        (["--kernel", kernel, "--initrd", "/nowhere/initrd"], "initrd"),
        (["--kernel", kernel, "--disk", "/nowhere/disk"], "disk"),
        (["--kernel", kernel, "--disk", str(image)], "bad.qcow2"),
        (["--kernel", kernel, "--memory", "900T"], "memory"),
        (["--kernel", kernel, "--board", "apple"], "board"),
        (["--kernel", kernel, "--serial", "file:/nowhere/log"], "log"),
        (["nosuchimage"], "image"),
        ([], "--kernel"),
    ):
        status, _, messages = run(*options)
        assert status == 125 and word in messages and "Traceback" not in messages, (options, status, messages)
