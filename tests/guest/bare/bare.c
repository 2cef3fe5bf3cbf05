/* See bare.h. */
#include "bare.h"
#include <stdarg.h>

handler handlers[256];
struct frame caught;
u64 caught_cr2;
__attribute__((aligned(4096))) u64 pml4[512];
static __attribute__((aligned(4096))) u64 pdpt[512], directories[4][512];
static __attribute__((aligned(4096))) u8 pool[96][4096];
static int pool_used;
__attribute__((aligned(4096))) u8 user_stack[4096], ist_stack[4096];
static __attribute__((aligned(16))) u8 trap_stack[16384];
__attribute__((aligned(16))) u64 idt[512], gdt[16];
struct tss tss;
struct table idt_pointer = {sizeof(idt) - 1, (u64)idt}, gdt_pointer = {sizeof(gdt) - 1, (u64)gdt};

void *memset(void *to, int value, u64 n)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, u64 n)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
    return start;
}

int memcmp(const void *a, const void *b, u64 n)
{
    const u8 *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

static void put(char c) { outb(0x3f8, c); }

static void number(u64 v, int base)
{
    char text[24];
    int n = 0;
    do {
        text[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (n)
        put(text[--n]);
}

/* %s, %d (u64, decimal), %x (u64), %c */
void print(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *s = va_arg(list, const char *); *s; s++)
                put(*s);
            break;
        case 'd': number(va_arg(list, u64), 10); break;
        case 'x': number(va_arg(list, u64), 16); break;
        case 'c': put(va_arg(list, int)); break;
        }
    }
    va_end(list);
}

void leave_machine(u32 value) { outb(0xf4, value); }

void fail(const char *file, int line, const char *what, u64 a, u64 b)
{
    print("FAIL %s:%d %s: %x %x\n", file, (u64)line, what, a, b);
    leave_machine(1);
    for (;;)
        asm volatile("cli; hlt");
}

void trap(struct frame *f)
{
    u64 cr2 = get_cr2();
    if (handlers[f->vector]) {
        handlers[f->vector](f);
        return;
    }
    caught = *f;
    caught_cr2 = cr2;
    if (catch_stack)
        catch_return(f->vector);
    print("exception %d error %x rip %x cs %x flags %x rsp %x cr2 %x rax %x\n", f->vector, f->error, f->rip, f->cs, f->rflags, f->rsp, cr2, f->rax);
    fail("trap", 0, "unexpected exception", f->vector, f->rip);
}

static void into_user(void *where) { to_user(((u64 *)where)[0], (u64)user_stack + sizeof(user_stack) - 8, ((u64 *)where)[1]); }

/* Runs code in ring 3 until an exception; `int $0x80` is the way back. */
int catch_user_at(u64 rip, u64 rflags)
{
    u64 where[2] = {rip, rflags};
    return catch(into_user, where);
}

int catch_user(void (*function)(void)) { return catch_user_at((u64)function, 2); }

void gate(int vector, u64 target, int ist, int dpl)
{
    idt[2 * vector] = (target & 0xffff) | (u64)KERNEL_CS << 16 | (u64)ist << 32 | (u64)(0x8e | dpl << 5) << 40 | (target >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = target >> 32;
}

void *new_page(void)
{
    if (pool_used == sizeof(pool) / 4096)
        fail("new_page", 0, "pool is empty", 0, 0);
    return memset(pool[pool_used++], 0, PAGE);
}

/* The entry for `va` at a level (1: 4 KiB, 2: 2 MiB, 3: 1 GiB); tables on the way are made with P, W, U. */
u64 *pte_of(u64 va, int level, u64 table_flags)
{
    u64 *t = pml4;
    for (int l = 4; l > level; l--) {
        u64 *e = &t[va >> (12 + 9 * (l - 1)) & 511];
        if (!(*e & P))
            *e = (u64)new_page() | table_flags;
        t = (u64 *)(*e & FRAME);
    }
    return &t[va >> (12 + 9 * (level - 1)) & 511];
}

void map(u64 va, u64 pa, u64 page_flags)
{
    *pte_of(va, 1, P | W | U) = pa | page_flags;
    invlpg(va);
}

static u64 seed_state = 88172645463325252UL;

u64 random_state(u64 seed)
{
    seed_state = seed * 0x9e3779b97f4a7c15UL | 1;
    return rnd();
}

u64 rnd(void)
{
    seed_state ^= seed_state << 13;
    seed_state ^= seed_state >> 7;
    seed_state ^= seed_state << 17;
    return seed_state * 2685821657736338717UL;
}

void bare_init(void)
{
    pml4[0] = (u64)pdpt | P | W | U;
    for (u64 n = 0; n < 4; n++) {
        pdpt[n] = (u64)directories[n] | P | W | U;
        for (u64 k = 0; k < 512; k++)
            directories[n][k] = n << 30 | k << 21 | LARGE | P | W | U;
    }
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 11 | 1);
    set_cr3((u64)pml4);
    set_cr0((get_cr0() & ~4UL) | 2);
    set_cr4(get_cr4() | 3 << 9);
    u64 base = (u64)&tss;
    gdt[1] = 0x00af9b000000ffff;
    gdt[2] = 0x00cf93000000ffff;
    gdt[3] = 0x00cffb000000ffff;
    gdt[4] = 0x00cff3000000ffff;
    gdt[5] = 0x00affb000000ffff;
    gdt[6] = (sizeof(tss) - 1) | (base & 0xffffff) << 16 | 0x89UL << 40 | (base >> 24 & 0xff) << 56;
    gdt[7] = base >> 32;
    tss.rsp[0] = (u64)trap_stack + sizeof(trap_stack);
    tss.ist[0] = (u64)ist_stack + sizeof(ist_stack);
    tss.iomap = sizeof(tss);
    for (int n = 0; n < 256; n++)
        gate(n, (u64)stubs + 16 * n, 0, n == 3 || n == 4 || n == 0x80 ? 3 : 0);
    asm volatile("lgdt %0; lidt %1" ::"m"(gdt_pointer), "m"(idt_pointer));
    asm volatile("push %0; lea 1f(%%rip), %%rax; push %%rax; lretq; 1: mov %1, %%ss; mov %1, %%ds; mov %1, %%es" ::"i"(KERNEL_CS), "r"((u64)KERNEL_SS) : "rax", "memory");
    asm volatile("ltr %w0" ::"r"(TSS_SELECTOR));
}
