/* A CPU beside the first brings the machine to its end, in the way that a macro names. */
#include "smp.h"

static void no_table(void)
{
    struct table none = {0, 0};
    asm volatile("lidt %0; int3" ::"m"(none));
}

static volatile u64 alone;

static void finish(u64 number)
{
    if (number == 0) {
#ifdef RESET
        for (;;)
            pause_();
#endif
        for (;;)
            asm volatile("cli; hlt");
    }
    wait_us(50000);
#if defined(TRIPLE)
    no_table();
#elif defined(POWER)
    outw(0x604, 5 << 10 | 1 << 13);
#elif defined(HALT_FIRST)
    wait_us(100000); /* the first one halts for ever, the machine goes on */
    leave_machine(PASS);
#elif defined(RESET)
    outb(0x70, 0);
    outb(0xcf9, 6);
#endif
    for (;;)
        asm volatile("cli; hlt");
}

int guest_main(void)
{
    x2apic = 1;
    outb(0x21, 0xff);
#ifdef RESET
    /* Memory is cleared by a reset, but for CMOS. */
    outb(0x70, 0x50);
    u8 before = inb(0x71);
    outb(0x70, 0x50);
    outb(0x71, 0x77);
    if (before == 0x77) {
        set_up_apic();
        wait_us(50000);
        EQUAL(cpus_up, 0);
        start_others();
        return PASS;
    }
#endif
    start_others();
    on_all(finish);
    return 1;
}
