; A boot sector and what it loads: protected mode as multitasking systems of the 1980s and 1990s used it.  Tasks call and leave each
; other through 32- and 16-bit TSSs, ring 3 calls ring 0 through a gate, a double fault gets a task, and the PC's own firmware runs in
; virtual-8086 mode under a small monitor, timer interrupts included.  Prints a letter on COM1 for each step that went well; ends with
; value 42 by the debug-exit port, or with the number of the check that failed.

        bits    16
        org     0x7c00

SECTORS equ     8
FLAT    equ     0x08
DATA    equ     0x10
UCODE   equ     0x18 | 3
UDATA   equ     0x20 | 3
MAIN    equ     0x28
SECOND  equ     0x30
SMALL   equ     0x38
FAULT   equ     0x40
CGATE   equ     0x48 | 3
CODE16  equ     0x50
COUNT   equ     0x600           ; words of our own
TICKS   equ     0x604
STEPS   equ     0x608
VM      equ     1 << 17
NT      equ     1 << 14

%macro  check   2               ; condition that must hold, number of the check
        mov     ebp, %2
        j%-1    failed
%endmacro
%macro  letter  1
        mov     al, %1
        call    print
%endmacro
%macro  tss32   3               ; EIP, ESP, CR3
        dd      0, 0x70000, DATA, 0, 0, 0, 0, %3, %1, 2, 0, 0, 0, 0, %2, 0, 0, 0
        dd      DATA, FLAT, DATA, DATA, DATA, DATA, 0, 104 << 16
%endmacro

start:  cli
        jmp     0:.here
.here:  xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     ax, 0x0200 | SECTORS
        mov     bx, 0x7e00
        mov     cx, 2
        xor     dh, dh
        int     0x13
        jc      $
        in      al, 0x92
        or      al, 2
        and     al, 0xfe
        out     0x92, al
        cli
        mov     al, 0x11        ; the PICs from vector 0x20 on; only the timer
        out     0x20, al
        out     0xa0, al
        mov     al, 0x20
        out     0x21, al
        mov     al, 0x28
        out     0xa1, al
        mov     al, 4
        out     0x21, al
        mov     al, 2
        out     0xa1, al
        mov     al, 1
        out     0x21, al
        out     0xa1, al
        mov     al, 0xfe
        out     0x21, al
        mov     al, 0xff
        out     0xa1, al
        lgdt    [gdtr]
        lidt    [idtr]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     dword FLAT:protected

        times   510 - ($ - $$) db 0
        dw      0xaa55

        bits    32
protected:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     fs, ax
        mov     gs, ax
        mov     esp, 0x80000
        xor     eax, eax
        mov     [COUNT], eax
        mov     [TICKS], eax
        mov     [STEPS], eax
        mov     edi, main + 104 ; all ports are free
        mov     ecx, 8192 / 4 + 1
        rep     stosd
        mov     edi, 0x100000   ; page tables: 4 MiB one to one for everybody, but for the page at 0x90000
        mov     eax, 0x101007
        stosd
        xor     eax, eax
        mov     ecx, 1023
        rep     stosd
        mov     eax, 7
        mov     ecx, 1024
.page:  stosd
        add     eax, 0x1000
        loop    .page
        mov     dword [0x101000 + 4 * 0x90], 0
        mov     eax, 0x100000
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80010000
        mov     cr0, eax
        mov     ax, MAIN
        ltr     ax
        letter  'P'

; ---- a task is called three times; it goes on behind its IRET each time
        call    SECOND:0
        call    SECOND:0
        call    SECOND:0
        cmp     dword [COUNT], 3
        check   e, 1
        str     ax
        cmp     ax, MAIN
        check   e, 2
        pushfd
        pop     eax
        test    eax, NT
        check   z, 3
        mov     eax, cr0
        test    al, 8           ; TS
        check   nz, 4
        clts
        letter  'C'

; ---- two tasks jump to each other
        mov     dword [second.eip], bouncer
        mov     ecx, 1000
.bounce:
        jmp     SECOND:0
        loop    .bounce
        cmp     dword [COUNT], 1003
        check   e, 5
        test    byte [gdt + SECOND + 5], 2
        check   z, 6
        test    byte [gdt + MAIN + 5], 2
        check   nz, 7
        letter  'J'

; ---- a task of 16 bits
        mov     eax, 0x12345678
        call    SMALL:0
        cmp     eax, 0x12345678
        check   e, 8
        cmp     word [small.ax], 1
        check   e, 9
        letter  'S'

; ---- ring 3, and back by a call gate with parameters
        push    dword UDATA
        push    dword 0x78000
        push    dword 2
        push    dword UCODE
        push    dword user
        iretd
user:   mov     ax, ds          ; DATA was ring 0's
        test    ax, ax
        check   z, 10
        mov     ax, UDATA
        mov     ds, ax
        mov     es, ax
        push    dword 11
        push    dword 22
        push    dword 33
        call    CGATE:0
        cmp     esp, 0x78000
        check   e, 11
        cmp     eax, 66
        check   e, 12
        int     0x40            ; to ring 0 for good
returned:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     gs, ax
        mov     esp, 0x80000
        letter  'G'

; ---- a stack that is not there: #PF, #DF, and a task that can still run
        mov     esp, 0x90800
        push    eax
after_double_fault:
        mov     esp, 0x80000
        cmp     dword [STEPS], 1
        check   e, 13
        mov     eax, cr2
        shr     eax, 12
        cmp     eax, 0x90
        check   e, 14
        letter  'D'

; ---- firmware in virtual-8086 mode: size of memory, equipment, keys, timer ticks
        mov     dword [STEPS], 0
        xor     eax, eax
        times   4 push eax
        push    eax
        push    dword 0x7000
        push    dword VM | 0x3202 & ~0x3000
        push    eax
        push    dword v86
        iretd

v86_done:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     esp, 0x80000
        cmp     dword [STEPS], 100
        check   ae, 15
        cmp     word [0x640], 0
        check   ne, 16
        letter  'V'
        mov     ebp, 42
failed: mov     eax, ebp
        mov     dx, 0xf4
        out     dx, al
        hlt

print:  push    edx
        push    eax
        mov     dx, 0x3fd
.wait:  in      al, dx
        test    al, 0x20
        jz      .wait
        pop     eax
        mov     dx, 0x3f8
        out     dx, al
        pop     edx
        ret

; ---- tasks
second_code:
        inc     dword [COUNT]
        clts
        iretd
        jmp     second_code
bouncer:
        inc     dword [COUNT]
        jmp     MAIN:0
        jmp     bouncer
        bits    16
small_code:
        inc     ax
        iret
        hlt
        bits    32
fault_code:
        pop     eax             ; the error code, 0
        test    eax, eax
        check   z, 17
        mov     dword [main.eip], after_double_fault
        inc     dword [STEPS]
        iretd

gate_code:
        mov     eax, [esp + 8]
        add     eax, [esp + 12]
        add     eax, [esp + 16]
        retf    12

; ---- the monitor of virtual-8086 mode.  On the stack: EIP CS EFLAGS ESP SS ES DS FS GS
general_protection:
        test    byte [esp + 4 + 8 + 2], VM >> 16
        check   nz, 18
        add     esp, 4
        pushad
        mov     ax, DATA
        mov     ds, ax
        inc     dword [STEPS]
        movzx   ebx, word [esp + 36]
        shl     ebx, 4
        add     ebx, [esp + 32]         ; the instruction
        movzx   eax, byte [ebx]
        cmp     al, 0xcd
        je      .int
        cmp     al, 0xcf
        je      .iret
        cmp     al, 0xfa
        je      .cli
        cmp     al, 0xfb
        je      .sti
        cmp     al, 0x9c
        je      .pushf
        cmp     al, 0x9d
        je      .popf
        cmp     al, 0xf4
        je      .hlt
        mov     ebp, 100
        jmp     failed
.int:   movzx   ecx, byte [ebx + 1]
        add     word [esp + 32], 2
        cmp     cl, 0xff
        je      v86_done
        call    reflect
        popad
        iretd
.hlt:   inc     word [esp + 32]
        popad
        iretd
.cli:   and     word [esp + 40], ~0x200
        jmp     .next
.sti:   or      word [esp + 40], 0x200
        jmp     .next
.pushf: sub     word [esp + 44], 2
        call    stack_of
        mov     cx, [esp + 40]
        mov     [edx], cx
        jmp     .next
.popf:  call    stack_of
        movzx   ecx, word [edx]
        and     ecx, 0x4fff & ~0x100
        mov     [esp + 40], cx
        add     word [esp + 44], 2
.next:  inc     word [esp + 32]
        popad
        iretd
.iret:  call    stack_of
        mov     cx, [edx]
        mov     [esp + 32], cx
        mov     cx, [edx + 2]
        mov     [esp + 36], cx
        movzx   ecx, word [edx + 4]
        and     ecx, 0x4fff & ~0x100
        mov     [esp + 40], cx
        add     word [esp + 44], 6
        popad
        iretd

stack_of:                               ; edx: linear address of the program's stack; after one CALL
        movzx   edx, word [esp + 4 + 48]
        shl     edx, 4
        push    eax
        movzx   eax, word [esp + 8 + 44]
        add     edx, eax
        pop     eax
        ret

reflect:                                ; interrupt ecx goes to the program's own vector
        sub     word [esp + 4 + 44], 6
        movzx   edx, word [esp + 4 + 48]
        shl     edx, 4
        movzx   eax, word [esp + 4 + 44]
        add     edx, eax
        mov     ax, [esp + 4 + 32]
        mov     [edx], ax
        mov     ax, [esp + 4 + 36]
        mov     [edx + 2], ax
        mov     ax, [esp + 4 + 40]
        mov     [edx + 4], ax
        and     word [esp + 4 + 40], ~0x300
        mov     eax, [ecx * 4]
        mov     [esp + 4 + 32], ax
        shr     eax, 16
        mov     [esp + 4 + 36], ax
        ret

timer:  test    byte [esp + 8 + 2], VM >> 16
        check   nz, 19
        pushad
        mov     ax, DATA
        mov     ds, ax
        inc     dword [TICKS]
        mov     ecx, 8
        call    reflect
        popad
        iretd

; ---- what runs in virtual-8086 mode
        bits    16
v86:    int     0x12
        mov     [0x640], ax
        mov     cx, 20
.ask:   push    cx
        int     0x11
        mov     ah, 1
        int     0x16
        pop     cx
        loop    .ask
        cmp     word [0x640], 640
        ja      .bad
        sti
.wait:  hlt
        cmp     dword [TICKS], 5
        jb      .wait
        mov     ah, 0                   ; ticks since midnight, as the firmware's timer handler counts them
        int     0x1a
        pushf
        popf
        cli
        int     0xff
.bad:   jmp     .bad

        align   8
gdt:    dq      0
        dq      0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff
        dw      0x2067, main, 0x8900, 0
        dw      103, second, 0x8900, 0
        dw      43, small, 0x8100, 0
        dw      103, fault, 0x8900, 0
        dw      gate_code, FLAT, 0xec03, 0
        dq      0x00009b000000ffff
gdtr:   dw      gdtr - gdt - 1
        dd      gdt
idtr:   dw      8 * 0x41 - 1
        dd      idt
idt:    times   8 dq 0
        dw      0, FAULT, 0x8500, 0
        times   4 dq 0
        dw      general_protection, FLAT, 0x8e00, 0
        times   0x20 - 14 dq 0
        dw      timer, FLAT, 0x8e00, 0
        times   0x40 - 0x21 dq 0
        dw      returned, FLAT, 0xee00, 0

small:  dw      0, 0, 0, 0, 0, 0, 0, small_code, 2
.ax:    dw      0, 0, 0, 0, 0x7700, 0, 0, 0, DATA, CODE16, DATA, DATA, 0
        align   4
second: dd      0, 0, 0, 0, 0, 0, 0, 0x100000
.eip:   dd      second_code, 2, 0, 0, 0, 0, 0x76000, 0, 0, 0, DATA, FLAT, DATA, DATA, DATA, DATA, 0, 104 << 16
fault:  tss32   fault_code, 0x74000, 0x100000
main:   dd      0, 0x70000, DATA, 0, 0, 0, 0, 0x100000
.eip:   dd      0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 104 << 16   ; 8 KiB of permission bits follow
        times   512 * (SECTORS + 1) - ($ - $$) db 0
