"""Small guests of our own: bare-metal kernels in C and assembly, built by the machine's gcc while a test runs.

A test kernel is one C file with `int guest_main(void)`.  It is entered in 64-bit mode with its own page tables, descriptor
tables and interrupt stubs (see bare.h), prints to the serial line, and ends the machine through the debug-exit port with
the value that `guest_main` returns: `PASS` where all went well.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.paths import cache_folder
from tests.guest.session import REPOSITORY, Session

HERE = Path(__file__).parent
PASS = 42 << 1 | 1
FAIL = 1 << 1 | 1
CRASHED, POWER_OFF, TIMEOUT = 70, 0, 124
_FLAGS = (
    "-O1 -std=gnu11 -ffreestanding -fno-builtin -fno-pic -fno-pie -no-pie -fno-stack-protector -mno-red-zone -mgeneral-regs-only"
    " -fcf-protection=none -fno-asynchronous-unwind-tables -mcmodel=small -nostdlib -static -Wall -Wextra"
    " -Werror -Wno-sign-compare -Wno-unused-function -Wno-unused-variable"
    " -Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments"
).split()


def build(folder: Path, program: str, **defines: int) -> Path:
    """The kernel made from `program`.c beside this file, with macros defined; skips where there is no gcc."""
    kernel = folder / "-".join([program, *(f"{k}{v}" for k, v in defines.items())])
    sources = [str(HERE / name) for name in ("start.S", "bare.c", f"{program}.c")]
    command = ["gcc", *_FLAGS, "-T", str(HERE / "kernel.ld"), *(f"-D{k}={v}" for k, v in defines.items()), "-o", str(kernel), *sources]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("gcc is not installed here")
    if done.returncode and "unrecognized" in done.stderr and "linker" not in done.stderr:
        command.remove("-Wl,--no-warn-rwx-segments")  # a linker older than 2.39
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return kernel


@functools.cache
def _prepare() -> None:
    """What the first run on a host compiles is no part of any guest's time."""
    code = "from ringfence.engine.emulate import prepare; prepare()"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=600, capture_output=True)


def cache_copy(folder: Path) -> dict[str, str]:
    """Environment for guests whose odd instructions should not stay in the user's cache."""
    _prepare()
    shutil.copytree(cache_folder(), folder / "cache", ignore=lambda _, names: [n for n in names if not n.endswith(".bin")])
    (folder / "cache").chmod(0o700)
    return {"RINGFENCE_CACHE": str(folder / "cache")}


@dataclass
class Run:
    """How a guest ended.  `status` is the command's exit status, negative when a signal killed the monitor."""

    status: int
    console: str
    messages: str
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def story(self) -> str:
        return f"status {self.status}\n--- console ---\n{self.console[-2000:]}\n--- messages ---\n{self.messages[-4000:]}"

    def sound(self, peak_bytes: int) -> Run:
        """The monitor is whole: no signal, no fault of its own, memory bounded."""
        assert self.status >= 0, f"the monitor was killed by signal {-self.status}\n{self.story}"
        assert "fault in the monitor" not in self.messages and "Traceback" not in self.messages, self.story
        if self.stats:
            assert self.stats["memory"]["host_peak_bytes"] < peak_bytes, self.story
        return self


def run(
    kernel: Path,
    *arguments: str,
    timeout_s: float = 30,
    board: str = "microvm",
    memory: str = "64M",
    environment: dict[str, str] | None = None,
    module: str = "ringfence",
) -> Run:
    """Runs a kernel in a monitor process of its own; `timeout_s` is the guest's, the process gets 20 s more."""
    _prepare()
    stats = kernel.with_suffix(".stats")
    stats.unlink(missing_ok=True)
    options = ["--board", board, "--memory", memory, "--timeout", str(timeout_s), "--stats", str(stats), "--device", "debug-exit"]
    with Session("--kernel", str(kernel), *options, *arguments, environment=environment, module=module) as session:
        status = session.end(timeout_s + 20)
        console, messages = session.transcript.decode(errors="replace"), session.errors
    return Run(status, console, messages, json.loads(stats.read_text()) if stats.exists() else {})


def run_program(folder: Path, program: str, *arguments: str, **defines: int) -> Run:
    """Builds and runs a kernel that must pass."""
    result = run(build(folder, program, **defines), *arguments).sound(1 << 30)
    assert result.status == PASS, result.story
    return result
