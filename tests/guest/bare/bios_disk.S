/* A boot sector that uses its disk through the extensions of INT 13h: reads what lies behind it in pieces of PIECE sectors, each
   of which begins with its number, writes one piece further on and reads it back. */
#include "bios_start.h"

    begin
    movw $0x1000, %ax
    movw %ax, %es
    movw $0x55aa, %bx
    movb $0x41, %ah
    int $0x13
    jc failed
    cmpw $0xaa55, %bx
    jne failed

    movl $1, lba
2:  movb $0x42, %ah
    call disk
    jc failed
    movl lba, %ebp
    call compare
    jne failed
    addl $PIECE, lba
    cmpl $LAST, lba
    jb 2b

    movb $0x43, %ah                 /* the last piece goes further on */
    call disk
    jc failed
    movl lba, %ebp
    subl $PIECE, %ebp
    xorw %di, %di
    movw $PIECE * 256, %cx
    xorw %ax, %ax
    rep stosw
    movb $0x42, %ah
    call disk
    jc failed
    call compare
    jne failed
    movl $0x7fffffff, lba           /* where no disk is */
    movb $0x42, %ah
    call disk
    jnc failed
    pass_or_fail

disk:
    movb drive, %dl
    movw $packet, %si
    movw $PIECE, packet + 2
    movb $0, %al
    int $0x13
    ret

compare:                            /* the sectors at %es:0 begin with %ebp, %ebp + 1, ... */
    xorw %di, %di
    movl %ebp, %eax
    movw $PIECE, %cx
4:  cmpl %eax, %es:(%di)
    jne 5f
    incl %eax
    addw $512, %di
    loop 4b
    xorw %ax, %ax
5:  ret
drive:
    .byte 0
    .balign 4
packet:
    .byte 16, 0
    .word PIECE, 0, 0x1000
lba:
    .long 0, 0
    .org 510
    .word 0xaa55
