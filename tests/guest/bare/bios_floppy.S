/* A boot sector that uses its floppy through INT 13h: SECTORS a track, CYLINDERS of them, two sides.
   Every sector behind the first begins with its number; cylinder 5 is written and read back. */
#include "bios_start.h"

    begin
    movb $8, %ah                    /* geometry */
    xorw %di, %di
    int $0x13
    jc failed
    cmpw $(CYLINDERS - 1) << 8 | SECTORS, %cx
    jne failed
    cmpb $1, %dh
    jne failed
    cmpb $KIND, %bl
    jne failed

    movw $0x1000, %ax               /* every track, into 64 KiB at 0x10000 */
    movw %ax, %es
    xorw %si, %si                   /* track */
    movw $0, %bp                    /* number of its first sector */
2:  movw $0x0200 | SECTORS, %ax
    call track
    jc failed
    call compare
    jne failed
    addw $SECTORS, %bp
    incw %si
    cmpw $2 * CYLINDERS, %si
    jb 2b

    movw $10, %si                   /* write what another track held, verify, read back */
    movw $10 * SECTORS, %bp
    movw $0x0300 | SECTORS, %ax
    call track
    jc failed
    movw $0x0400 | SECTORS, %ax
    call track
    jc failed
    xorw %di, %di
    movw $SECTORS * 256, %cx
    xorw %ax, %ax
    rep stosw
    movw $0x0200 | SECTORS, %ax
    call track
    jc failed
    movw $(2 * CYLINDERS - 1) * SECTORS, %bp
    call compare
    jne failed

    movw $0x0201, %ax               /* a sector that no track has */
    movw $0x0000 | SECTORS + 1, %cx
    xorb %dh, %dh
    movb drive, %dl
    int $0x13
    jnc failed
    orb %ah, %ah
    jz failed
    xorb %ah, %ah                   /* reset, and once more */
    movb drive, %dl
    int $0x13
    jc failed
    movw $1, %si
    movw $SECTORS, %bp
    movw $0x0200 | SECTORS, %ax
    call track
    jc failed
    call compare
    jne failed
    pass_or_fail

track:                              /* INT 13h of %ax on track %si at %es:0 */
    xorw %bx, %bx
    movw %si, %cx
    shrw $1, %cx
    movb %cl, %ch
    movb $1, %cl
    movw %si, %dx
    andb $1, %dl
    movb %dl, %dh
    movb drive, %dl
    int $0x13
    ret

compare:                            /* the sectors at %es:0 begin with %bp, %bp + 1, ...; the boot sector is let off */
    xorw %di, %di
    movw %bp, %ax
    movw $SECTORS, %cx
4:  orw %ax, %ax
    jz 5f
    cmpw %ax, %es:(%di)
    jne 6f
    cmpw %ax, %es:510(%di)
    jne 6f
5:  incw %ax
    addw $512, %di
    loop 4b
    xorw %ax, %ax
6:  ret
drive:
    .byte 0
    .org 510
    .word 0xaa55
