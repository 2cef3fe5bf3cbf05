/* What every boot sector here begins and ends with: segments at 0, a stack below itself, the drive it was read from; and
   the answer at debug-exit's port, 42 where the code before has come to its end and 1 from `failed`. */
.code16
.globl _start
_start:

.macro begin
    ljmp $0, $1f
1:  cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
    movb %dl, drive
.endm

.macro pass_or_fail
    movb $42, %al
    jmp leave
failed:
    movb $1, %al
leave:
    movw $0xf4, %dx
    outb %al, %dx
3:  hlt
    jmp 3b
.endm
