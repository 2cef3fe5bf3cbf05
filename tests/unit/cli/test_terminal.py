"""The terminal comes back as it was, even when the process is killed; progress is told on standard error only."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ringfence.cli.progress import ProgressLine

ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, sys, time, tty
from ringfence.cli.terminal_guard import TerminalGuard
with TerminalGuard():
    tty.setraw(0)
    print("raw", flush=True)
    if sys.argv[1] == "sleep":
        time.sleep(60)
"""


@pytest.mark.parametrize("ending", ["kill", "normal"])
def test_terminal_guard(ending: str) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    argument = "sleep" if ending == "kill" else "leave"
    command = [sys.executable, "-c", PROGRAM, argument]
    child = subprocess.Popen(command, stdin=slave, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"raw\n"
        if ending == "kill":
            child.kill()
        child.wait(20)
        deadline = time.monotonic() + 5
        # In good order the guard leaves the terminal alone: whoever changed it has put it back already.
        while ending == "kill" and termios.tcgetattr(slave) != before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (termios.tcgetattr(slave) == before) == (ending == "kill")
        assert child.stdout.read() == b"", "the guard must not hold the output open"
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close() if child.stdout else None
        os.close(master)
        os.close(slave)


def test_progress_off_a_terminal_is_a_line_every_tenth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringfence.cli.progress._QUIET_S", 0.0)
    with ProgressLine() as progress:
        for done in range(1001):
            progress.report("stencils", done, 1000)
    captured = capsys.readouterr()
    assert captured.out == "" and 10 <= len(captured.err.splitlines()) <= 12


def test_progress_says_nothing_when_nothing_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine() as progress:
        progress.report("stencils", 1000, 1000)
    assert capsys.readouterr().err == ""
