/* Everything that can be written to 8042, keyboard, mouse, A20, port 0x61, printer port and test device, at random, with its
   interrupts; what resets the machine is left out. */
#include "bare.h"

static void end_of_interrupt(struct frame *f)
{
    (void)f;
    if (rnd() & 1)
        inb(0x60);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

int guest_main(void)
{
    static const u16 ports[] = {0x60, 0x60, 0x60, 0x64, 0x64, 0x61, 0x42, 0x43, 0x92, 0x378, 0x379, 0x37a, 0xe0, 0xe4, 0xe8, 0x2000};
    static const u8 words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4}, {0xa1, 2}, {0x21, 1}, {0xa1, 1}, {0x21, 0}, {0xa1, 0}};
    random_state(SEED);
    for (u32 k = 0; k < 10; k++)
        outb(words[k][0], words[k][1]);
    outb(0x4d0, 0); /* firmware made some inputs level-triggered, which the test device could hold for ever */
    outb(0x4d1, 0);
    for (int k = 0x20; k < 0x30; k++)
        handlers[k] = end_of_interrupt;
    sti();
    u8 last = 0;
    for (u32 k = 0; k < ROUNDS; k++) {
        u64 r = rnd();
        u16 port = ports[r & 15];
        u8 v = r >> 8;
        if (r >> 16 & 1)
            v |= 0xa0; /* where most commands are */
        if (port == 0x2000)
            port += (r >> 24) % 24;
        if ((r >> 32 & 3) == 0) {
            inb(port);
            continue;
        }
        if (port == 0x64 && v >= 0xf0)
            v = 0xd4;
        if (port == 0x60 && last == 0xd1)
            v |= 1;
        if (port == 0x92)
            v &= ~1;
        if (port == 0x64)
            last = v;
        outb(port, v);
        if (r >> 40 & 1)
            *(volatile u32 *)(0xff000000 + (r >> 44 & 0xfffc)) = v;
    }
    cli();
    outb(0x64, 0xdf);
    for (u32 k = 0; k < 100; k++) /* a controller that still answers is whole */
        inb(0x60);
    outb(0x64, 0xad);
    outb(0x64, 0xa7);
    for (u32 k = 0; k < 100; k++)
        inb(0x60);
    outb(0x64, 0xaa);
    EQUAL(inb(0x64) & 1, 1);
    EQUAL(inb(0x60), 0x55);
    return PASS;
}
