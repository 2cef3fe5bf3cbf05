# A boot sector that uses the firmware as DOS programs do: keys through INT 16h with a handler of its own before the BIOS's
# INT 9, the PS/2 mouse through INT 15h, the printer through INT 17h, A20 through INT 15h and both kinds of hardware.
#
# Every key and every packet of the mouse is shown; Esc ends it and shows in how many of its interrupts port 0x60 gave two values.
.intel_syntax noprefix
.code16
.global _start
_start:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    mov ax, 0x0203              # the two sectors after this one
    mov bx, 0x7e00
    mov cx, 0x0002
    xor dh, dh
    int 0x13
    jc .
    jmp main

    .org 510
    .word 0xaa55

main:
    mov si, offset hello
    call puts
    mov si, offset printed
1:  lodsb
    test al, al
    jz 2f
    xor ah, ah
    xor dx, dx
    int 0x17
    test ah, 0x29               # time-out, error, out of paper
    jz 1b
    mov si, offset no_printer
    call puts

2:  mov si, offset a20          # 0: shut, 1: open
    call puts
    mov ax, 0x2400
    int 0x15
    call show_a20
    mov ax, 0x2401
    int 0x15
    call show_a20
    mov bl, 0xdd                # as HIMEM does on an AT
    call output_port
    call show_a20
    mov ax, 0x2402              # the BIOS knows what others did
    int 0x15
    add al, '0'
    call putc
    mov bl, 0xdf
    call output_port
    call show_a20

    mov ax, 0xc205
    mov bh, 3
    int 0x15
    mov ax, 0xc207
    mov bx, offset mouse
    int 0x15
    mov ax, 0xc200
    mov bh, 1
    int 0x15
    mov si, offset no_mouse
    jc 3f
    mov si, offset with_mouse
3:  call puts

    cli
    mov eax, [9 * 4]
    mov [bios_int9], eax
    mov dword ptr [9 * 4], offset int9
    sti

next:
    hlt
    cmp byte ptr [packets], 0
    je 4f
    cli
    dec byte ptr [packets]
    mov si, offset packet
    call puts
    mov al, [status]
    call hex8
    mov al, [moved_x]
    call hex8
    mov al, [moved_y]
    call hex8
    mov al, ' '
    call putc
    sti
4:  mov ah, 0x11
    int 0x16
    jz next
    mov ah, 0x10
    int 0x16
    push ax
    mov al, ah
    call hex8
    pop ax
    push ax
    call hex8
    mov al, ' '
    call putc
    pop ax
    cmp ax, 0x011b
    jne next

    mov si, offset twice
    call puts
    mov al, [differences]
    call hex8
    mov si, offset done
    call puts
5:  hlt
    jmp 5b

int9:
    push ax
    push cx
    in al, 0x60
    mov ah, al
    mov cx, 20
6:  in al, 0x60
    cmp al, ah
    loope 6b
    je 7f
    inc byte ptr cs:[differences]
7:  pop cx
    pop ax
    ljmp cs:[bios_int9]

mouse:                          # far; the stack holds status, x, y, 0
    push bp
    mov bp, sp
    push ax
    mov al, [bp + 12]
    mov cs:[status], al
    mov al, [bp + 10]
    mov cs:[moved_x], al
    mov al, [bp + 8]
    mov cs:[moved_y], al
    inc byte ptr cs:[packets]
    pop ax
    pop bp
    retf

output_port:                    # BL to the 8042's output port, interrupts off as every such program does
    cli
    call ready
    mov al, 0xd1
    out 0x64, al
    call ready
    mov al, bl
    out 0x60, al
    call ready
    sti
    ret
ready:
    in al, 0x64
    test al, 2
    jnz ready
    ret

show_a20:                       # whether 0x00500 and 0x100500 are two places
    push ds
    push es
    xor ax, ax
    mov ds, ax
    dec ax
    mov es, ax
    mov byte ptr ds:[0x500], 1
    mov byte ptr es:[0x510], 2
    mov al, ds:[0x500]
    pop es
    pop ds
    cmp al, 1
    mov al, '0'
    jne putc
    inc al
putc:
    pusha
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    popa
    ret
puts:
    lodsb
    test al, al
    jz 8f
    call putc
    jmp puts
8:  ret
hex8:
    push ax
    shr al, 4
    call 9f
    pop ax
    and al, 15
9:  add al, '0'
    cmp al, '9'
    jbe putc
    add al, 'a' - '0' - 10
    jmp putc

hello: .asciz "keys and mouse\r\n"
printed: .asciz "through INT 17h\r\n"
no_printer: .asciz "no printer\r\n"
a20: .asciz "A20 "
no_mouse: .asciz " no mouse\r\nready\r\n"
with_mouse: .asciz " mouse\r\nready\r\n"
packet: .asciz "M"
twice: .asciz "\r\ndifferences "
done: .asciz "\r\nthe end\r\n"
differences: .byte 0
packets: .byte 0
status: .byte 0
moved_x: .byte 0
moved_y: .byte 0
bios_int9: .long 0
    .org 3 * 512
