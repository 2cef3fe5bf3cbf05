"""The page of a run in Markdown: targets, a table by part, what was left out."""

from __future__ import annotations

from typing import Any

from bench.figures import NATIVE, OURS, QEMU, Row, geometric_mean
from bench.targets import Rows, targets, user_programs

TITLES = {
    "boot": "Boot",
    "compute": "Programs inside of the guest",
    "cpus": "Two vCPUs",
    "idle": "An idle guest, and memory",
    "block": "virtio-blk",
}

HOW = {
    "boot": "From the start of the command to the mark in its output. Cold: without the cache of translations; warm: with what earlier"
    " boots left in it. The stencils, compiled once per host, are there in both.",
    "compute": "One boot runs all of them; by the guest's clock, which is held against the host's. Checksums are the same natively, in"
    " QEMU and here. `bench/guest/` has the sources; openssl, sqlite3 and python3 are the distribution's files, with its libraries.",
    "cpus": "A guest with two vCPUs on two CPUs of the host. Busy programs are pinned to a vCPU each; two threads share lock and counter.",
    "idle": "CPU time of the monitor while the guest sleeps. Memory: what is resident in the monitor (and its helpers), from"
    " /proc/PID/smaps, without the mappings of the guest's RAM, which is a memfd on both sides, some seconds after the guest has come to"
    " rest; shared libraries count whole, pages that a monitor has mapped twice once. The second guest: growth of the sum of both monitors'"
    " proportional shares (PSS), when the same guest is started beside the first.",
    "block": "A program of our own, O_DIRECT, on the first part of a raw image in the host's page cache; virtio-blk on PCI on both sides.",
}


def page(run: dict[str, Any], parts: dict[str, list[Row]], pictures: list[str]) -> str:
    rows: Rows = {row.name: row for part in parts.values() for row in part}
    lines = ["# Ringfence beside QEMU's TCG", "", "Made by `scripts/bench`; do not edit.", "", _about(run), "", "## Targets", ""]
    lines += ["| what | target | measured | by host CPU | met |", "|---|---|---|---|---|"]
    for target in targets(rows):
        met = {True: "yes", False: "**no**", None: "–"}[target.met]
        lines.append(f"| {target.what} | {target.goal} | {target.measured} | {target.by_cpu or '–'} | {met} |")
    lines += ["", *(f"![{name}](images/{name})" for name in pictures)]
    for part, found in parts.items():
        if found:
            lines += ["", f"## {TITLES[part]}", "", HOW[part], "", _measured(run["parts"][part]), "", *table(found)]
        if part == "compute":
            lines += _means(rows)
    if notes := [note for part in parts for note in run["parts"][part].get("notes", [])]:
        lines += ["", "## Left out", "", *(f"* {note}" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def table(rows: list[Row]) -> list[str]:
    """Medians with the range; a speed above 1 is better."""
    native = any(NATIVE in row.values for row in rows)
    head = ["what", "unit", *(["native"] if native else []), "QEMU TCG", "Ringfence", *(["speed × native"] if native else [])]
    head += ["speed × TCG", "by host CPU"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [row.name, row.unit, *([_values(row, NATIVE)] if native else []), _values(row, QEMU), _values(row, OURS)]
        cells += [_ratio(row.speed(OURS, NATIVE))] if native else []
        cells += [_ratio(row.speed(OURS, QEMU)), _ratio(row.speed(OURS, QEMU, by_cpu=True))]
        lines.append(_line(cells))
    return lines


def _means(rows: Rows) -> list[str]:
    lines = [""]
    for label, by_cpu in (("wall time", False), ("CPU time of the host", True)):
        speeds = [speed for row in user_programs(rows) if (speed := row.speed(OURS, QEMU, by_cpu)) is not None]
        if (mean := geometric_mean(speeds)) is not None:
            lines.append(f"Geometric mean of the user-space programs by {label}: {mean:.2f}x QEMU's speed ({len(speeds)} programs).")
    return lines


def _about(run: dict[str, Any]) -> str:
    return (
        f"{run['qemu']}; Python {run['python']}; {run['processor']}, {run['processors']} CPUs; Linux {run['kernel']}."
        " Machines with one vCPU were pinned to one CPU. Both sides had the same kernel ELF, initramfs and memory, and ran in turn;"
        " QEMU's CPU model was given what ours tells (no AES, SHA or AVX instructions, which native runs may use)."
        " Medians (least–most). A speed above 1 is better; *by host CPU* is the same from the CPU seconds that the process took,"
        " which other work on the host disturbs less."
    )


def _measured(part: dict[str, Any]) -> str:
    return f"{part['runs']} run{'s' * (part['runs'] != 1)} in turn, {part['when']}, commit {part['commit']}, load before: {part['load']}."


def _values(row: Row, side: str) -> str:
    values = row.values.get(side)
    if not values:
        return "–"
    middle = row.median(side)
    assert middle is not None
    return f"{_number(middle)} ({_number(min(values))}–{_number(max(values))})" if len(values) > 1 else _number(middle)


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
