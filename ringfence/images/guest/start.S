# A helper of the agent's: start WORDS becomes `/bin/sh -c WORDS` in a session of its own, in which SIGINT and SIGQUIT end programs.
# A shell without job control has whatever it starts in the background ignore them, and cannot take that back itself.
#
# The whole file, ELF header included (System V ABI, "Object Files"; AMD64 supplement, 3.4.1: what a process finds on its stack):
#   as -o start.o start.S && ld --oformat binary -Ttext 0x10000 -o start start.o
# tests/unit/images/test_start_helper.py makes it again and compares.
    .set BASE, 0x10000
    .globl _start
    .text
header:
    .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .short 2, 62                        # ET_EXEC, EM_X86_64
    .long 1
    .quad BASE + (_start - header)
    .quad segment - header, 0
    .long 0
    .short 64, 56, 1, 0, 0, 0
segment:
    .long 1, 5                          # PT_LOAD, readable and executable
    .quad 0, BASE, BASE
    .quad end - header, end - header, 0x1000
_start:
    mov 16(%rsp), %r12                  # argv[1]
    mov (%rsp), %rax
    lea 16(%rsp,%rax,8), %r13           # environment: behind argv and its null
    xor %eax, %eax
    mov $4, %ecx
1:  push %rax                           # struct sigaction: SIG_DFL, no flags, no mask
    loop 1b
    mov $2, %edi                        # SIGINT
    call set_default
    mov $3, %edi                        # SIGQUIT
    call set_default
    mov $112, %eax                      # setsid
    syscall
    xor %eax, %eax
    push %rax
    push %r12
    lea option(%rip), %rax
    push %rax
    lea shell(%rip), %rdi
    push %rdi
    mov %rsp, %rsi
    mov %r13, %rdx
    mov $59, %eax                       # execve
    syscall
    mov $126, %edi
    mov $60, %eax                       # exit
    syscall
set_default:
    lea 8(%rsp), %rsi
    xor %edx, %edx
    mov $8, %r10d                       # bytes of the mask
    mov $13, %eax                       # rt_sigaction
    syscall
    ret
shell:
    .asciz "/bin/sh"
option:
    .asciz "-c"
end:
