"""The real gdb and a small kernel: break, watch, step, look, change, and on to the end."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.debug.packets import frame
from tests.guest.bare import HERE, PASS, _prepare, build
from tests.guest.session import Session

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]
WAY = 5_000_000  # turns before anything happens: under an interpreter of single instructions these would take minutes


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed here")
    return build(tmp_path, "debuggee", WAY=WAY)


class Debuggee:
    """A machine that waits for gdb."""

    def __init__(self, kernel: Path | None, *arguments: str) -> None:
        _prepare()
        self._kernel = kernel
        machine = arguments or ("--kernel", str(kernel), "--board", "microvm")
        options = ["--memory", "64M", "--timeout", "100", "--device", "debug-exit", "--gdb", ":0", "--gdb-wait"]
        self.session = Session(*machine, *options)
        deadline = time.monotonic() + 60
        while not (found := re.search(r"gdb is served at 127\.0\.0\.1:(\d+)", self.session.errors)):
            assert time.monotonic() < deadline, self.session.story()
            time.sleep(0.02)
        self.port = int(found[1])

    def gdb(self, *commands: str) -> list[str]:
        """What gdb and its target printed for each of the commands."""
        arguments = ["-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off", "-ex", f"target remote :{self.port}"]
        for command in commands:
            arguments += ["-ex", "echo <<<\\n", "-ex", command]
        done = subprocess.run(
            ["gdb", *arguments, *([str(self._kernel)] if self._kernel else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        assert "Traceback" not in self.session.errors, self.session.story()
        answers = done.stdout.split("<<<\n")[1:]
        assert len(answers) == len(commands), done.stdout
        return [answer.strip() for answer in answers]


@pytest.fixture
def debuggee(kernel: Path) -> Iterator[Debuggee]:
    made = Debuggee(kernel)
    with made.session:
        yield made


def test_from_the_first_instruction_to_the_end(debuggee: Debuggee, kernel: Path) -> None:
    answers = debuggee.gdb(
        "info registers rip",
        "x/1i $pc",
        "break far_function",
        "continue",
        "x/1gd &turns",
        "print $rdi",
        "set var *(long *)&calls = 1000",
        "delete",
        "watch *(long *)&datum",
        "continue",
        "delete",
        "rwatch *(long *)&datum",
        "continue",
        "delete",
        "tbreak last_function",
        "continue",
        "x/s &target",
        "stepi",
        "print $pc == (long)&last_function",
        "info threads",
        "monitor info registers",
        "continue",
    )
    said = dict(zip(["first", "code", "break", "reached", "turns", "argument"], answers, strict=False))
    assert "<_start>" in said["first"] and "cld" in said["code"]
    assert "Breakpoint 1" in said["reached"] and str(WAY) in said["turns"] and said["argument"] == "$1 = 5"
    assert "Old value = 0\nNew value = 7" in answers[9]
    assert "Value = 7" in answers[12]
    assert "Temporary breakpoint" in answers[15] and "from here to there" in answers[16]
    assert answers[18] == "$2 = 0" and "vCPU 0" in answers[19] and "cr3=" in answers[20]
    assert f"exited with code {PASS:04o}" in answers[21]
    assert debuggee.session.end(30) == PASS
    assert b"calls 1005" in debuggee.session.transcript


def test_watchpoints_see_strings_ring_3_and_exception_frames(debuggee: Debuggee) -> None:
    answers = debuggee.gdb(
        "break copy",
        "continue",
        "delete",
        "watch *(char *)((char *)&target + 5)",
        "continue",
        "print (char *)$rdi - (char *)&target",
        "delete",
        "watch *(long *)&user_value",
        "continue",
        "print $cs & 3",
        "delete",
        "print $rsp_of_ring_0 = *(long *)((char *)&tss + 4)",
        "watch *(long *)($rsp_of_ring_0 - 8)",
        "continue",
        "print *(long *)($rsp_of_ring_0 - 8) & 3",
        "print $cs & 3",
        "delete",
        "continue",
    )
    assert "New value = 104 'h'" in answers[4] and answers[5] == "$1 = 6"
    assert "New value = 3" in answers[8] and answers[9] == "$2 = 3"
    assert "Old value" in answers[13], "INT pushed SS there"
    assert answers[14].endswith("= 3") and answers[15].endswith("= 0")
    assert f"exited with code {PASS:04o}" in answers[17]


def test_ctrl_c_and_going_on_without_the_debugger(kernel: Path, tmp_path: Path) -> None:
    """Spoken by hand, because gdb takes Ctrl-C from terminals only."""
    debuggee = Debuggee(build(tmp_path, "debuggee", WAY=2_000_000_000))  # a region makes a billion a second
    with debuggee.session, socket.create_connection(("127.0.0.1", debuggee.port), timeout=10) as client:
        client.sendall(frame(b"QStartNoAckMode") + b"+" + frame(b"c"))
        time.sleep(0.3)
        client.sendall(b"\x03")
        said = b""
        while b"$T02" not in said:
            received = client.recv(4096)
            assert received, f"the machine ended: {said!r}"
            said += received
        client.sendall(frame(b"p10"))
        while said.count(b"#") < 3:
            said += client.recv(4096)
        rip = int.from_bytes(bytes.fromhex(said.rpartition(b"$")[2].partition(b"#")[0].decode()), "little")
        assert 0x200000 <= rip < 0x300000
        client.sendall(frame(b"Z0,200000,1") + frame(b"D"))
        assert debuggee.session.end(60) == PASS


def test_single_steps_are_exact_through_every_kind_of_instruction(debuggee: Debuggee) -> None:
    """As many steps at once come to where four times a quarter of them come in another run."""
    answers = debuggee.gdb("break copy", "continue", "delete", "stepi 280", "x/1i $pc", "print $pc", "print $rcx", "kill")
    where = answers[5]
    assert where.startswith("$1 = "), "the guest had not ended"
    second = Debuggee(debuggee._kernel)
    with second.session:
        again = second.gdb("break copy", "continue", "delete", *["stepi 70"] * 4, "x/1i $pc", "print $pc", "print $rcx", "kill")
        assert again[8] == where and again[9] == answers[6]


def test_real_mode_from_the_reset_vector(tmp_path: Path) -> None:
    """Addresses are linear, and code is taken for what it is: 16 bits wide."""
    if shutil.which("gdb") is None or shutil.which("nasm") is None:
        pytest.skip("gdb or nasm is not installed here")
    rom = tmp_path / "cpu.rom"
    subprocess.run(["nasm", "-f", "bin", "-D", "GENERATION=3", "-o", str(rom), str(HERE / "cpu_rom.asm")], check=True, timeout=30)
    debuggee = Debuggee(None, "--firmware", str(rom), "--cpu", "386", "--board", "isapc", "--serial", "null")
    with debuggee.session:
        answers = debuggee.gdb(
            "x/i $pc",
            "stepi",
            "x/2i $pc",
            "break *0xf000c",
            "continue",
            "x/i $pc",
            "watch *(unsigned short *)0x600",
            "continue",
            "print/x *(unsigned short *)0x600",
            "print $cs_base",
            "delete",
            "continue",
        )
        assert "0xfffffff0" in answers[0] and "ljmp" in answers[0]
        assert "0xf0000:\tcli" in answers[2] and "%ax,%ax" in answers[2]
        assert "Breakpoint 1" in answers[4] and "mov    %dx,%bp" in answers[5]
        assert "New value = 4660" in answers[7] and answers[8] == "$1 = 0x1234" and "0xf0000" in answers[9]
        assert "exited with code 07" in answers[11]


def test_a_breakpoint_on_a_further_cpu(tmp_path: Path) -> None:
    """All CPUs stand still, the registers are that CPU's; a step is its own, then all go on."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed here")
    kernel = build(tmp_path, "smp", CPUS=2, X2APIC=1)
    made = Debuggee(kernel, "--kernel", str(kernel), "--cpus", "2")
    with made.session:
        answers = made.gdb(
            "break ap_main",
            "continue",
            "print/x $rsp > (unsigned long)&ap_stacks && $rsp <= (unsigned long)&ap_stacks + 2 * 16384",
            "x/1gd &numbers_seen",
            "delete",
            "stepi 3",
            "x/1i $pc",
            "info threads",
            "continue",
        )
        assert "Breakpoint 1" in answers[1] and answers[2].endswith("= 0x1"), f"{answers}\n{made.session.story()}"
        assert answers[3].split()[-1] == "1", answers
        assert "<ap_main+" in answers[6], answers
        assert "vCPU 1" in answers[7], answers
        assert "exited with code" in answers[8], answers
        assert made.session.end() == PASS, made.session.story()
