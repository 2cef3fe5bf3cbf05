/* Wild virtqueues: descriptors that are out of range, loop, overlap the rings, have no length, nest indirect tables; on every
   virtio device of either board (virtio-mmio slots, PCI functions found by their configuration space). */
#include "bare.h"

enum { SIZE = 64 };
struct descriptor { u64 address; u32 length; u16 flags, next; };

static __attribute__((aligned(4096))) u8 area[16 * 4096];
static u64 devices[16];
static int count, pci;

static u32 config(u32 slot, u32 offset)
{
    outl(0xcf8, 0x80000000 | slot << 11 | offset);
    return inl(0xcfc);
}

static void find_devices(void)
{
    for (u32 slot = 0; slot < 32; slot++)
        if ((config(slot, 0) & 0xffff) == 0x1af4) {
            pci = 1;
            outl(0xcf8, 0x80000000 | slot << 11 | 4);
            outl(0xcfc, 6);
            devices[count++] = (config(slot, 0x10) & ~15U) | (u64)config(slot, 0x14) << 32;
        }
    for (u64 at = 0xfeb00000; !pci && at < 0xfeb01000; at += 0x200)
        if (mmio_read(at) == 0x74726976 && mmio_read(at + 8))
            devices[count++] = at;
}

static void set_status(u64 d, u32 v)
{
    if (pci)
        *(volatile u8 *)(d + 0x14) = v;
    else
        mmio_write(d + 0x70, v);
}

static void negotiate(u64 d)
{
    u64 wanted = 1UL << 32 | (rnd() & 1 ? 3UL << 28 : rnd() & 3UL << 28);
    set_status(d, 0);
    set_status(d, 3);
    for (u32 word = 0; word < 2; word++) {
        mmio_write(d + (pci ? 8 : 0x24), word);
        mmio_write(d + (pci ? 12 : 0x20), wanted >> 32 * word);
    }
    set_status(d, 11);
}

static u64 wild_address(void)
{
    u64 r = rnd();
    switch (r & 15) {
    case 0: return rnd();
    case 1: return (64UL << 20) - (r >> 8 & 0xff);
    case 2: return 0xfee00000 + (r >> 8 & 0xfff);
    case 3: return -(r >> 8 & 0xffff);
    case 4: return 0x100000000;
    default: return (u64)area + (r >> 8) % sizeof(area);
    }
}

static void set_queue(u64 d, int queue)
{
    u64 ring[3] = {(u64)area, (u64)area + PAGE, (u64)area + 2 * PAGE};
    for (int k = 0; k < 3; k++)
        if ((rnd() & 7) == 0)
            ring[k] = rnd() & 1 ? wild_address() : wild_address() & ~15UL;
    u32 size = rnd() & 7 ? SIZE >> (rnd() & 3) : rnd();
    if (pci) {
        *(volatile u16 *)(d + 0x16) = queue;
        *(volatile u16 *)(d + 0x18) = size;
        for (int k = 0; k < 3; k++)
            *(volatile u64 *)(d + 0x20 + 8 * k) = ring[k];
        *(volatile u16 *)(d + 0x1c) = 1;
    } else {
        static const u16 offsets[] = {0x80, 0x90, 0xa0};
        mmio_write(d + 0x30, queue);
        mmio_write(d + 0x38, size);
        for (int k = 0; k < 3; k++) {
            mmio_write(d + offsets[k], ring[k]);
            mmio_write(d + offsets[k] + 4, ring[k] >> 32);
        }
        mmio_write(d + 0x44, 1);
    }
}

static void notify(u64 d, int queue)
{
    if (pci)
        *(volatile u16 *)(d + 0x3000 + 4 * queue) = queue;
    else
        mmio_write(d + 0x50, queue);
}

static u32 wild_length(void)
{
    static const u32 lengths[] = {0, 1, 16, 512, 4096, 65536, 0xffffffff, 17, 0x10000000};
    u64 r = rnd();
    return r & 7 ? lengths[(r >> 8) % 9] : r >> 32;
}

static void fill(void)
{
    struct descriptor *table = (void *)area;
    volatile u16 *available = (void *)(area + PAGE);
    for (int k = 0; k < (int)(sizeof(area) / 16); k++) {
        u64 r = rnd();
        if (k >= SIZE && k < 3 * (int)PAGE / 16)
            continue;  /* the rings */
        table[k].address = r & 3 ? (u64)area + (3 + (r >> 8) % 13) * PAGE : wild_address();
        table[k].length = r & 16 ? wild_length() : r & 32 ? 16 : 512;
        table[k].flags = r >> 40 & 3 ? r >> 48 & 3 : r >> 48 & 7;
        table[k].next = r >> 52 & 7 ? (r >> 56) % SIZE : r >> 32;
    }
    for (int k = 3; k < 16; k++) {  /* what may be taken for a header of a block request */
        u32 *header = (u32 *)(area + k * PAGE);
        static const u32 kinds[] = {0, 1, 4, 8, 11, 13, 2, 99};
        header[0] = rnd() & 7 ? kinds[rnd() & 7] : rnd();
        *(u64 *)(header + 2) = rnd() & 3 ? rnd() & 0x7ff : rnd();
    }
    for (int k = 2; k < 2 + SIZE; k++)
        available[k] = rnd() & 7 ? rnd() % SIZE : rnd();
}

static void round_of(void *unused)
{
    (void)unused;
    u64 d = devices[rnd() % count], r = rnd();
    negotiate(d);
    fill();
    set_queue(d, r & 1);
    if (r & 2)
        set_queue(d, ~r & 1);
    volatile u16 *available = (void *)(area + PAGE);
    available[1] = 0;
    set_status(d, 15);
    u16 index = 0;
    for (int k = 0; k < 8; k++) {
        index += rnd() & 15 ? rnd() & 3 : rnd();
        available[1] = index;
        notify(d, rnd() & 15 ? r & 1 : rnd() & 0xffff);
    }
}

int guest_main(void)
{
    random_state(SEED);
    find_devices();
    CHECK(count >= 3);
    for (int n = 0; n < ROUNDS; n++)
        catch(round_of, 0);
    for (int k = 0; k < count; k++)
        set_status(devices[k], 0);
    print("%d done on %d devices\n", (u64)ROUNDS, (u64)count);
    return PASS;
}
