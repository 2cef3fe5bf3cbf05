/* More generations of code, made by all CPUs at once, than an engine has room for. */
#include "smp.h"

#define UPDATES 40
static u8 pages[MOST_CPUS][4096] __attribute__((aligned(4096)));
static volatile u64 updates[MOST_CPUS][512] __attribute__((aligned(4096)));

WORK(generate)
{
    u8 *at = pages[number] + 3;
    at[0] = 0xb8; /* mov $value, %eax; then incq (%rdx) so many times, which are long in translated code; ret */
    for (int n = 0; n < UPDATES; n++) {
        at[5 + 3 * n] = 0x48;
        at[6 + 3 * n] = 0xff;
        at[7 + 3 * n] = 0x02;
    }
    at[5 + 3 * UPDATES] = 0xc3;
    for (u64 k = 0; k < GENERATIONS; k++) {
        *(volatile u32 *)(at + 1) = k + number;
        u64 v;
        asm volatile("call *%1" : "=a"(v) : "r"(at), "d"(updates[number]) : "memory");
        if (v != k + number)
            fail("generate", number, "value", v, k + number);
    }
    EQUAL(updates[number][0], (u64)GENERATIONS * UPDATES);
}

int guest_main(void)
{
    x2apic = 1;
    outb(0x21, 0xff);
    start_others();
    on_all(generate);
    return PASS;
}
