"""What the Python side of a vCPU among several calls instead of the run time's own functions: inside of handshakes.

These store into guest memory or fill the TLB, which a translator on another vCPU has to know of (native_smp.py).
"""

from __future__ import annotations

from ringfence.translate.native import native
from ringfence.translate.native_access import store_at
from ringfence.translate.native_delivery import deliver_exception, inject, soft_interrupt
from ringfence.translate.native_mmu import execute_pointer, read_pointer, write_pointer
from ringfence.translate.native_smp import come_in, go_out

GUARDED = ("inject", "deliver_exception", "soft_interrupt", "store_at", "read_pointer", "write_pointer", "execute_pointer")


@native
def guarded_inject(cpu: int, vector: int) -> int:
    come_in(cpu)
    result = inject(cpu, vector)
    go_out(cpu)
    return result


@native
def guarded_deliver_exception(cpu: int) -> int:
    come_in(cpu)
    result = deliver_exception(cpu)
    go_out(cpu)
    return result


@native
def guarded_soft_interrupt(cpu: int, number: int, following: int) -> int:
    come_in(cpu)
    result = soft_interrupt(cpu, number, following)
    go_out(cpu)
    return result


@native
def guarded_store_at(cpu: int, va: int, flags: int, low: int, high: int) -> int:
    come_in(cpu)
    result = store_at(cpu, va, flags, low, high)
    go_out(cpu)
    return result


@native
def guarded_read_pointer(cpu: int, va: int, table: int) -> int:
    come_in(cpu)
    result = read_pointer(cpu, va, table)
    go_out(cpu)
    return result


@native
def guarded_write_pointer(cpu: int, va: int, table: int) -> int:
    come_in(cpu)
    result = write_pointer(cpu, va, table)
    go_out(cpu)
    return result


@native
def guarded_execute_pointer(cpu: int, va: int, table: int) -> int:
    come_in(cpu)
    result = execute_pointer(cpu, va, table)
    go_out(cpu)
    return result
