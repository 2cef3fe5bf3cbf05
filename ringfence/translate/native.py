"""A small typed subset of Python, compiled with LLVM: the language of the native run time.

    @native
    def tlb_entry(cpu, va, table):
        return cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)

Every value is an unsigned 64-bit integer; arithmetic wraps, `//`, `%`, `>>` and comparisons are unsigned, `slt` and `sar`
are the signed ones.  Statements: assignment, `if`, `while`, `return`, `break`, `continue`, calls.  Names that are not
parameters or locals are looked up in the function's globals and folded to constants.  Memory: `ld8 … ld64(address)`,
`st8 … st64(address, value)`, `or32`, `and32(address, bits)` and `cas32`, `cas64(address, expected, new)` (atomic;
what was there before), `copy_forward(to, from, bytes)`, `fill64(to, value, count)`, `invoke(function, cpu, data)`, `rdtsc()`.
Other threads see stores in the order of the host's memory model only where the compiler keeps it: `order()` is where no access
passes, at no cost; `fence()` holds off loads too until stores are seen; `relax()` is for loops that wait, `give_way()` lets the host
run other threads.

The functions use no vector registers, so translated code may call them with its own live in them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from ringfence.core.late import LateModule

if TYPE_CHECKING:
    import ast
    import inspect
    import textwrap
else:  # only where something is compiled
    ast, inspect, textwrap = LateModule("ast"), LateModule("inspect"), LateModule("textwrap")


class NativeFunction:
    """A function of the subset, to be compiled by native_compiler.py.  Its source is read then only: normally the cache holds the
    result."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = function.__name__
        self.globals = function.__globals__
        self.parameters = function.__code__.co_varnames[: function.__code__.co_argcount]

    @cached_property
    def tree(self) -> ast.FunctionDef:
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        return tree


REGISTRY: dict[str, NativeFunction] = {}

Function = TypeVar("Function", bound=Callable[..., int])


def native(function: Function) -> Function:
    """Registers a function of the subset under its name.  In Python itself it is never run."""
    REGISTRY[function.__name__] = NativeFunction(function)
    return function


# ---- the primitives: declared for readers and type checkers, known to the compiler by name
def _primitive(*operands: int) -> int:
    raise TypeError("a primitive of the native subset has no meaning in Python")


ld8 = ld16 = ld32 = ld64 = st8 = st16 = st32 = st64 = or32 = and32 = cas32 = cas64 = sar = slt = sext32 = _primitive
copy_forward = fill64 = invoke = rdtsc = order = fence = relax = give_way = _primitive
