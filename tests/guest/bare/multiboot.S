/* A Multiboot kernel that checks what it was given and ends with value 42, or with the number of the check that failed.

   With FLAT the header tells its addresses, for a file that is no ELF. */

        .set    MAGIC, 0x1badb002
#ifdef FLAT
        .set    FLAGS, 0x10003
#else
        .set    FLAGS, 3
#endif
        .section .text
        .code32
        .align  4
header: .long   MAGIC, FLAGS, -(MAGIC + FLAGS)
        .long   header, header, 0, end, _start
        .globl  _start
_start: mov     $stack, %esp
        mov     %eax, %edi
        mov     $1, %al
        cmp     $0x2badb002, %edi
        jne     leave
        mov     $2, %al
        mov     (%ebx), %ecx            /* flags: memory, command line, modules, memory map */
        and     $0x4d, %ecx
        cmp     $0x4d, %ecx
        jne     leave
        mov     $3, %al
        cmpl    $2, 20(%ebx)
        jne     leave
        mov     24(%ebx), %esi
        mov     16(%esi), %edx          /* the second module's start */
        mov     $4, %al
        cmpl    $0x33323130, (%edx)     /* "0123" */
        jne     leave
        mov     $5, %al
        test    $0xfff, %edx
        jnz     leave
        mov     $6, %al
        cmpl    $1024, 8(%ebx)          /* KiB above 1 MiB */
        jb      leave
        mov     $7, %al
        smsw    %cx
        test    $1, %cl
        jz      leave
        mov     $8, %al
        movl    $0, variable            /* a page that the file does not hold */
        incl    variable
        cmpl    $1, variable
        jne     leave
        mov     16(%ebx), %esi          /* the command line, to the serial line */
        mov     $0x3f8, %dx
1:      lodsb
        test    %al, %al
        jz      2f
        out     %al, %dx
        jmp     1b
2:      mov     $'\n', %al
        out     %al, %dx
        testl   $0x1000, (%ebx)         /* a text screen: a word onto it, and say so */
        jz      3f
        mov     88(%ebx), %edi
        movw    $0x0741, (%edi)
        mov     $'T', %al
        out     %al, %dx
3:      mov     $42, %al
leave:  mov     $0xf4, %dx
        out     %al, %dx
4:      hlt
        jmp     4b

        .bss
        .balign 4096
variable:
        .skip   4096
        .skip   4096
stack:
end:
