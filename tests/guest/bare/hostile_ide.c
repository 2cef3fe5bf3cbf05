/* Both IDE channels under random registers, commands, packets, PIO data and bus-master tables that point anywhere but into this
   image; then disk and CD drive have to serve a driver that behaves. */
#include "bare.h"

enum { DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS };
enum { BSY = 0x80, DRQ = 8, ERR = 1, SRST = 4 };
static const u16 bases[] = {0x1f0, 0x170}, controls[] = {0x3f6, 0x376};
static u64 table[1024] __attribute__((aligned(8192)));
static u16 bus_master;

static u32 config(u8 offset) { outl(0xcf8, 0x80000900 | offset); return inl(0xcfc); }
static void set_config(u8 offset, u32 value) { outl(0xcf8, 0x80000900 | offset); outl(0xcfc, value); }

/* Low memory, RAM above this image, the end of RAM, holes, the last bytes of the 32-bit space. */
static u32 wild_address(void)
{
    u64 r = rnd();
    u32 above = ((u64)image_end + 0xffff) & ~0xffffU;
    switch (r & 7) {
    case 0: return 0x03fffe00;
    case 1: return 0x03ff0000 + (r >> 8 & 0xffff);
    case 2: return 0x80000000 + (r >> 8 & 0xffffff);
    case 3: return 0xffffff00 + (r >> 8 & 0xff);
    case 4: return 0xfee00000 + (r >> 8 & 0xffff);
    case 5: return 0x20000 + (r >> 8) % 0xa0000;
    default: return above + (r >> 8) % (0x03f00000 - above);
    }
}

static void wild_table(void)
{
    for (int k = 0; k < 16; k++) {
        u64 r = rnd(), count = r & 0x300 ? (r >> 16 & 15) << 9 : r >> 32 & 0xffff;
        table[k] = wild_address() | (count | (r & 7 ? 0 : 0x80000000UL)) << 32;
    }
    if (rnd() & 1)
        table[15] |= 1UL << 63;
    else
        for (int k = 16; k < 1024; k++)
            table[k] = table[k & 15];
}

static void wild_packet(u16 base)
{
    static const u8 opcodes[] = {0x00, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x28, 0x2b, 0x42, 0x43, 0x46, 0x4a, 0x51, 0x52, 0x5a, 0xa8, 0xbb, 0xbd, 0xbe, 0x55, 0xff};
    u64 r = rnd(), s = rnd();
    outb(base + DEVICE, r & 1 ? 0xa0 : 0xb0);
    outb(base + ERROR, r >> 1 & 1);
    outb(base + MID, r >> 8);
    outb(base + HIGH, r & 4 ? r >> 16 : 8);
    outb(base + STATUS, 0xa0);
    outw(base + DATA, opcodes[(r >> 24) % sizeof opcodes] | (r & 8 ? s << 8 & 0xff00 : 0));
    for (int k = 1; k < 6; k++) {
        s = rnd();
        outw(base + DATA, r & 16 ? s : s & 0x0201);
    }
}

static void attack(void)
{
    static const u8 commands[] = {0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x3d, 0x40, 0x42, 0x70, 0x90, 0x91, 0xa0, 0xa1, 0xb0, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xce, 0xe4, 0xe7, 0xe8, 0xec, 0xef, 0x08, 0x10, 0x27, 0xf8};
    u64 r = rnd(), n = r >> 60 & 1;
    u16 base = bases[n], bm = bus_master + 8 * n;
    switch (r & 15) {
    case 0: case 1: case 2: outb(base + 1 + (r >> 8) % 6, r >> 16); break;
    case 3: outb(base + DEVICE, 0xe0 | (r >> 8 & 0x1f)); break;
    case 4: case 5: outb(base + STATUS, r & 0x700 ? commands[(r >> 16) % sizeof commands] : r >> 24); break;
    case 6: for (u64 k = r >> 8 & 0x1ff; k; k--) inw(base); break;
    case 7: for (u64 k = r >> 8 & 0x1ff; k; k--) outl(base, r >> 16); break;
    case 8: outb(controls[n], r & 0x700 ? 0 : r >> 16); break;
    case 9: outw(base + (r >> 8 & 7), r >> 16); outl(base + (r >> 32 & 7), r >> 16); inl(base + (r >> 8 & 7)); break;
    case 10: outb(bm, r >> 8); outb(bm + 2, r >> 16); inl(bm); inb(bm + 1); break;
    case 11: case 12:
        wild_table();
        outb(bm, 0);
        outl(bm + 4, r & 0x700 ? (u32)(u64)table + (r >> 16 & 0x7c) : r & 0x800 ? 0xfffffffc : 0x90000000);
        outb(bm, 1 | (r >> 24 & 8));
        break;
    case 13: if (!(r & 0xf00)) set_config(0x40, r >> 16); break;
    default: wild_packet(base);
    }
}

static int wait_for(u16 port, u8 mask, u8 value)
{
    for (int k = 0; k < 3000000; k++)
        if ((inb(port) & mask) == value)
            return 1;
    return 0;
}

static void transfer(u8 command, u64 address, u8 direction)
{
    table[0] = address | (2048UL | 0x80000000UL) << 32;
    outb(bus_master, 0);
    outl(bus_master + 4, (u32)(u64)table);
    outb(bus_master + 2, 6);
    outb(0x1f0 + DEVICE, 0xe0);
    outb(0x1f0 + COUNT, 4);
    outb(0x1f0 + LOW, 77);
    outb(0x1f0 + MID, 0);
    outb(0x1f0 + HIGH, 0);
    outb(0x1f0 + STATUS, command);
    outb(bus_master, direction | 1);
    CHECK(wait_for(bus_master + 2, 5, 4));
    EQUAL(inb(0x1f0 + STATUS) & (BSY | DRQ | ERR), 0);
    outb(bus_master, 0);
}

static int packet(const u8 *bytes, u16 *to)
{
    int words = 0;
    outb(0x170 + ERROR, 0);
    outb(0x170 + MID, 0);
    outb(0x170 + HIGH, 8);
    outb(0x170 + STATUS, 0xa0);
    CHECK(wait_for(0x376, BSY | DRQ, DRQ));
    for (int k = 0; k < 12; k += 2)
        outw(0x170, bytes[k] | bytes[k + 1] << 8);
    for (;;) {
        CHECK(wait_for(0x376, BSY, 0));
        u8 status = inb(0x170 + STATUS);
        if (!(status & DRQ))
            return status & ERR ? -1 : words;
        for (int size = inb(0x170 + MID) | inb(0x170 + HIGH) << 8; size > 0; size -= 2)
            to[words++ & 0x3ff] = inw(0x170);
    }
}

int guest_main(void)
{
    random_state(SEED);
    EQUAL(config(0), 0x70108086);
    set_config(4, 5);
    bus_master = config(0x20) & ~15U;
    CHECK(bus_master);
    for (int n = 0; n < ROUNDS; n++)
        attack();
    set_config(0x40, 0x80008000);
    for (int n = 0; n < 2; n++) {
        outb(bus_master + 8 * n, 0);
        outb(controls[n], SRST);
        outb(controls[n], 0);
        CHECK(wait_for(controls[n], BSY, 0));
    }
    u8 *out = (u8 *)(((u64)image_end + 0x1ffff) & ~0xffffUL), *in = out + 0x1000;
    for (int k = 0; k < 2048; k++)
        out[k] = k * 7 + (k >> 8), in[k] = 0;
    transfer(0xca, (u64)out, 0);
    transfer(0xc8, (u64)in, 8);
    CHECK(!memcmp(out, in, 2048));
    outb(0x170 + DEVICE, 0xa0);
    EQUAL(inb(0x170 + MID) | inb(0x170 + HIGH) << 8, 0xeb14);
    for (int k = 0; k < 4; k++)  /* close the tray; a changed disc is told in two steps */
        packet((u8[12]){0x1b, 0, 0, 0, 3}, (u16 *)in);
    EQUAL(packet((u8[12]){0x28, 0, 0, 0, 0, 9, 0, 0, 1}, (u16 *)in), 1024);
    for (int k = 0; k < 2048; k++)
        EQUAL(in[k], (u8)(9 * 5 + k * 3));
    print("served after %d\n", (u64)ROUNDS);
    return PASS;
}
