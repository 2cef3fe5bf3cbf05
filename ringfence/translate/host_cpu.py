"""Which instruction-set extensions of this host generated code may use."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ringfence.core.late import LateModule

if TYPE_CHECKING:
    import llvmlite.binding as llvm
else:  # only where Linux does not tell
    llvm = LateModule("llvmlite.binding")

# LLVM's name, and the kernel's (arch/x86/include/asm/cpufeatures.h)
_OPTIONAL = {"bmi": "bmi1", "bmi2": "bmi2", "lzcnt": "abm", "popcnt": "popcnt"}
_FIRST_CPU_BYTES = 8192  # of /proc/cpuinfo, which takes long to read whole on a large host


def _kernel_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            text = file.read(_FIRST_CPU_BYTES).decode("ascii", "replace")
    except OSError:
        return frozenset()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


@functools.cache
def host_features() -> str:
    """In LLVM's notation.  LLVM could be asked, but loading it takes longer than everything else that a start does with the cache."""
    flags = _kernel_flags()
    if flags:
        names = [name for name, flag in _OPTIONAL.items() if flag in flags]
    else:
        host = llvm.get_host_cpu_features()
        names = [name for name in _OPTIONAL if host.get(name)]
    return ",".join(["+cx16", *(f"+{name}" for name in names)])
