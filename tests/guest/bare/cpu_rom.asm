; A ROM that finds out which CPU it runs on, the way programs did, checks what came with that generation and what had not come
; yet, and ends the machine with the generation (0 8086, 1 80186, 2 to 6, 15) or with 64 + the number of the check that failed.
; nasm -f bin -D GENERATION=n

        cpu     p3
        bits    16
        org     0
        section .text start=0

%define EXIT 0xf4
%macro  finish 1                        ; ends the machine
        mov     al, %1
        out     EXIT, al
%%stop: hlt
        jmp     %%stop
%endmacro
%macro  check 1                         ; fails with the number unless ZF is set
        je      %%fine
        finish  64 + %1
%%fine:
%endmacro

; An instruction that needs at least this generation; any other raises INT 6 (but on the 8086).
%assign probe 16
%macro  since 2+
        mov     word [after], %%behind
        mov     byte [undefined], 0
        %2
%%behind:
%if GENERATION >= %1
        cmp     byte [undefined], 0
%else
        cmp     byte [undefined], 1
%endif
        check   probe
%assign probe probe + 1
%endmacro

undefined equ 0x504                     ; set by INT 6, in segment 0
after   equ 0x506                       ; where INT 6 goes on

start:
        cli
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7000
        mov     bp, dx                  ; what reset left in DX
        mov     word [6 * 4], invalid
        mov     word [6 * 4 + 2], 0xf000

; ---- the generation
        pushf                           ; 8086 and 80186: bits 15:12 are always set
        pop     ax
        and     ax, 0x0fff
        push    ax
        popf
        pushf
        pop     ax
        and     ax, 0xf000
        cmp     ax, 0xf000
        jne     .newer
        mov     al, 0xff                ; the 8086 shifts by all of CL
        mov     cl, 0x21
        shr     al, cl
        mov     al, 0
        jz      .found
        mov     al, 1
        jmp     .found
.newer: mov     ax, 0x7000              ; 80286: bits 15:12 are always clear in real mode
        push    ax
        popf
        pushf
        pop     ax
        and     ax, 0x7000
        mov     al, 2
        jz      .found
        mov     cx, 18                  ; 80386: AC cannot be changed
        call    toggles
        mov     al, 3
        jz      .found
        mov     cx, 21                  ; 80486: ID cannot be changed
        call    toggles
        mov     al, 4
        jz      .found
        mov     eax, 1
        cpuid
        mov     bl, ah
        and     bl, 15
        movzx   cx, ah
        mov     dx, bp
        and     dh, 15
        cmp     bl, dh                  ; the signature in DX and in EAX
        check   1
        mov     al, bl
.found: cmp     al, GENERATION
        je      .right
        or      al, 0x20
        finish  al
.right:

; ---- what reset left in DX
%if GENERATION == 3 || GENERATION == 4
        mov     ax, bp
        cmp     ah, GENERATION
        check   2
%endif

; ---- PUSH SP: the decremented SP up to the 80186
        mov     bx, sp
        push    sp
        pop     ax
%if GENERATION < 2
        sub     bx, 2
%endif
        cmp     ax, bx
        check   3

; ---- the address above 1 MiB: the 8086 has none
%if GENERATION >= 2
        in      al, 0x92
        or      al, 2
        out     0x92, al
%endif
        mov     ax, 0xffff
        mov     es, ax
        mov     word [0x600], 0x1234
        mov     word [es:0x610], 0x5678
        mov     ax, [0x600]
%if GENERATION < 2
        cmp     ax, 0x5678
%else
        cmp     ax, 0x1234
%endif
        check   4

; ---- shifts by 32 and more: modulo 32 since the 80186
        mov     ax, 1
        mov     cl, 32
        shl     ax, cl
%if GENERATION == 0
        cmp     ax, 0
%else
        cmp     ax, 1
%endif
        check   5
        stc
        mov     ax, 0x8000              ; through carry: 17 bits
        mov     cl, 34
        rcl     ax, cl
%if GENERATION == 0
        cmp     ax, 0x8000              ; twice around
%else
        cmp     ax, 3                   ; two places
%endif
        check   6

; ---- a division by zero pushes the address of DIV itself since the 80286, of the instruction behind it before
        mov     word [0], divided
        mov     word [2], 0xf000
        xor     ax, ax
        xor     dx, dx
        xor     bx, bx
        mov     si, 0
division:
        div     bx
behind_division:
        jmp     after_division
divided:
        pop     si
        mov     ax, behind_division     ; the 8086 pushes no constants
        push    ax
        iret
after_division:
%if GENERATION < 2
        cmp     si, behind_division
%else
        cmp     si, division
%endif
        check   7

%if GENERATION == 0
; ---- aliases: 60-6F are the conditional jumps, C0 and C1 are RET
        xor     ax, ax
        db      0x64, 2                 ; JZ
        jmp     short .no
        mov     ax, 1
.no:    cmp     ax, 1
        check   8
        mov     ax, .returned
        push    ax
        db      0xc1                    ; RET
        finish  64 + 9
.returned:
        push    ds                      ; POP CS
        mov     ax, 0xf000
        push    ax
        db      0x0f
        nop
        pop     ds
        mov     dx, 7                   ; D6: SALC, as on all of them
        stc
        db      0xd6
        cmp     al, 0xff
        check   10
%else
; ---- instructions of later generations
        since   1, db 0x6a, 0x00, 0x58                  ; push 0; pop ax
        since   2, smsw ax
        since   3, db 0x66, 0x40                        ; inc eax
        since   3, db 0x64, 0x8b, 0x07                  ; mov ax, [fs:bx]
        since   3, movzx ax, bl
        since   3, mov eax, cr0
        since   3, db 0x8c, 0xe0                        ; mov ax, fs
        since   4, bswap eax
        since   4, xadd ax, bx
        since   4, cmpxchg bx, cx
        since   4, wbinvd
        since   5, mov eax, cr4
%if GENERATION >= 3
        xor     eax, eax
%endif
        since   5, cpuid
        since   5, rdtsc
        mov     bx, 0x700
        since   5, cmpxchg8b [bx]
        since   6, cmovz ax, bx
        since   6, db 0x0f, 0x1f, 0x00                  ; nop word [bx + si]
%endif
        finish  GENERATION

; ZF: bit CX of EFLAGS cannot be changed
toggles:
        pushfd
        pop     eax
        mov     ebx, 1
        shl     ebx, cl
        mov     edx, eax
        xor     edx, ebx
        push    edx
        popfd
        pushfd
        pop     ecx
        push    eax
        popfd
        xor     ecx, eax
        and     ecx, ebx
        ret

invalid:
        push    bp
        mov     bp, sp
        push    ax
        mov     ax, [ss:after]
        mov     [bp + 2], ax
        mov     byte [ss:undefined], 1
        pop     ax
        pop     bp
        iret

        times 0xfff0 - ($ - $$) db 0xff
reset:  jmp     0xf000:start
        times 0x10000 - ($ - $$) db 0
