/* The small parts of an old PC, by polling and by interrupt: 8042, keyboard and mouse, A20, port 0x61, printer port, test device. */
#include "bare.h"

static volatile u32 seen[16];
static volatile u8 key;

static void irq(struct frame *f)
{
    int n = f->vector - 0x20;
    seen[n]++;
    if (n == 1)
        key = inb(0x60);
    if (n >= 8)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

static void pics(void)
{
    static const u8 words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4}, {0xa1, 2}, {0x21, 1}, {0xa1, 1}};
    for (int k = 0; k < 8; k++)
        outb(words[k][0], words[k][1]);
    outb(0x21, 0xff & ~(1 << 1 | 1 << 2 | 1 << 5 | 1 << 7));
    outb(0xa1, 0xff & ~(1 << 4));
    for (int k = 0; k < 16; k++)
        handlers[0x20 + k] = irq;
}

static void wait_irq(int n, u32 count)
{
    for (u64 k = 0; k < 3000000 && seen[n] < count; k++)
        asm volatile("pause");
    EQUAL(seen[n], count);
}

/* A byte from the keyboard's or the mouse's side. */
static u8 from(int aux)
{
    for (u64 k = 0; k < 3000000; k++) {
        u8 status = inb(0x64);
        if (status & 1) {
            EQUAL(status >> 5 & 1, aux);
            return inb(0x60);
        }
    }
    fail(__FILE__, __LINE__, "no byte", aux, inb(0x64));
}

static void command(u8 c) { while (inb(0x64) & 2) {} outb(0x64, c); }
static void send(u8 v) { while (inb(0x64) & 2) {} outb(0x60, v); }
static void mouse(u8 v) { command(0xd4); send(v); EQUAL(from(1), 0xfa); }

static void keyboard_and_mouse(void)
{
    command(0xad);
    command(0xa7);
    while (inb(0x64) & 1)
        inb(0x60);
    command(0xaa);
    EQUAL(from(0), 0x55);
    command(0xab);
    EQUAL(from(0), 0);
    command(0xa9);
    EQUAL(from(0), 0);
    command(0x60);
    send(0x40);
    send(0xff);
    EQUAL(from(0), 0xfa);
    EQUAL(from(0), 0xaa);
    send(0xf2);
    EQUAL(from(0), 0xfa);
    EQUAL(from(0), 0xab);
    EQUAL(from(0), 0x41);
    mouse(0xff);
    EQUAL(from(1), 0xaa);
    EQUAL(from(1), 0);
    static const u8 rates[] = {200, 100, 80};
    for (int k = 0; k < 3; k++) {
        mouse(0xf3);
        mouse(rates[k]);
    }
    mouse(0xf2);
    EQUAL(from(1), 3);
    EQUAL(seen[1] + seen[12], 0);

    command(0x60);
    send(0x43 | 4);
    command(0xd2);
    send(0x1e);
    wait_irq(1, 1);
    EQUAL(key, 0x1e);
    send(0xee);
    wait_irq(1, 2);
    EQUAL(key, 0xee);
    command(0xd3);
    send(0x5a);
    wait_irq(12, 1);
    EQUAL(from(1), 0x5a);
    command(0x60);
    send(0x44);
}

static int a20_open(void)
{
    volatile u32 *low = (u32 *)0x5000, *high = (u32 *)0x105000;
    *low = 0x11111111;
    *high = 0x22222222;
    return *low == 0x11111111;
}

static void a20_gate(void)
{
    CHECK(a20_open());
    for (int round = 0; round < 3; round++) {
        outb(0x92, inb(0x92) & ~3);
        CHECK(!a20_open());
        EQUAL(inb(0x92) & 2, 0);
        command(0xd1);
        send(0xdf);
        CHECK(a20_open());
        EQUAL(inb(0x92) & 2, 2);
        command(0xd1);
        send(0xdd);
        CHECK(!a20_open());
        command(0xd0);
        EQUAL(from(0) & 3, 1);
        outb(0x92, 2);
        CHECK(a20_open());
        command(0xdd);
        CHECK(!a20_open());
        command(0xdf);
        CHECK(a20_open());
    }
}

/* Ten milliseconds by channel 2, as kernels calibrate; meanwhile the refresh bit toggles every 15 us.  How many times it was seen
   depends on how busy the host is, but never more than that. */
static u32 refreshes_in_10_ms(void)
{
    outb(0x61, inb(0x61) & ~3);
    outb(0x43, 0xb0);
    outb(0x42, 11932 & 0xff);
    outb(0x42, 11932 >> 8);
    CHECK(!(inb(0x61) & 0x20));
    outb(0x61, inb(0x61) | 1);
    u32 toggles = 0, last = inb(0x61) & 0x10, now;
    for (;;) {
        now = inb(0x61);
        toggles += (now & 0x10) != last;
        last = now & 0x10;
        if (now & 0x20)
            return toggles;
    }
}

static void speaker_port(void)
{
    u32 most = 0;
    for (int round = 0; round < 100 && most < 200; round++) {
        u32 toggles = refreshes_in_10_ms();
        if (toggles > most)
            most = toggles;
    }
    print("refreshes in 10 ms: %d\n", (u64)most);
    CHECK(most >= 200 && most <= 665);
    outb(0x61, 0x0e);
    EQUAL(inb(0x61) & 0x0f, 0x0e);
    outb(0x61, 0);
}

static void printer(void)
{
    const char *text = "printed by interrupt\r\n";
    for (u32 n = 1; *text; text++, n++) {
        CHECK(inb(0x379) & 0x80);
        outb(0x378, *text);
        outb(0x37a, 0x1d);
        outb(0x37a, 0x1c);
        wait_irq(7, n);
        CHECK(!(inb(0x379) & 0x40));
    }
    for (text = "and by polling\r\n"; *text; text++) {
        outb(0x378, *text);
        outb(0x37a, 0x0d);
        outb(0x37a, 0x0c);
        while (inb(0x379) & 0x40) {}
    }
    EQUAL(inb(0x37b), 0xff);
}

static void test_device(void)
{
    outl(0xe0, 0x12345678);
    outb(0xe1, 0xab);
    EQUAL(inl(0xe0), 0x1234ab78);
    EQUAL(inl(0xe8), 0x1234ab78);
    EQUAL(inw(0xe2), 0x1234);
    outl(0xe4, (u32)(u64)new_page());
    volatile u8 *bytes = (u8 *)0xff001003;
    *(volatile u64 *)bytes = 0x1122334455667788;
    EQUAL(*(volatile u32 *)(bytes + 2), 0x33445566);
    asm volatile("lock addl $1, (%0)" ::"r"(bytes) : "memory");
    EQUAL(*bytes, 0x89);
    for (u32 n = 1; n < 4; n++) {
        outb(0x2005, 1);
        wait_irq(5, n);
        outb(0x2005, 0);
    }
}

int guest_main(void)
{
    pics();
    sti();
    keyboard_and_mouse();
    a20_gate();
    speaker_port();
    printer();
    test_device();
    return PASS;
}
