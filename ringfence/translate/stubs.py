"""The glue between stencils and the run time, in assembly.

Between stencils the vCPU pointer is in r12, the flag words in r13 and r14, seven guest registers in r15, rdi, rsi, rdx,
rcx, r8, r9 (see lower.py).  A cold thunk is `call STUB` with its operands behind it; the stub spills the pinned registers,
calls the run time and goes on where that says, or leaves to whoever called ENTER.  The host stack below the frame of ENTER
belongs to stencils and may be dropped at any instruction boundary; between stencils RSP is 8 below a multiple of 16, as at
the entry of any function.
"""

from __future__ import annotations

from ringfence.translate.layout import FIELDS, WORDS
from ringfence.translate.lower import HOST_REGISTERS, PINNED

_CALL_CLOBBERED = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")


def _moves(store: bool, clobbered_only: bool) -> str:
    lines = []
    for name, register in zip(("fr", "fa", *PINNED), HOST_REGISTERS[1:], strict=True):
        if clobbered_only and register not in _CALL_CLOBBERED:
            continue
        place = f"{FIELDS[name]}(%r12)"
        lines.append(f"mov %{register},{place}" if store else f"mov {place},%{register}")
    return "\n".join(lines)


def _thunk(stub: str, function: str) -> str:
    """call STUB; operands …: the run time gets (cpu, operands) and answers with a host address or 0."""
    return f"""
{stub}:
{_moves(True, False)}
 pop %rsi
 mov %r12,%rdi
 sub $8,%rsp
 call {function}
 jmp s_go
"""


def _slow(stub: str, function: str) -> str:
    """A load or window whose probe missed; address in rax, comes back as a host address.  rbx, rbp and the vector
    registers may hold the stencil's temporaries: the run time keeps them."""
    return f"""
{stub}:
{_moves(True, False)}
 mov (%rsp),%rdx
 push %rbp
 mov %rsp,%rbp
 and $-16,%rsp
 mov %r12,%rdi
 mov %rax,%rsi
 call {function}
 mov %rbp,%rsp
 pop %rbp
 test %rax,%rax
 jz s_resume_elsewhere
{_moves(False, True)}
 pop %r10
 movslq (%r10),%r11
 add %r11,%r10
 jmp *%r10
"""


def _slow_store(stub: str, low: str, high: str) -> str:
    """A store whose probe missed: the run time gives a pointer to store through, or has stored already (1)."""
    return f"""
{stub}:
{_moves(True, False)}
 mov (%rsp),%rdx
 {low}
 {high}
 push %rbp
 mov %rsp,%rbp
 and $-16,%rsp
 mov %r12,%rdi
 mov %rax,%rsi
 call t_slow_write
 mov %rbp,%rsp
 pop %rbp
 test %rax,%rax
 jz s_resume_elsewhere
{_moves(False, True)}
 pop %r10
 movslq (%r10),%r11
 cmp $1,%rax
 jne 1f
 movzbl 11(%r10),%eax
 add %rax,%r11
1: add %r11,%r10
 jmp *%r10
"""


def _leave_region(stub: str, function: str) -> str:
    """A region ends here; RIP is in memory."""
    return f"""
{stub}:
{_moves(True, False)}
 mov %r12,%rdi
 sub $8,%rsp
 call {function}
 jmp s_go
"""


def _call_from_region(stub: str, function: str) -> str:
    """function(cpu, rax, r10); rax is the result, r10 and r11 are lost, all other registers stay."""
    saved = (*_CALL_CLOBBERED, "rbp")
    pushes = "\n".join(f" push %{r}" for r in saved)
    pops = "\n".join(f" pop %{r}" for r in reversed(saved))
    return f"""
{stub}:
{pushes}
 mov %rsp,%rbp
 and $-16,%rsp
 mov %r12,%rdi
 mov %rax,%rsi
 mov %r10,%rdx
 call {function}
 mov %rbp,%rsp
{pops}
 ret
"""


# The settled form of whatever kind of flags a block began with, as settle_flags of native_delivery.py makes it, here with both words
# shifted to the upper end of their registers; it uses no more than the temporaries that a stencil leaves.
_SETTLE = f"""
s_settle:
 movzbl {FIELDS["flags_kind"]}(%r12),%eax
 sub $1,%eax
 jb 3f
 mov %rcx,%r10
 mov %eax,%ecx
 and $3,%ecx
 mov $8,%r11d
 shl %cl,%r11d
 mov $64,%ecx
 sub %r11d,%ecx
 shl %cl,%r13
 shl %cl,%r14
 cmp $4,%eax
 mov %r13,%rax
 jae 1f
 sub %r14,%rax
 not %r13
 mov %r13,%r11
 and %r14,%r11
 or %r14,%r13
 and %rax,%r13
 or %r11,%r13
 jmp 2f
1:
 mov %r13,%r11
 sub %r14,%r11
 mov %r11,%r13
 or %r14,%r13
 and %r14,%r11
 mov %rax,%r14
 not %r14
 and %r14,%r13
 or %r11,%r13
2:
 mov %r13,%r14
 shr %cl,%r13
 and $8,%r13d
 shr $62,%r14
 shl $62,%r14
 or %r13,%r14
 sar %cl,%rax
 mov %rax,%r13
 movb $0,{FIELDS["flags_kind"]}(%r12)
 mov %r10,%rcx
3:
 ret
"""


def source() -> str:
    """The whole assembly text."""
    mxcsr, fcw, fsw = FIELDS["mxcsr"], FIELDS["fcw"], FIELDS["fsw"]
    scratch, host_mxcsr, host_rsp = WORDS["scratch0"], WORDS["host_mxcsr"], WORDS["host_rsp"]
    return f"""
.text
.p2align 4
s_enter:
 push %rbx
 push %rbp
 push %r12
 push %r13
 push %r14
 push %r15
 mov %rdi,%r12
 mov %rsp,{host_rsp}(%r12)
 stmxcsr {host_mxcsr}(%r12)
 mov {mxcsr}(%r12),%eax
 or $0x1f80,%eax
 mov %eax,{scratch}(%r12)
 ldmxcsr {scratch}(%r12)
 fninit
 movzwl {fcw}(%r12),%eax
 or $0x3f,%eax
 mov %eax,{scratch}(%r12)
 fldcw {scratch}(%r12)
s_dispatch:
 mov %r12,%rdi
 sub $8,%rsp
 call dispatch
s_go:
 test %rax,%rax
 jz s_leave
 mov {host_rsp}(%r12),%rsp
{_moves(False, False)}
 jmp *%rax
s_leave:
 mov {host_rsp}(%r12),%rsp
 stmxcsr {scratch}(%r12)
 mov {scratch}(%r12),%eax
 and $0x3f,%eax
 or %eax,{mxcsr}(%r12)
 ldmxcsr {host_mxcsr}(%r12)
 fnstsw %ax
 and $0x3f,%eax
 or %ax,{fsw}(%r12)
 fninit
 pop %r15
 pop %r14
 pop %r13
 pop %r12
 pop %rbp
 pop %rbx
 ret
s_resume_elsewhere:
 mov {host_rsp}(%r12),%rsp
 mov {WORDS["resume_status"]}(%r12),%rax
 jmp s_go
s_lookup:
{_moves(True, False)}
 jmp s_dispatch
{_slow("s_slow_r", "t_slow_read")}
{_slow("s_slow_m", "t_slow_window")}
{_slow_store("s_slow_w", "mov %rbx,%rcx", "xor %r8d,%r8d")}
{_slow_store("s_slow_wx", "movq %xmm0,%rcx", "pextrq $1,%xmm0,%r8")}
{_thunk("s_link", "t_link")}
{_thunk("s_stale", "t_stale")}
{_thunk("s_budget", "t_budget")}
{_thunk("s_fault", "t_fault")}
{_thunk("s_exit", "t_exit")}
s_cross:
{_moves(True, False)}
 mov (%rsp),%rsi
 mov %r12,%rdi
 call t_cross
 cmp $1,%rax
 je 1f
 mov {host_rsp}(%r12),%rsp
 jmp s_go
1:
{_moves(False, True)}
 pop %r10
 movslq 16(%r10),%r11
 add %r11,%r10
 jmp *%r10
{_leave_region("s_region_one", "t_region_one")}
{_leave_region("s_region_budget", "t_region_budget")}
{_call_from_region("s_region_fill", "region_fill")}
{_call_from_region("s_region_settle", "settle_flags")}
# a function of the host's that may use every register that C leaves free: s_outside(cpu, address, flags, value)
s_outside:
 push %rbp
 mov %rsp,%rbp
 sub $512,%rsp
 and $-16,%rsp
 fxsave64 (%rsp)
 fninit
 ldmxcsr {host_mxcsr}(%rdi)
 mov {WORDS["outside"]}(%rdi),%rax
 mov %rsi,%rdi
 mov %rdx,%rsi
 mov %rcx,%rdx
 call *%rax
 fxrstor64 (%rsp)
 mov %rbp,%rsp
 pop %rbp
 ret
# rax: the operand record
s_call:
{_moves(True, False)}
 mov %r12,%rdi
 mov %rax,%rsi
 call t_native_call
 cmp $1,%rax
 je 1f
 mov {host_rsp}(%r12),%rsp
 jmp s_go
1:
{_moves(False, False)}
 ret
{_SETTLE}
"""


def module_asm() -> str:
    """As LLVM module-level assembly."""
    return "\n".join(f'module asm "{line.strip()}"' for line in source().splitlines() if line.strip() and not line.startswith("#"))
