"""Pictures of a run: speed beside QEMU's and beside native, and times to user space."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import NATIVE, OURS, QEMU, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REMEDY = "the pictures need matplotlib: pip install -e '.[bench]'"
_OURS, _QEMU, _LINE = "#1f6f8b", "#d08c3c", "#555555"
_WIDTH_IN, _BAR_IN, _DPI = 8.0, 0.34, 110


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(parts: dict[str, list[Row]], folder: Path) -> list[str]:
    """Writes bench-*.png into the folder; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for part in ("compute", "cpus", "block") for row in parts.get(part, []) if row.unit != "x"]
    made = [
        _ratios(rows, QEMU, "Speed against QEMU's TCG (above 1: faster)", folder / "bench-tcg.png"),
        _ratios(rows, NATIVE, "Speed against native (1 = native)", folder / "bench-native.png"),
        _times(parts.get("boot", []), folder / "bench-boot.png"),
    ]
    return [name for name in made if name]


def _ratios(rows: list[Row], other: str, title: str, path: Path) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    speeds = {row.name: speed for row in rows if (speed := row.speed(OURS, other)) is not None}
    beside = {row.name: speed for row in rows if (speed := row.speed(QEMU, other)) is not None} if other == NATIVE else {}
    if not speeds:
        return ""
    names = list(speeds)
    figure = Figure(figsize=(_WIDTH_IN, 1.2 + _BAR_IN * len(names) * (1.5 if beside else 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.4 if beside else 0.7
    colors = [_OURS if beside or speeds[name] >= 1 else _QEMU for name in names]  # without a neighbour, who is faster
    places = range(len(names))
    bars = axes.barh([k - height / 2 if beside else k for k in places], [speeds[n] for n in names], height, color=colors, label="Ringfence")
    axes.bar_label(bars, fmt="%.2g", padding=3, fontsize=8)
    if beside:
        bars = axes.barh([k + height / 2 for k in places], [beside.get(n, 0.0) for n in names], height, color=_QEMU, label="QEMU TCG")
        axes.bar_label(bars, fmt="%.2g", padding=3, fontsize=8)
        axes.legend(loc="lower right")
    axes.set_xscale("log")
    axes.axvline(1.0, color=_LINE, linewidth=1)
    axes.xaxis.set_major_locator(LogLocator(base=10 if beside else 2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    return _finished(figure, axes, names, title, path)


def _times(rows: list[Row], path: Path) -> str:
    from matplotlib.figure import Figure

    if not rows:
        return ""
    figure = Figure(figsize=(_WIDTH_IN, 1.2 + 1.6 * _BAR_IN * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.4
    for side, label, color, shift in ((OURS, "Ringfence", _OURS, -height / 2), (QEMU, "QEMU TCG", _QEMU, height / 2)):
        found = [(k, row.median(side), row.values[side]) for k, row in enumerate(rows) if row.values.get(side)]
        middles = [middle for _, middle, _ in found if middle is not None]
        ranges = [(middle, min(values), max(values)) for middle, (_, _, values) in zip(middles, found, strict=True)]
        spread = [[middle - least for middle, least, _ in ranges], [most - middle for middle, _, most in ranges]]
        bars = axes.barh([k + shift for k, _, _ in found], middles, height, xerr=spread, color=color, label=label, ecolor=_LINE)
        axes.bar_label(bars, fmt="%.2f", padding=6, fontsize=8)
    axes.legend(loc="lower right")
    title = "Seconds from the command to the mark (median, least and most)"
    return _finished(figure, axes, [row.name for row in rows], title, path)


def _finished(figure: Figure, axes: Axes, names: list[str], title: str, path: Path) -> str:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.3, -0.7)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=_DPI)
    return path.name
