/* Entry of a test kernel, interrupt stubs, and `catch`: a call that an exception ends early. */

        .section .text.start, "ax"
        .globl _start
_start:
        cld
        lea     stack_top(%rip), %rsp
        mov     %rsi, boot_params(%rip)
        call    bare_init
        call    guest_main
        mov     %eax, %edi
        call    leave_machine
1:      cli
        hlt
        jmp     1b

        .text
/* int catch(void (*function)(void *), void *argument): the vector of the exception that ended it, -1 for none. */
        .globl catch
catch:
        push    %rbx
        push    %rbp
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        pushf
        mov     %rsp, catch_stack(%rip)
        mov     %rdi, %r11
        mov     %rsi, %rdi
        xor     %eax, %eax              /* what runs as code by chance begins with add %al, (%rax) */
        sub     $8, %rsp
        call    *%r11
        add     $8, %rsp
        mov     $-1, %rax
        jmp     1f
/* Where the trap code goes when something was caught; the vector is in rdi. */
        .globl catch_return
catch_return:
        mov     %rdi, %rax
        mov     catch_stack(%rip), %rsp
1:      movq    $0, catch_stack(%rip)
        cld
        popf
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %rbp
        pop     %rbx
        ret

/* void to_user(rip, rsp, rflags): never returns by itself. */
        .globl to_user
to_user:
        push    $0x23
        push    %rsi
        push    %rdx
        push    $0x2b
        push    %rdi
        iretq

        .macro  stub number
        .p2align 4
        .if (\number > 31) || !((0x227d00 >> (\number & 31)) & 1)
        push    $0
        .endif
        push    $\number
        jmp     common
        .endm

        .p2align 4
        .globl stubs
stubs:
        .set    n, 0
        .rept   256
        stub    n
        .set    n, n + 1
        .endr

common:
        push    %rax
        push    %rbx
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %rbp
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        mov     %rsp, %rdi
        mov     %rsp, %rbp
        and     $-16, %rsp
        cld
        call    trap
        mov     %rbp, %rsp
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rbp
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rbx
        pop     %rax
        add     $16, %rsp
        iretq

        .bss
        .globl catch_stack
catch_stack:
        .skip   8
        .globl boot_params
boot_params:
        .skip   8
        .p2align 12
        .skip   32768
        .globl stack_top
stack_top:
