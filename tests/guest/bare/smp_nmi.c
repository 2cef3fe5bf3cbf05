/* CPUs that are halted with interrupts disabled wake each other by NMIs, as memtest86+ does: at times all are halted, one of them with
   an NMI on its way. */
#include "smp.h"

#define TURNS 5000
static volatile u64 turn __attribute__((used));
extern u8 wait_begin[], wait_end[];

/* An NMI between the look and the HLT must not be lost. */
HANDLER(look_again)
{
    if (f->rip >= (u64)wait_begin && f->rip < (u64)wait_end)
        f->rip = (u64)wait_begin;
}

static __attribute__((noinline)) void wait_for(u64 wanted)
{
    while (turn != wanted)
        asm volatile(".globl wait_begin, wait_end\n"
                     "wait_begin: cmpq %0, turn(%%rip); je wait_end; hlt\n"
                     "wait_end:" ::"r"(wanted) : "memory", "cc");
}

WORK(pass_on)
{
    asm volatile("cli");
    for (u64 k = number; k < TURNS; k += CPUS) {
        wait_for(k);
        turn = k + 1;
        send_ipi((number + 1) % CPUS, SEND_NMI | ASSERT);
    }
}

int guest_main(void)
{
    x2apic = 1;
    outb(0x21, 0xff);
    handlers[NMI] = look_again;
    start_others();
    on_all(pass_on);
    EQUAL(turn, TURNS);
    return PASS;
}
