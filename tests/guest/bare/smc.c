/* Self-modifying and cross-modifying code.  Single-processor rules (SDM 3A 12.6, 9.1.3): a store is seen by the very next
   instruction, whatever address it was made through; a changed mapping after INVLPG or a load of CR3. */
#include "bare.h"

#define VA1 0x8000000000UL
#define VA2 0x8000200000UL

typedef u64 (*function)(u64, u64);
typedef void (*handler_of_code)(void *);
static u8 *page, *second;

static u8 *put(u8 *at, const char *bytes, int n)
{
    for (int k = 0; k < n; k++)
        ((volatile u8 *)at)[k] = bytes[k];
    return at + n;
}
#define PUT(at, bytes) put(at, bytes, sizeof(bytes) - 1)

static u64 call(const void *code, u64 a, u64 b) { return ((function)(u64)code)(a, b); }

/* mov eax, value; ret */
static void returns(u8 *at, u32 value)
{
    u8 *p = PUT(at, "\xb8");
    *(volatile u32 *)p = value;
    PUT(p + 4, "\xc3");
}

/* Position-independent pieces of code, copied to where they shall run.  1: is the instruction that is changed. */
#define PIECE(name, text) \
    extern const u8 name[], name##_end[]; \
    asm(".pushsection .rodata\n" #name ":\n" text "\n" #name "_end:\n.popsection")
#define SIZE(name) ((int)(name##_end - name))

PIECE(mov8, "mov %dil, 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(mov16, "mov %di, 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(mov32, "mov %edi, 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(mov64, "mov %rdi, 1f+2(%rip); 1: movabs $0, %rax; ret");
PIECE(farther, "mov %edi, 1f+1(%rip); nop; xor %eax, %eax; add $1, %eax; 1: mov $0, %eax; ret");
PIECE(xchg32, "xchg %edi, 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(exchange_add, "movl $0, 1f+1(%rip); lock xadd %edi, 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(or_memory, "movl $0, 1f+1(%rip); or %edi, 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(movq_store, "movq %rdi, %xmm0; movq %xmm0, 1f+2(%rip); 1: movabs $0, %rax; ret");
PIECE(movups_store, "movdqu 1f(%rip), %xmm0; movd %edi, %xmm1; psllq $8, %xmm1; por %xmm1, %xmm0; movups %xmm0, 1f(%rip); 1: mov $0, %eax; ret; .skip 10");
PIECE(stosd_store, "mov %edi, %eax; lea 1f+1(%rip), %rdi; stosl; 1: mov $0, %eax; ret");
PIECE(rep_stosb, "mov %edi, %eax; lea 1f+1(%rip), %rdi; mov $4, %ecx; rep stosb; 1: mov $0, %eax; ret");
PIECE(rep_movsb, "mov %edi, -8(%rsp); lea -8(%rsp), %rsi; lea 1f+1(%rip), %rdi; mov $4, %ecx; rep movsb; 1: mov $0, %eax; ret");
PIECE(push_over, "mov %rsp, %rdx; lea 1f+10(%rip), %rsp; push %rdi; mov %rdx, %rsp; 1: movabs $0, %rax; ret");
PIECE(push_next, "mov %rsp, %rdx; lea 1f+10(%rip), %rsp; push %rdi; 1: movabs $0, %rax; mov %rdx, %rsp; ret");
PIECE(call_over, "mov %rsp, %rdx; lea 1f+10(%rip), %rsp; call 2f; 2: pop %rcx; push %rdi; 1: movabs $0, %rax; mov %rdx, %rsp; ret");
PIECE(stmxcsr_store, "stmxcsr 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(fnstcw_store, "fnstcw 1f+1(%rip); 1: mov $0, %eax; ret");
PIECE(fxsave_store, "1: fxsave 1b-153(%rip); mov $0, %eax; ret; .skip 400");
PIECE(sidt_store, "sidt 1f(%rip); 1: .fill 10, 1, 0x90; ret");
PIECE(growing, "mov $100, %ecx; xor %eax, %eax; 1: add $1, %eax; incb 1b+2(%rip); dec %ecx; jnz 1b; ret");
PIECE(indirect, "mov %edi, (%rsi); mov $0, %eax; ret");

static void copy(u8 *to, const u8 *from, int n)
{
    for (int k = 0; k < n; k++)
        ((volatile u8 *)to)[k] = from[k];
}

/* A block that changes the instructions right behind the store, by every kind of store; the value is the first argument. */
static void stores_ahead(u8 *code)
{
    static const struct { const char *name; const u8 *bytes, *end; u64 mask, times; } forms[] = {
#define FORM(name, mask, times) {#name, name, name##_end, mask, times}
        FORM(mov8, 0xff, 1), FORM(mov16, 0xffff, 1), FORM(mov32, 0xffffffff, 1), FORM(mov64, ~0UL, 1), FORM(farther, 0xffffffff, 1),
        FORM(xchg32, 0xffffffff, 1), FORM(exchange_add, 0xffffffff, 1), FORM(or_memory, 0xffffffff, 1), FORM(movq_store, ~0UL, 1),
        FORM(stosd_store, 0xffffffff, 1), FORM(rep_stosb, 0xff, 0x01010101), FORM(rep_movsb, 0xffffffff, 1), FORM(push_over, ~0UL, 1),
        FORM(push_next, ~0UL, 1), FORM(call_over, ~0UL, 1), FORM(movups_store, 0xffffffff, 1),
    };
    for (int f = 0; f < sizeof(forms) / sizeof(forms[0]); f++) {
        int size = forms[f].end - forms[f].bytes;
        for (int offset = 0; offset < PAGE; offset += offset < 70 || offset >= 4040 ? 1 : offset < 4000 ? 1990 : 40) {
            for (u64 k = 1; k < 4; k++) {
                copy(code + offset, forms[f].bytes, size);
                u64 value = k * 0x1111111122334455UL, got = call(code + offset, value, 0);
                if (got != (value & forms[f].mask) * forms[f].times)
                    fail(forms[f].name, offset, "store ahead", got, value);
            }
        }
    }
}

/* Stores of system and floating-point instructions over what follows them. */
static void odd_stores_ahead(void)
{
    u32 mxcsr = 0x1fc0;
    asm volatile("ldmxcsr %0" ::"m"(mxcsr));
    copy(page, stmxcsr_store, SIZE(stmxcsr_store));
    EQUAL(call(page, 0, 0), 0x1fc0);
    copy(page, fnstcw_store, SIZE(fnstcw_store));
    EQUAL(call(page, 0, 0), 0x37f);
    for (u32 k = 1; k < 4; k++) {  /* XMM0 is 160 bytes into the image: the instructions behind FXSAVE */
        copy(page + 153, fxsave_store, SIZE(fxsave_store));
        u64 code[2] = {0xc300000000b8 | (u64)k << 8, 0};
        asm volatile("movups %0, %%xmm0" ::"m"(code));
        EQUAL(call(page + 153, 0, 0), k);
    }
    struct table odd = {0xb848, (u64)idt};  /* the first two bytes of what SIDT stores: movabs rax */
    asm volatile("lidt %0" ::"m"(odd));
    copy(page, sidt_store, SIZE(sidt_store));
    EQUAL(call(page, 0, 0), (u64)idt);
    asm volatile("lidt %0" ::"m"(idt_pointer));
    mxcsr = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(mxcsr));
}

static void loops(void)
{
    for (int round = 0; round < 3; round++) {
        copy(page, growing, SIZE(growing));
        EQUAL(call(page, 0, 0), 5050);
    }
    /* The tail jump of a function goes to other functions in turn, as kernels patch their calls. */
    returns(page + 64, 1);
    returns(page + 128, 2);
    returns(second + 64, 3);
    PUT(page, "\x90\x90\x90\xe9");
    for (u32 k = 0; k < 3000; k++) {
        u8 *to = k % 3 == 0 ? page + 64 : k % 3 == 1 ? page + 128 : second + 64;
        *(volatile u32 *)(page + 4) = (u64)to - (u64)page - 8;
        EQUAL(call(page, 0, 0), k % 3 + 1);
        EQUAL(call(page, 0, 0), k % 3 + 1);
    }
    /* int3 over an instruction and back, as debuggers do. */
    for (int k = 0; k < 100; k++) {
        returns(page + 256, k);
        EQUAL(call(page + 256, 0, 0), k);
        *(volatile u8 *)(page + 256) = 0xcc;
        EQUAL(catch((handler_of_code)(page + 256), 0), BP);
        EQUAL(caught.rip, page + 257);
        *(volatile u8 *)(page + 256) = 0xb8;
        EQUAL(call(page + 256, 0, 0), k);
    }
}

static void aliases(void)
{
    map(VA1, (u64)page, P | W);
    map(VA1 + PAGE, (u64)second, P | W);
    map(VA2, (u64)page, P | W);
    map(VA2 + PAGE, (u64)second, P | W);
    for (u32 k = 0; k < 1000; k++) {
        u8 *through[] = {page, (u8 *)VA1, (u8 *)VA2};
        u32 at = k * 7 % 4000;
        returns(through[k % 3] + at, k);
        for (int n = 0; n < 3; n++)
            EQUAL(call(through[n] + at, 0, 0), k);
    }
    stores_ahead((u8 *)VA1);
    /* mov [rsi], edi with the alias of the very next instruction's immediate: mov eax, 0; ret */
    for (u32 k = 1; k < 300; k++) {
        u32 at = k * 11 % 4000;
        copy(page + at, indirect, SIZE(indirect));
        EQUAL(call((u8 *)VA1 + at, k, VA2 + at + 3), k);
        EQUAL(call(page + at, k + 1, VA1 + at + 3), k + 1);
    }
    /* Stores across the page end, over code on both sides. */
    for (u32 k = 0; k < 200; k++) {
        u8 buffer[16];
        returns(buffer, k);
        *(volatile u64 *)(VA2 + PAGE - 3) = *(u64 *)buffer;
        EQUAL(call((void *)(VA1 + PAGE - 3), 0, 0), k);
        memcpy((void *)(VA1 + PAGE - 4), buffer, 6);
        EQUAL(call((void *)(VA2 + PAGE - 4), 0, 0), k);
        asm volatile("movups %0, %%xmm0; movups %%xmm0, (%1)" ::"m"(buffer), "r"(VA1 + PAGE - 2) : "memory");
        EQUAL(call((void *)(VA2 + PAGE - 2), 0, 0), k);
    }
}

/* An instruction across a page end whose second page changes its bytes, its frame or its rights. */
static void crossing(void)
{
    u8 *third = new_page();
    for (u32 k = 1; k < 5; k++) {
        const u8 *start = (u8 *)VA1 + PAGE - k;
        map(VA1, (u64)page, P | W);
        map(VA1 + PAGE, (u64)second, P | W);
        returns((u8 *)start, 100);
        memcpy(third, second, 64);
        third[4 - k] = 0x12;  /* the highest byte of the immediate */
        EQUAL(call(start, 0, 0), 100);
        second[4 - k] = 0x77;
        EQUAL(call(start, 0, 0), 0x77000064);
        second[4 - k] = 0;
        EQUAL(call(start, 0, 0), 100);
        map(VA1 + PAGE, (u64)third, P | W);
        EQUAL(call(start, 0, 0), 0x12000064);
        *pte_of(VA1 + PAGE, 1, 0) = 0;
        invlpg(VA1 + PAGE);
        EQUAL(catch((handler_of_code)start, 0), PF);
        EQUAL(caught_cr2, VA1 + PAGE);
        EQUAL(caught.error, 0x10);
        EQUAL(caught.rip, start);
        map(VA1 + PAGE, (u64)second, P | W | NX);
        EQUAL(catch((handler_of_code)start, 0), PF);
        EQUAL(caught.error, 0x11);
        map(VA1 + PAGE, (u64)second, P | W);
        EQUAL(call(start, 0, 0), 100);
    }
}

/* The same address with other code behind it, by INVLPG and by CR3; calls go through the jump cache. */
static void mappings(void)
{
    static u64 other[512] __attribute__((aligned(4096)));
    u8 *frames[4];
    for (int k = 0; k < 4; k++) {
        frames[k] = new_page();
        returns(frames[k] + 32, k);
    }
    for (u32 k = 0; k < 4000; k++) {
        map(VA1, (u64)frames[k * 5 >> 1 & 3], P);
        EQUAL(call((u8 *)VA1 + 32, 0, 0), k * 5 >> 1 & 3);
    }
    memcpy(other, pml4, PAGE);
    u64 *tables[3];
    for (int k = 0; k < 3; k++)
        tables[k] = new_page();
    other[1] = (u64)tables[0] | P | W;
    tables[0][0] = (u64)tables[1] | P | W;
    tables[1][0] = (u64)tables[2] | P | W;
    tables[2][0] = (u64)frames[3] | P;
    map(VA1, (u64)frames[0], P);
    for (u32 k = 0; k < 4000; k++) {
        set_cr3(k & 1 ? (u64)other : (u64)pml4);
        EQUAL(call((u8 *)VA1 + 32, 0, 0), k & 1 ? 3 : 0);
        if (k % 100 == 0)
            returns(frames[0] + 32, 0);
    }
    set_cr3((u64)pml4);
}

/* Code made, used and thrown away until the engine's room for translated code has been used up more than once. */
static void generations(void)
{
    u32 kept = 0;
    returns(page + 2048, 4711);
    for (u32 k = 0; k < GENERATIONS; k++) {
        u8 *at = page + (k * 64 & 0x7c0);
        PUT(at, "\x89\xf8\x05");  /* mov eax, edi; add eax, imm; xor eax, imm; ret */
        *(volatile u32 *)(at + 3) = k;
        PUT(at + 7, "\x35\x5a\x00\x00\x00\xc3");
        EQUAL(call(at, 1, 0), ((k + 1) ^ 0x5a) & 0xffffffff);
        if (k % 1000 == 0)
            kept += call(page + 2048, 0, 0) == 4711;
    }
    EQUAL(kept, (GENERATIONS + 999) / 1000);
}

int guest_main(void)
{
    page = new_page();
    second = new_page();
    CHECK(second == page + PAGE);
    stores_ahead(page);
    print("stores ahead\n");
    odd_stores_ahead();
    print("odd stores\n");
    loops();
    print("loops\n");
    aliases();
    print("aliases\n");
    crossing();
    print("crossing\n");
    mappings();
    print("mappings\n");
    generations();
    print("generations\n");
    return PASS;
}
