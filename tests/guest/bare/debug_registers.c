/* The guest's own breakpoints: DR0-DR3 for execution, writes, reads and I/O, and that they cost nothing while nothing meets them. */
#include "bare.h"

static volatile u64 hits, last_dr6, last_rip, resume;
static volatile u64 data[1024] __attribute__((aligned(4096)));
static volatile u64 turns;
extern u8 at_nop[], at_rep[];

static void on_debug(struct frame *f)
{
    hits++;
    last_dr6 = get_dr6();
    last_rip = f->rip;
    set_dr6(0);
    if (resume)
        f->rflags |= 1 << 16;
    else
        set_dr7(0x400);
}

static u64 arm(int n, u64 kind, u64 length) { return 3UL << 2 * n | (kind | length << 2) << (16 + 4 * n) | 0x400; }

static void clear(void) { hits = last_dr6 = last_rip = 0; }

__attribute__((noinline)) static u64 three_nops(u64 v)
{
    asm volatile("inc %0; at_nop: nop; inc %0" : "+r"(v));
    return v;
}

__attribute__((noinline)) static void fill(volatile void *to, u64 n)
{
    asm volatile("at_rep: rep stosb" : "+D"(to), "+c"(n) : "a"(1) : "memory");
}

__attribute__((noinline)) static void way(void)
{
    for (u64 i = 0; i < WAY; i++)
        turns++;
}

int guest_main(void)
{
    handlers[DB] = on_debug;

    /* execution: before the instruction; RF lets it pass once */
    resume = 1;
    set_dr0((u64)at_nop);
    set_dr7(arm(0, 0, 0));
    way();
    for (u64 k = 1; k <= 3; k++) {
        EQUAL(three_nops(5), 7);
        EQUAL(hits, k);
        EQUAL(last_rip, (u64)at_nop);
        EQUAL(last_dr6 & 0xf, 1);
    }
    set_dr7(0x400);
    clear();
    three_nops(5);
    EQUAL(hits, 0);

    /* without RF the handler has to take the breakpoint away */
    resume = 0;
    set_dr7(arm(0, 0, 0));
    EQUAL(three_nops(5), 7);
    EQUAL(hits, 1);
    clear();

    /* writes: after the instruction; neighbours and reads do not count */
    resume = 1;
    set_dr1((u64)&data[8]);
    set_dr7(arm(1, 1, 2));          /* eight bytes */
    data[7] = data[9] = 1;
    turns += data[8];
    EQUAL(hits, 0);
    data[8] = 2;
    EQUAL(hits, 1);
    EQUAL(last_dr6 & 0xf, 2);
    ((volatile u8 *)data)[8 * 8 + 7] = 3;
    EQUAL(hits, 2);
    *(volatile u64 *)((u64)data + 8 * 8 - 4) = 4;   /* overlaps */
    EQUAL(hits, 3);
    asm volatile("lock incq %0" : "+m"(data[8]));
    EQUAL(hits, 4);
    way();
    clear();

    /* reads and writes of two bytes, across a page's end */
    set_dr2((u64)data + 4096 - 2);
    set_dr7(arm(2, 3, 1));
    turns += *(volatile u64 *)((u64)data + 4096 - 8);
    EQUAL(hits, 1);
    EQUAL(last_dr6 & 0xf, 4);
    turns += *(volatile u32 *)((u64)data + 4096 - 6);
    EQUAL(hits, 1);
    *(volatile u16 *)((u64)data + 4096 - 1) = 0;
    EQUAL(hits, 2);
    clear();

    /* a string: the element that touches it */
    set_dr3((u64)data + 100);
    set_dr7(arm(3, 1, 0));
    fill(data, 300);
    EQUAL(hits, 1);
    EQUAL(last_rip, (u64)at_rep);   /* between two elements */
    EQUAL(((volatile u8 *)data)[299], 1);
    clear();

    /* two at once, and another address in an armed register */
    set_dr0((u64)&data[20]);
    set_dr1((u64)&data[20]);
    set_dr7(arm(0, 1, 2) | arm(1, 3, 2));
    data[20] = 1;
    EQUAL(last_dr6 & 0xf, 3);
    turns += data[20];
    EQUAL(last_dr6 & 0xf, 2);
    set_dr0((u64)&data[30]);
    set_dr7(arm(0, 1, 2));
    data[20] = 2;
    EQUAL(hits, 2);
    data[30] = 2;
    EQUAL(hits, 3);
    clear();

    /* I/O, with CR4.DE */
    set_cr4(get_cr4() | 8);
    set_dr0(0x80);
    set_dr7(arm(0, 2, 0));
    outb(0x81, 0);
    EQUAL(hits, 0);
    outb(0x80, 0);
    EQUAL(hits, 1);
    EQUAL(last_dr6 & 0xf, 1);
    set_dr7(0x400);
    set_cr4(get_cr4() & ~8UL);

    /* single steps beside a breakpoint */
    clear();
    set_dr0((u64)at_nop);
    set_dr7(arm(0, 0, 0));
    EQUAL(three_nops(1), 3);
    EQUAL(hits, 1);
    set_dr7(0x400);
    EQUAL(turns > 2 * WAY, 1);
    return PASS;
}
