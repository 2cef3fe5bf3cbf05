"""Where a guest's time goes: samples of the host's CPU clock by guest function, run-time function, Python function.

    python bench/profile.py [--symbols FILE] [--top 40] [--blocks] -- --kernel vmlinux --initrd … --append "… nokaslr"

Runs `ringfence run` with what stands behind `--` under `perf record` (package linux-perf; a timer is enough, no hardware counters
are needed), and names what it cannot name: code regions have no symbols.  Translated code is named after the guest's function
(`--symbols`: lines of /proc/kallsyms or a System.map of a kernel that is not moved by KASLR), with `user` for all that runs at
CPL 3; stubs and the run time by their own names; native bodies by their instruction.  Instructions that the interpreter executed
are counted by name.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import pickle
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

RATE_HZ = 4999
KERNEL_BASE = 0xFFFF_FFFF_8000_0000  # where Linux maps physical address 0 for its own code
_SAMPLE = re.compile(r"^\s*([0-9a-f]+)\s+(.*?)\s*\((.*)\)\s*$")


def run_inside(table: Path, arguments: list[str]) -> None:
    """In the profiled process: the command itself; its code regions are described when the engine is closed."""
    from ringfence.engine.assist import Assistant
    from ringfence.engine.emulate import EmulateEngine

    interpreted: collections.Counter[str] = collections.Counter()
    interpret, close = Assistant._interpret, EmulateEngine.close

    def counted(self: Assistant, decoded: Any) -> Any:
        interpreted[decoded.form.name] += 1
        return interpret(self, decoded)

    def described(self: EmulateEngine) -> None:
        code = self._code
        words = code.blocks32[: 16 * code.next_block]
        blocks = [(words[k + 2], words[k + 3], words[k] | words[k + 1] << 32, words[k + 8]) for k in range(16, len(words), 16)]
        natives = {f"body: {form[0]}": at for form, at in code.natives.items()}
        marks = {**self._symbols, **natives}
        table.write_bytes(pickle.dumps((code.rx, len(code.code), marks, sorted(blocks), dict(interpreted))))
        close(self)

    Assistant._interpret, EmulateEngine.close = counted, described  # type: ignore[method-assign]
    sys.argv = ["ringfence", "run", *arguments]
    runpy.run_module("ringfence", run_name="__main__")


class Names:
    """Names of host addresses inside of the code region."""

    def __init__(self, table: Path, symbols: Path | None, by_block: bool) -> None:
        self.rx, self.size, marks, self.blocks, self.interpreted = pickle.loads(table.read_bytes())
        self._marks: list[tuple[int, str]] = sorted((at, name) for name, at in marks.items())
        self._starts = [b[0] for b in self.blocks]
        self._guest: list[tuple[int, str]] = []
        self._by_block = by_block
        if symbols is not None:
            for line in symbols.read_text().splitlines():
                fields = line.split()
                if len(fields) >= 3 and fields[1] in "tTwW":
                    self._guest.append((int(fields[0], 16), fields[2]))
            self._guest.sort()

    def guest(self, ra: int, mode: int) -> str:
        where = f" {ra:#x}" if self._by_block else ""
        if mode & 3 == 1:
            return "user" + where
        k = bisect.bisect_right(self._guest, (ra + KERNEL_BASE, "\x7f")) - 1
        return ("guest: " + self._guest[k][1] if k >= 0 else "guest") + where

    def of(self, address: int) -> str | None:
        offset = address - self.rx
        if not 0 <= offset < self.size:
            return None
        k = bisect.bisect_right(self._starts, offset) - 1
        if k >= 0 and offset < self.blocks[k][0] + self.blocks[k][1]:
            return self.guest(self.blocks[k][2], self.blocks[k][3])
        if offset < self._marks[0][0]:
            return "cold thunks"
        k = bisect.bisect_right(self._marks, (offset, "\x7f")) - 1
        return "run time: " + self._marks[k][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=Path)
    parser.add_argument("--top", type=int, default=40)
    parser.add_argument("--blocks", action="store_true", help="each block of guest code by itself")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, table = Path(folder) / "perf.data", Path(folder) / "table"
        inner = [sys.executable, __file__, "--inside", str(table), *options.arguments]
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(RATE_HZ), "-o", str(data), "--", *inner]
        subprocess.run(record, stdin=subprocess.DEVNULL, check=False)
        text = subprocess.run(["perf", "script", "-i", str(data), "-F", "ip,sym,dso"], capture_output=True, text=True, check=True).stdout
        names = Names(table, options.symbols, options.blocks)
    found: collections.Counter[str] = collections.Counter()
    groups: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        if (match := _SAMPLE.match(line)) is None:
            continue
        name = names.of(int(match[1], 16))
        if name is None:
            library = match[3].rsplit("/", 1)[-1]
            host_kernel = "kernel" in match[3] or match[1].startswith("ffff")
            name = f"host kernel: {match[2]}" if host_kernel else f"{library}: {match[2]}"
            groups["host kernel" if host_kernel else "Python and libraries"] += 1
        else:
            groups[name.split(":")[0].split(" 0x")[0]] += 1
        found[name] += 1
    total = found.total()
    print(f"{total} samples, {total / RATE_HZ:.2f} s of CPU")
    for counter, most in ((groups, 20), (found, options.top)):
        print()
        for name, count in counter.most_common(most):
            print(f"{100 * count / total:6.2f} %  {count / RATE_HZ:7.3f} s  {name}")
    print("\ninstructions in the interpreter:")
    for name, count in collections.Counter(names.interpreted).most_common(options.top):
        print(f"{count:9}  {name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        run_inside(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
