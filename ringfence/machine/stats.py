"""The figures of a run, as `--stats` writes them.

    guest_instructions                       exact
    seconds.wall / seconds.cpu               by phase: start, translation, execution, devices, idle; and total
    blocks_translated, blocks_dropped        translation blocks made, and thrown away because their bytes changed
    stencil_forms_compiled                   instruction forms that had to be compiled in this run
    tlb_refills
    exits                                    how often the vCPU left translated code, by kind
    memory                                   host_peak_bytes (resident set), guest_bytes, guest_pages_touched (4 KiB each)
    ended                                    how, exit status and reason, when the machine has ended
    engine                                   everything that the engine itself counts

The machine's thread is timed by phase around the engine; what the engine says it spent on translation and in device code
is taken out of its own running time; the CPU seconds of those two are shared out by wall time.  CPU seconds of `start` are
those of the whole process, all others of that thread.  Of several vCPUs the machine's thread runs the first only; counts are those
of all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringfence.core.errors import UserError
from ringfence.core.late import LateModule
from ringfence.core.record import Record
from ringfence.core.units import KIB
from ringfence.engine.api import Engine
from ringfence.machine.executor import DeviceThread
from ringfence.machine.spec import MachineSpec
from ringfence.machine.status import ExitStatus
from ringfence.memory.guest_memory import GuestMemory

if TYPE_CHECKING:
    import json
    import tempfile
else:  # for --stats
    json = LateModule("json")
    tempfile = LateModule("tempfile")

_COUNTERS = ("guest_instructions", "blocks_translated", "blocks_dropped", "stencil_forms_compiled", "tlb_refills")


class RunFigures(Record):
    loop: DeviceThread
    engines: Sequence[Engine]
    memory: GuestMemory
    spec: MachineSpec
    status: ExitStatus | None


def assemble(run: RunFigures) -> dict[str, Any]:
    figures = [engine.stats() for engine in run.engines]
    engine = functools.reduce(added, figures)
    own_wall: dict[str, float] = figures[0].get("seconds", {})
    wall_ns, cpu_ns = run.loop.times.wall_ns, run.loop.times.cpu_ns
    # Engines tell wall time.  Nothing inside of `run` sleeps, so its parts had the CPU in the same proportion as the whole.
    share = min(1.0, cpu_ns["run"] / wall_ns["run"]) if wall_ns["run"] else 0.0
    own_cpu = {phase: seconds * share for phase, seconds in own_wall.items()}
    result: dict[str, Any] = {name: engine.get(name, 0) for name in _COUNTERS}
    result["seconds"] = {
        "wall": _phases(wall_ns, own_wall),
        "cpu": _phases(cpu_ns, own_cpu),
    }
    exits = dict(engine.get("exits", {}))
    for name, count in run.loop.exits.items():
        exits[name] = max(count, exits.get(name, 0))
    result["exits"] = exits
    result["memory"] = {
        "host_peak_bytes": host_peak_bytes(),
        "guest_bytes": run.memory.size_bytes,
        "guest_pages_touched": run.memory.pages_touched(),
    }
    result["machine"] = {"engine": run.engines[0].name, "board": run.spec.board, "cpu": run.spec.cpu, "cpus": run.spec.cpus}
    if run.status is not None:
        result["ended"] = {"how": run.status.ending.value, "status": run.status.code, "reason": run.status.reason}
    result["engine"] = engine
    return result


def added(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The sums of two engines' figures, dictionaries within them included."""
    result = dict(first)
    for name, value in second.items():
        if isinstance(value, dict):
            result[name] = added(result.get(name, {}), value)
        else:
            result[name] = result.get(name, 0) + value
    return result


def host_peak_bytes() -> int:
    """The most memory that this process has had resident.  getrusage(2) would tell the size of the process that started this one,
    where that was larger: the maximum that it keeps outlives execve(2)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    return 0  # a kernel without it, proc(5)


def _phases(loop_ns: dict[str, int], engine_s: dict[str, float]) -> dict[str, float]:
    translation, inside_devices = float(engine_s.get("translation", 0.0)), float(engine_s.get("devices", 0.0))
    seconds = {
        "start": loop_ns["start"] / 1e9,
        "translation": translation,
        "execution": max(0.0, loop_ns["run"] / 1e9 - translation - inside_devices),
        "devices": loop_ns["devices"] / 1e9 + inside_devices,
        "idle": loop_ns["idle"] / 1e9,
    }
    seconds["total"] = sum(seconds.values())
    return {name: round(value, 6) for name, value in seconds.items()}


def write_stats(path: Path, figures: dict[str, Any]) -> None:
    """Writes the file in one step: a reader sees the old one or the whole new one.  Raises UserError."""
    text = json.dumps(figures, indent=2, sort_keys=True, default=str) + "\n"
    try:
        if path.exists() and not path.is_file():  # a pipe or /dev/stdout cannot be replaced
            path.write_text(text)
            return
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".ringfence-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"The statistics cannot be written to {path}: {error}.", "Give --stats a file that can be written.") from error
