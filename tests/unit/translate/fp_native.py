"""Runs lowered `fp` operations natively: one LLVM function per operation, called on records of operands.

Meant for a child process: a mistake in generated code must not end the tests.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import llvmlite.binding as llvm

from ringfence.ir.ops import mask
from ringfence.ir.value import Trace
from ringfence.translate import lower_fp

RECORD_BYTES = 128


class Operation(NamedTuple):
    """`widths` of the operands; `immediate`: a last operand that is part of the form."""

    fp: str
    fmt: str
    w: int
    widths: tuple[int, ...]
    immediate: int | None = None


class Result(NamedTuple):
    value: int
    mxcsr_flags: int
    fsw_flags: int
    stack_depth_kept: bool


class Emitter:
    """What `lower_fp` asks of its caller."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.count = 0

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def op(self, text: str) -> str:
        self.count += 1
        name = f"%t{self.count}"
        self.line(f"{name} = {text}")
        return name

    def lower(self, operation: Operation, args: list[str]) -> str:
        trace = Trace()
        values = [trace.emit("arg", w, []) for w in operation.widths]
        texts = list(args)
        if operation.immediate is not None:
            values.append(trace.value(operation.immediate, 8))
            texts.append(str(operation.immediate))
        trace.emit("fp", operation.w, values, fp=operation.fp, fmt=operation.fmt)
        return lower_fp.lower_fp(self, trace.ops[-1], texts)


def function(name: str, operation: Operation) -> str:
    """`void name(in, out)`: in: MXCSR, FCW at 4, operands from 16 on; out: value, flags at 32, FSW at 36."""
    e = Emitter()
    e.allocas.append("  %host = alloca i32")
    e.line('call void asm sideeffect "stmxcsr $0", "=*m"(ptr elementtype(i32) %host)')
    e.lower(Operation("set", "mxcsr", 0, (32,)), [e.op("load i32, ptr %in")])
    e.line('call void asm sideeffect "fninit", ""()')
    e.lower(Operation("control", "x87", 0, (16,)), [e.op(f"load i16, ptr {e.op('getelementptr i8, ptr %in, i64 4')}")])
    args = []
    for k, w in enumerate(operation.widths):
        args.append(e.op(f"load i{w}, ptr {e.op(f'getelementptr i8, ptr %in, i64 {16 + 16 * k}')}, align 1"))
    value = e.lower(operation, args)
    if operation.w:
        store = f"i{operation.w}" if operation.w % 8 == 0 else "i8"
        if operation.w % 8:
            value = e.op(f"zext i{operation.w} {value} to i8")
        e.line(f"store {store} {value}, ptr %out, align 1")
    flags = e.lower(Operation("get", "mxcsr", 32, ()), [])
    e.line(f"store i32 {flags}, ptr {e.op('getelementptr i8, ptr %out, i64 32')}")
    status = e.op('call i16 asm sideeffect "fnstsw %ax", "={ax}"()')
    e.line(f"store i16 {status}, ptr {e.op('getelementptr i8, ptr %out, i64 36')}")
    e.line('call void asm sideeffect "ldmxcsr $0", "*m"(ptr elementtype(i32) %host)')
    e.line('call void asm sideeffect "fninit", ""()')
    return "\n".join([f"define void @{name}(ptr %in, ptr %out) {{", *e.allocas, *e.lines, "  ret void", "}", ""])


def run(work: list[tuple[Operation, list[tuple[int, int, tuple[int, ...]]]]]) -> list[list[Result]]:
    """For every operation its results on cases (MXCSR, FCW, operands)."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    module = llvm.parse_assembly("\n".join(function(f"f{k}", operation) for k, (operation, _) in enumerate(work)))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=1)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    found = []
    for k, (operation, cases) in enumerate(work):
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(engine.get_function_address(f"f{k}"))
        source, target = ctypes.create_string_buffer(RECORD_BYTES), ctypes.create_string_buffer(RECORD_BYTES)
        results = []
        for mxcsr, fcw, operands in cases:
            data = mxcsr.to_bytes(4, "little") + fcw.to_bytes(2, "little") + bytes(10)
            data += b"".join(v.to_bytes(16, "little") for v in operands)
            ctypes.memmove(source, data, len(data))
            call(source, target)
            status = int.from_bytes(target.raw[36:38], "little")
            value = int.from_bytes(target.raw[:16], "little") & mask(operation.w)
            results.append(Result(value, target.raw[32], status & 0x3F, not status & 0x3840))
        found.append(results)
    return found
