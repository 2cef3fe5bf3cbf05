"""Ringfence beside QEMU's TCG: the same kernel, initramfs, memory and one CPU, in turn, A B A B.

scripts/bench                        everything, three times; writes docs/bench.md and docs/images/bench-*.png
scripts/bench --quick                once, small sizes, to the screen: whether the bench works, not how fast anything is
scripts/bench --part compute --runs 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import block, boot, compute, cpus, idle, page, plots, sides
from bench.context import Context
from bench.figures import BenchError, Row
from tests.guest import guests

PARTS: dict[str, ModuleType] = {"boot": boot, "compute": compute, "cpus": cpus, "idle": idle, "block": block}
RUNS = 3
FAILED = 1
RAW = "build/bench.json"
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "gcc": "gcc and libc6-dev", "taskset": "util-linux"}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated; the page keeps the others")
    parser.add_argument("--runs", type=int, default=None, help=f"repetitions (default {RUNS})")
    parser.add_argument("--quick", action="store_true", help="small and once; writes nothing unless told where")
    parser.add_argument("--cpu", default=str(max(os.sched_getaffinity(0))), help="the host's CPU for machines with one vCPU")
    parser.add_argument("--output", type=Path, help="folder of bench.md and images/ (default docs)")
    parser.add_argument("--json", type=Path, help=f"raw figures; parts not run are taken from it (default {RAW})")
    return parser.parse_args()


def main() -> int:
    asked = options()
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        print(f"bench: these packages are missing: {', '.join(missing)}", file=sys.stderr)
        return FAILED
    chosen = asked.part or list(PARTS)
    runs = asked.runs or (1 if asked.quick else RUNS)
    output = asked.output or (None if asked.quick else sides.ROOT / "docs")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    measured: dict[str, list[Row]] = {}
    about = _about() | {"parts": {}}
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as work, Progress(*columns, console=console) as progress:
        task = progress.add_task("bench")
        context = Context(
            work=Path(work),
            cpu=asked.cpu,
            cpus=[str(cpu) for cpu in sorted(os.sched_getaffinity(0))],
            runs=runs,
            quick=asked.quick,
            # Where there is no terminal for a bar, lines.
            step=lambda text: progress.update(task, description=text) if console.is_terminal else console.print(text, highlight=False),
            advance=lambda: progress.advance(task),
        )
        progress.update(task, total=sum(PARTS[part].steps(context) for part in chosen))
        for part in chosen:
            context.notes = []
            about["parts"][part] = _now(runs) | {"notes": context.notes}
            try:
                measured[part] = PARTS[part].run(context)
            except (guests.Unavailable, pytest.skip.Exception) as reason:
                context.note(f"{part}: {reason}")
                measured[part] = []
            except BenchError as error:
                progress.stop()
                print(f"bench: {part}: {error}", file=sys.stderr)
                return FAILED
    if raw := asked.json or (None if asked.quick else sides.ROOT / RAW):
        measured = _joined(raw, about, measured)
    pictures: list[str] = []
    if output:
        if plots.available():
            pictures = plots.draw(measured, output / "images")
        else:
            print(f"bench: {plots.REMEDY}", file=sys.stderr)
    text = page.page(about, measured, pictures)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "bench.md").write_text(text)
    print(text, end="")
    return 0


def _about() -> dict[str, Any]:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "qemu": sides.qemu_version().partition(" (")[0],
        "python": platform.python_version(),
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
    }


def _now(runs: int) -> dict[str, Any]:
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=sides.ROOT, capture_output=True, text=True, check=False)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return {"runs": runs, "when": when, "commit": git.stdout.strip() or "unknown", "load": f"{os.getloadavg()[0]:.1f}"}


def _joined(path: Path, about: dict[str, Any], measured: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """All parts: those of an earlier run that were not measured now, too.  Writes the file anew."""
    before = json.loads(path.read_text()) if path.exists() else {"about": {"parts": {}}, "rows": {}}
    rows = {part: [Row(**row) for row in found] for part, found in before["rows"].items()} | measured
    about["parts"] = before["about"]["parts"] | about["parts"]
    rows = {part: rows[part] for part in PARTS if part in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "rows": {part: [row.to_dict() for row in found] for part, found in rows.items()}}))
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
