"""The programs of the bench: built here, run natively here and in guests; the lines that they print."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.figures import BenchError
from bench.process import Followed, Moment

SOURCES = Path(__file__).parent / "guest"
USER, SYSTEM = "user space", "system"
OWN = {
    "integer": USER,
    "sieve": USER,
    "matmul": USER,
    "memcopy": USER,
    "triad": USER,
    "sha256": USER,
    "quicksort": USER,
    "dispatch": USER,
    "chase": USER,
    "getppid": SYSTEM,
    "faults": SYSTEM,
    "fork": SYSTEM,
    "forkexec": SYSTEM,
    "pingpong": SYSTEM,
}

_BEGIN, _END = re.compile(r"begin (\S+)$"), re.compile(r"end (\S+) ([0-9a-f ]+)$")
_RATE = re.compile(r"rate (\S+) ([0-9.]+)k$")


@dataclass(frozen=True)
class Outcome:
    """What a program told, and what the host's clocks said between its two lines."""

    words: list[str]
    host: Moment
    rate: float | None = None  # MB/s, from a line "rate NAME 123.4k", as `openssl speed` tells it

    @property
    def seconds(self) -> float:
        return int(self.words[0]) / 1e9

    @property
    def checksum(self) -> str:
        return self.words[1]


def build(name: str, folder: Path, *options: str) -> Path:
    """A static program.  Raises BenchError with the compiler's words."""
    program = folder / name
    command = ["gcc", "-O2", "-Wall", "-static", "-s", *options, "-o", str(program), str(SOURCES / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise BenchError(f"{name}.c could not be compiled (needs gcc and libc6-dev):\n{done.stderr}")
    return program


def follow(process: Followed, wanted: list[str], seen: Callable[[str], None]) -> dict[str, Outcome]:
    """Reads "begin NAME" and "end NAME WORD ..." until all wanted ones have come."""
    begun: dict[str, Moment] = {}
    found: dict[str, Outcome] = {}
    while len(found) < len(wanted):
        item = process.line()
        if item is None:
            missing = ", ".join(name for name in wanted if name not in found)
            raise BenchError(f"no figures of {missing}; the end of the output:\n{process.transcript[-3000:].decode(errors='replace')}")
        if match := _BEGIN.search(item[0]):
            begun[match[1]] = item[1]
            continue
        if (match := _END.search(item[0])) and match[1] in begun:
            name = match[1]
            found[name] = Outcome(match[2].split(), item[1] - begun[name])
        elif (match := _RATE.search(item[0])) and match[1] in begun:
            name = match[1]
            found[name] = Outcome([], item[1] - begun[name], float(match[2]) / 1000)
        else:
            continue
        seen(name)
    return found
