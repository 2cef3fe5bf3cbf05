"""The reference interpreter: what each operation of the value language means, on Python ints.

It runs the same traces as the compiled code, so it is the living definition of every instruction, and the fallback for
what compiled code leaves to it (MMIO, read-modify-writes across a page end, single steps).
"""

from __future__ import annotations

from typing import Any, Protocol

from ringfence.ir import softfloat
from ringfence.ir.fault import GuestFault
from ringfence.ir.ops import COMPARE, PURE, join_lanes, mask, signed, split_lanes
from ringfence.ir.value import Op, Value


class Memory(Protocol):
    """Guest-virtual memory with the guest's rights; raises GuestFault.  `size` in bytes, little-endian values.

    `system` marks implicit accesses to descriptor tables and the TSS: they have supervisor rights at any CPL.
    """

    def load(self, address: int, size: int, write: bool, system: bool = False) -> int:
        """`write`: the same bytes will be stored, so check for that."""

    def store(self, address: int, size: int, value: int, system: bool = False) -> None: ...

    def load_physical(self, address: int, size: int) -> int: ...

    def store_physical(self, address: int, size: int, value: int) -> None: ...


Outcome = tuple[Any, ...]
"""("next",) | ("jump", rip) | ("taken",) | ("exit", kind, *values)"""


class Interpreter:
    """Runs one trace on `state` (field name -> int, or list of ints for indexed fields).

    `binds` gives each register slot (field, lowest bit); `imms` each immediate slot its value.
    """

    def __init__(self, state: dict[str, Any], memory: Memory, binds: dict[Any, tuple[Any, int]], imms: dict[Any, int]) -> None:
        self.state = state
        self.memory = memory
        self.binds = binds
        self.imms = imms
        self.commits: list[tuple[Any, int, int, int]] = []
        self.env: dict[int, int] = {}
        self.outcome: Outcome = ("next",)

    def run(self, ops: list[Op]) -> Outcome:
        """Executes and commits; a GuestFault leaves the state as it was, but for the sticky flags of an unmasked #XM."""
        vector = None
        try:
            self._sequence(ops)
        except softfloat.FloatTrap as trap:  # its flags stay
            vector, self.commits = trap.vector, trap.commits
        for field, low, w, value in self.commits:
            if isinstance(field, tuple):
                self.state[field[0]][field[1]] = value
            else:
                self.state[field] = self.state[field] & ~(mask(w) << low) | value << low
        if vector is not None:
            raise GuestFault(vector)
        return self.outcome

    def _value(self, v: Value) -> int:
        return v.const if v.const is not None else self.env[v.id]

    def _place(self, op: Op) -> tuple[Any, int]:
        at = op.at
        if "slot" in at:
            return self.binds[at["slot"]]
        return at["field"], at.get("low", 0)

    def _read(self, field: Any) -> int:
        value = self.state[field[0]][field[1]] if isinstance(field, tuple) else self.state[field]
        return int(value)

    def _sequence(self, ops: list[Op]) -> None:
        for op in ops:
            if op.op == "when":
                if self._value(op.args[0]):
                    self._sequence(op.sub[0])
            elif op.op == "choose":
                n = (len(op.args) - 1) // 2
                k = 0 if self._value(op.args[0]) else 1
                self._sequence(op.sub[k])
                for j in range(n):
                    self.env[op.id + 1 + j] = self._value(op.args[1 + k * n + j])
            elif op.op != "chosen":
                result = self._one(op, [self._value(a) for a in op.args])
                if op.w:
                    self.env[op.id] = result & mask(op.w)

    def _one(self, op: Op, a: list[int]) -> int:
        name, w, at = op.op, op.w, op.at
        if "lane" in at:
            return self._lanes(op, a)
        if name in PURE:
            return PURE[name](op.args[0].w, *a)
        if name in COMPARE:
            return COMPARE[name](op.args[0].w, *a)
        match name:
            case "zext" | "trunc":
                return a[0]
            case "sext":
                return signed(a[0], op.args[0].w)
            case "select":
                return a[1] if a[0] else a[2]
            case "splat":
                return join_lanes([a[0]] * (w // op.args[0].w), op.args[0].w)
            case "get":
                field, low = self._place(op)
                return self._read(field) >> low
            case "set":
                field, low = self._place(op)
                self.commits.append((field, low, op.args[0].w, a[0]))
            case "get_indexed":
                return int(self.state[at["field"]][a[0]])
            case "set_indexed":
                self.commits.append(((at["field"], a[0]), 0, op.args[1].w, a[1]))
            case "imm":
                return self.imms[at["slot"]]
            case "load":
                return self.memory.load(a[0], w // 8, at.get("write", False), at.get("system", False))
            case "store":
                self.memory.store(a[0], op.args[1].w // 8, a[1], at.get("system", False))
            case "probe":
                for address in (a[0], a[0] + at["size"] - 1 & mask(64)):
                    self.memory.load(address, 1, True, at.get("system", False))
            case "pload":
                return self.memory.load_physical(a[0], w // 8)
            case "pstore":
                self.memory.store_physical(a[0], op.args[1].w // 8, a[1])
            case "atomic":
                return self._atomic(op, a)
            case "fence":
                pass  # an engine that interprets beside other vCPUs passes through locks
            case "fault":
                raise GuestFault(at["vector"], a[0])
            case "fp":
                return softfloat.operate(self, op, a)
            case "tsc":
                return self.memory.read_tsc()  # type: ignore[attr-defined, no-any-return]
            case "jump":
                self.outcome = ("jump", a[0])
            case "taken":
                self.outcome = ("taken",) if a[0] else ("next",)
            case "exit":
                self.outcome = ("exit", at["kind"], *a)
            case _:
                raise KeyError(name)
        return 0

    def _atomic(self, op: Op, a: list[int]) -> int:
        """Not atomic: whoever interprets this keeps other vCPUs out."""
        w, size = op.w, op.w // 8
        old = self.memory.load(a[0], size, True)
        match op.at["kind"]:
            case "add":
                new = old + a[1]
            case "cas":
                new = a[2] if old == a[1] else old
            case "xchg":
                new = a[1]
            case "and":
                new = old & a[1]
            case "or":
                new = old | a[1]
            case "xor":
                new = old ^ a[1]
            case kind:
                raise KeyError(kind)
        self.memory.store(a[0], size, new & mask(w))
        return old

    def _lanes(self, op: Op, a: list[int]) -> int:
        name, at = op.op, op.at
        lane: int = at["lane"]
        lanes = [split_lanes(x, v.w, lane) for x, v in zip(a, op.args, strict=True)]
        match name:
            case "movemask":
                return sum((x >> lane - 1) << k for k, x in enumerate(lanes[0]))
            case "lselect":
                return join_lanes([y if x >> lane - 1 else z for x, y, z in zip(*lanes, strict=True)], lane)
            case "permute":
                return join_lanes([lanes[0][k % len(lanes[0])] for k in lanes[1]], lane)
            case "shuffle":
                both = lanes[0] + lanes[1]
                return join_lanes([both[k] for k in at["index"]], lane)
            case "lsext":
                return join_lanes([signed(x, lane) for x in lanes[0]], at["to"])
            case "lzext":
                return join_lanes(lanes[0], at["to"])
            case "ltrunc":
                to: int = at["to"]
                low, high = {"s": (-(1 << to - 1), (1 << to - 1) - 1), "u": (0, mask(to)), None: (None, None)}[at["saturate"]]
                if low is None or high is None:
                    return join_lanes(lanes[0], to)
                return join_lanes([min(max(signed(x, lane), low), high) for x in lanes[0]], to)
        if name in COMPARE:
            return join_lanes([mask(lane) if COMPARE[name](lane, *q) else 0 for q in zip(*lanes, strict=True)], lane)
        return join_lanes([PURE[name](lane, *q) for q in zip(*lanes, strict=True)], lane)
