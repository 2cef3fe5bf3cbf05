; A boot sector that resets the machine in every way there is and finds its way back: the CPU alone by keyboard controller, port
; 0x92, port 0xcf9 and triple fault, each with CMOS shutdown code 0x0a (go on at the address in 0x467), then everything.
; RAM must be as it was each time.  How far it came stands in CMOS byte 0x70.  Ends with value 42 by the debug-exit port.

        bits    16
        org     0x7c00

MAGIC   equ     0x600
STAGE   equ     0x70

        jmp     0:start
start:  xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     ah, STAGE
        call    cmos_read
        cmp     al, 2
        je      everything_done
        mov     dword [MAGIC], 0x5eed1234
        mov     ax, STAGE << 8 | 1
        call    cmos_write

        mov     bx, after_keyboard
        call    prepare
        mov     al, 0xfe
        out     0x64, al
        jmp     wait_for_it

after_keyboard:
        call    check
        mov     bx, after_port_a
        call    prepare
        in      al, 0x92
        and     al, 0xfe
        out     0x92, al
        or      al, 1
        out     0x92, al
        jmp     wait_for_it

after_port_a:
        call    check
        mov     bx, after_soft
        call    prepare
        xor     al, al
        mov     dx, 0xcf9
        out     dx, al
        mov     al, 4
        out     dx, al
        jmp     wait_for_it

after_soft:
        call    check
        mov     bx, after_shutdown
        call    prepare
        lidt    [no_idt]
        int3
        jmp     wait_for_it

after_shutdown:
        call    check
        mov     ax, STAGE << 8 | 2
        call    cmos_write
        mov     ax, 0x0f00
        call    cmos_write
        mov     dx, 0xcf9
        mov     al, 2
        out     dx, al
        mov     al, 6
        out     dx, al
wait_for_it:
        hlt
        jmp     wait_for_it

everything_done:
        call    check
        mov     ax, STAGE << 8
        call    cmos_write
        mov     al, 42
        jmp     leave

; Go on at bx after the next reset.
prepare:
        cli
        mov     [0x467], bx
        mov     word [0x469], 0
        mov     ax, 0x0f0a
        jmp     cmos_write

; Firmware left a stack of its own.
check:  pop     bx
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        cmp     dword [MAGIC], 0x5eed1234
        mov     al, 1
        jne     leave
        mov     eax, cr0
        test    al, 1
        mov     al, 2
        jnz     leave
        jmp     bx

leave:  mov     dx, 0xf4
        out     dx, al
        jmp     wait_for_it

; al = CMOS byte ah
cmos_read:
        mov     al, ah
        out     0x70, al
        in      al, 0x71
        ret

; CMOS byte ah = al
cmos_write:
        xchg    al, ah
        out     0x70, al
        mov     al, ah
        out     0x71, al
        ret

no_idt: dw      0
        dd      0

        times   510 - ($ - $$) db 0
        dw      0xaa55
