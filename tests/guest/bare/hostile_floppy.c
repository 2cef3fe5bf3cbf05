/* Floppy controller and DMA controllers under random ports, commands and transfers to anywhere in the low 16 MiB but this image;
   then the same controllers have to serve a driver that behaves. */
#include "bare.h"

enum { DOR = 0x3f2, MSR = 0x3f4, FIFO = 0x3f5, CCR = 0x3f7 };
static const u8 page_ports[] = {0x87, 0x83, 0x81, 0x82, 0x8f, 0x8b, 0x89, 0x8a};

/* An even page of 128 KiB that is not this image: low memory, the hole for cards, RAM above, nothing at all. */
static u8 wild_page(void)
{
    static const u8 low[] = {0x02, 0x04, 0x06, 0x08, 0x0a, 0x0c, 0x0e};
    u32 first = (((u64)image_end >> 16) + 2) & ~1U;
    u64 r = rnd();
    return r & 1 ? low[(r >> 8) % 7] : (first + (r >> 8) % (256 - first)) & ~1U;
}

static void wild_command(void)
{
    static const u8 starts[] = {0xe6, 0x46, 0xc5, 0x45, 0x4d, 0x4a, 0xd6, 0x42, 0x0f, 0xcf, 0x8f, 0x07, 0x08, 0x03, 0x13, 0x94, 0x14, 0xcc, 0xd1, 0xd9, 0xdd, 0x0e, 0x12, 0x04, 0x10, 0x18};
    u64 r = rnd();
    outb(FIFO, r & 7 ? starts[(r >> 8) % sizeof starts] : r >> 16);
    for (int k = 0; k < 8 && inb(MSR) == 0x90; k++) {
        r = rnd();
        outb(FIFO, r & 3 ? (r >> 8) % 20 : r >> 16);
    }
}

static void wild_dma(void)
{
    u64 r = rnd();
    int high = r & 1;
    for (int k = 0; k < 4; k++) {
        u32 port = (r >> (8 * k + 8)) & 15, value = rnd();
        outb(page_ports[(r >> (4 * k + 40)) & 7], wild_page());
        outb(high ? 0xc0 + 2 * port : port, rnd() & 3 ? value : value & 0x17);
    }
    if (r & 2) {  /* a channel that is ready for the floppy */
        outb(0xd4, 0);
        outb(0x0b, 0x42 | (rnd() & 0x3c));
        outb(0x08, 0);
        outb(0x0a, 2);
    }
}

static void attack(void)
{
    u64 r = rnd();
    switch (r & 7) {
    case 0: outb(0x3f0 + (r >> 8 & 7) % 6, r >> 16); break;
    case 1: outb(CCR, r >> 16); break;
    case 2: outb(DOR, r & 8 ? 0x1c | (r >> 16 & 0x21) : r >> 16); break;
    case 3: wild_dma(); break;
    case 4: for (int k = 0; k < 40; k++) inb(FIFO); break;
    case 5: outw(0x3f2, r >> 16); outl(0x3f2, r >> 24); inw(0x3f4); inl(0x3f2); inb(0x3f7); break;
    default: wild_command();
    }
}

static int wait_for(u8 mask, u8 value)
{
    for (int k = 0; k < 1000000; k++)
        if ((inb(MSR) & mask) == value)
            return 1;
    return 0;
}

static void send(const u8 *bytes, int count)
{
    for (int k = 0; k < count; k++) {
        CHECK(wait_for(0xc0, 0x80));
        outb(FIFO, bytes[k]);
    }
}

static void receive(u8 *bytes, int count)
{
    for (int k = 0; k < count; k++) {
        CHECK(wait_for(0xc0, 0xc0));
        bytes[k] = inb(FIFO);
    }
}

static void sense_until(u8 wanted)
{
    u8 result[2];
    for (int k = 0; k < 100000; k++) {
        send((u8[]){0x08}, 1);
        CHECK(wait_for(0xc0, 0xc0));
        result[0] = inb(FIFO);
        if (result[0] == 0x80)
            continue;
        result[1] = inb(FIFO);
        if (result[0] == wanted)
            return;
    }
    CHECK(0);
}

static void transfer(u8 command, u8 mode, u64 address)
{
    u8 result[7];
    outb(0x0a, 6);
    outb(0x0c, 0);
    outb(0x0b, mode);
    outb(0x04, address);
    outb(0x04, address >> 8);
    outb(0x81, address >> 16);
    outb(0x05, 511 & 0xff);
    outb(0x05, 511 >> 8);
    outb(0x0a, 2);
    send((u8[]){command, 0, 0, 0, 5, 2, 18, 0x1b, 0xff}, 9);
    receive(result, 7);
    EQUAL(result[0], 0);
}

int guest_main(void)
{
    random_state(SEED);
    for (u32 k = 0; k < sizeof page_ports; k++)
        outb(page_ports[k], wild_page());
    for (int n = 0; n < ROUNDS; n++)
        attack();
    outb(0x0d, 0);
    outb(0xda, 0);
    outb(0xd6, 0xc0);
    outb(0xd4, 0);
    outb(DOR, 0);
    outb(DOR, 0x1c);
    CHECK(wait_for(0xff, 0x80));
    sense_until(0xc0);
    send((u8[]){0x13, 0, 0, 0}, 4);
    send((u8[]){0x03, 0xdf, 0x02}, 3);
    outb(CCR, 0);
    for (int k = 0; k < 2; k++) {  /* the head may stand beyond what one recalibration reaches */
        send((u8[]){0x07, 0}, 2);
        if (k)
            sense_until(0x20);
        else
            for (int spin = 0; spin < 100000; spin++)
                inb(MSR);
    }
    u64 out = ((u64)image_end + 0x1ffff) & ~0xffffUL, in = out + 0x1000;
    for (int k = 0; k < 512; k++)
        ((u8 *)out)[k] = k * 7;
    transfer(0xc5, 0x4a, out);
    transfer(0xe6, 0x46, in);
    CHECK(!memcmp((void *)out, (void *)in, 512));
    print("served after %d\n", (u64)ROUNDS);
    return PASS;
}
