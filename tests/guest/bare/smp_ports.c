/* CPUs write to the serial port in turns: the line carries the bytes in that order, whoever wrote them. */
#include "smp.h"

#define BYTES 20000
static volatile u64 turn;

WORK(write_in_turns)
{
    for (u64 k = number; k < BYTES; k += CPUS) {
        while (turn != k)
            pause_();
        while (!(inb(0x3fd) & 0x20))
            pause_();
        outb(0x3f8, k % 61 == 60 ? '\n' : 'A' + k % 61);
        turn = k + 1;
    }
}

int guest_main(void)
{
    x2apic = 1;
    outb(0x21, 0xff);
    start_others();
    print("begin\n");
    on_all(write_in_turns);
    print("end\n");
    return PASS;
}
