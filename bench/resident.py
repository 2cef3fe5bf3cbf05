"""Memory of a process by what it is for, from /proc/PID/smaps (proc(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bench.process import family

_KIB_IN_MIB = 1024
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$")


@dataclass(frozen=True)
class Resident:
    """MiB: of the guest's RAM, and of everything else; `rss` counts pages of files whole, `pss` by the number of those who share them.

    Both count a memfd's pages once, which no other process has: translated code is mapped twice, to be written and to be executed."""

    guest: float
    rss: float
    pss: float


def resident(pid: int, guest_ram: re.Pattern[str]) -> Resident:
    """Of a process and its descendants.  `guest_ram` matches the names of the mappings that are the guest's RAM, a memfd's."""
    guest = rss = pss = 0
    inside = own = False
    for line in (line for member in family(pid) for line in _mappings(member)):
        if match := _MAPPING.match(line):
            inside, own = bool(guest_ram.search(match[1])), "memfd:" in match[1]
        elif line.startswith(("Rss:", "Pss:")):
            size, whole = int(line.split()[1]), line.startswith("Rss:")
            if inside:
                guest += size * whole
            else:
                rss += size * (whole != own)
                pss += size * (not whole)
    return Resident(guest / _KIB_IN_MIB, rss / _KIB_IN_MIB, pss / _KIB_IN_MIB)


def _mappings(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []  # a descendant that has just ended
