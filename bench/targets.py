"""What the bench's figures are held against: the targets of the project, as ratios to QEMU's TCG of the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench import boot, cpus, idle
from bench.figures import OURS, QEMU, Row, geometric_mean
from bench.programs import OWN, SYSTEM, USER

Rows = dict[str, Row]


@dataclass(frozen=True)
class Target:
    what: str
    goal: str
    measured: str
    met: bool | None  # None: not measured
    by_cpu: str = ""  # the same by the host's CPU time


def user_programs(rows: Rows) -> list[Row]:
    """Our own programs and those of packages; the host's rates and times of the kernel's services are not among them."""
    return [row for row in rows.values() if row.group in (USER, "packages")]


def targets(rows: Rows) -> list[Target]:
    return [
        _time_ratio(rows, "Cold boot to user space", boot.DEBIAN + boot.COLD_SUFFIX, 1.0),
        _time_ratio(rows, "Warm boot", boot.DEBIAN + boot.WARM_SUFFIX, 0.5),
        *_user_space(rows),
        _speed(rows, "Double matmul", "matmul", 8.0),
        _speed(rows, "Stream triad", "triad", 1.5),
        *(_speed(rows, f"System-bound: {name}", name, 1.5) for name, kind in OWN.items() if kind == SYSTEM),
        _figure(rows, "Two vCPUs against one, two busy programs", cpus.SCALING, "at least", 1.8, "x"),
        _figure(rows, "Memory beyond guest pages touched, first guest", idle.FIRST, "at most", 60.0, "MiB"),
        _figure(rows, "Memory of each further guest of the same image", idle.SECOND, "at most", 25.0, "MiB"),
        _figure(rows, "Start of the monitor to first guest instruction", boot.START + boot.WARM_SUFFIX, "at most", 0.25, "s"),
        _speed(rows, "virtio-blk, 4 KiB random read", "4 KiB random read", 1.0),
    ]


def _missing(what: str, goal: str) -> Target:
    return Target(what, goal, "not measured", None)


def _speeds(rows: Rows, name: str) -> tuple[float | None, float | None]:
    row = rows.get(name)
    return (row.speed(OURS, QEMU), row.speed(OURS, QEMU, by_cpu=True)) if row else (None, None)


def _time_ratio(rows: Rows, what: str, name: str, limit: float) -> Target:
    goal = f"at most {limit:g}x its time"
    speed, by_cpu = _speeds(rows, name)
    if speed is None:
        return _missing(what, goal)
    return Target(what, goal, f"{1 / speed:.2f}x", 1 / speed <= limit, f"{1 / by_cpu:.2f}x" if by_cpu else "")


def _speed(rows: Rows, what: str, name: str, limit: float) -> Target:
    goal = f"at least {limit:g}x its speed"
    speed, by_cpu = _speeds(rows, name)
    if speed is None:
        return _missing(what, goal)
    return Target(what, goal, f"{speed:.2f}x", speed >= limit, f"{by_cpu:.2f}x" if by_cpu else "")


def _figure(rows: Rows, what: str, name: str, word: str, limit: float, unit: str) -> Target:
    goal = f"{word} {limit:g} {unit}"
    value = rows[name].median(OURS) if name in rows else None
    if value is None:
        return _missing(what, goal)
    cpu = rows[name].cpu.get(OURS)
    holds: Callable[[float, float], bool] = float.__ge__ if word == "at least" else float.__le__
    by_cpu = f"{statistics.median(cpu):.2f} {unit}" if cpu else ""
    return Target(what, goal, f"{value:.2f} {unit}", holds(float(value), float(limit)), by_cpu)


def _user_space(rows: Rows) -> list[Target]:
    goals = "at least 2x its speed", "at least 0.95x its speed"
    speeds, by_cpu = (
        {row.name: speed for row in user_programs(rows) if (speed := row.speed(OURS, QEMU, cpu)) is not None} for cpu in (False, True)
    )
    mean, cpu_mean = geometric_mean(list(speeds.values())), geometric_mean(list(by_cpu.values()))
    names = "Compute, geometric mean of the user-space programs", "Compute, the slowest of them"
    if mean is None:
        return [_missing(what, goal) for what, goal in zip(names, goals, strict=True)]
    return [
        Target(names[0], goals[0], f"{mean:.2f}x", mean >= 2.0, f"{cpu_mean:.2f}x" if cpu_mean else ""),
        Target(names[1], goals[1], _least(speeds), min(speeds.values()) >= 0.95, _least(by_cpu)),
    ]


def _least(speeds: dict[str, float]) -> str:
    name = min(speeds, key=lambda name: speeds[name], default="")
    return f"{speeds[name]:.2f}x ({name})" if name else ""
