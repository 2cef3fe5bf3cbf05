/* Code that a disk reads over code: sector n holds functions that return n, 64 bytes apart. */
#include "bare.h"

#define DEVICE 0xfeb00000UL
struct descriptor { u64 address; u32 length; u16 flags, next; };

static struct __attribute__((aligned(4096))) {
    struct descriptor table[4];
    u16 available[8];
    __attribute__((aligned(4096))) u16 used[32];
    struct { u32 kind, reserved; u64 sector; } header;
    volatile u8 status;
} disk;
static u16 index;

static void set_up(void)
{
    static const u32 writes[][2] = {{0x70, 0}, {0x70, 3}, {0x24, 1}, {0x20, 1}, {0x70, 11}, {0x30, 0}, {0x38, 4}};
    for (int k = 0; k < sizeof(writes) / 8; k++)
        mmio_write(DEVICE + writes[k][0], writes[k][1]);
    mmio_write(DEVICE + 0x80, (u64)disk.table);
    mmio_write(DEVICE + 0x90, (u64)disk.available);
    mmio_write(DEVICE + 0xa0, (u64)disk.used);
    mmio_write(DEVICE + 0x44, 1);
    mmio_write(DEVICE + 0x70, 15);
    EQUAL(mmio_read(DEVICE + 0x70), 15);
}

static void read(void *to, u64 sector, u32 bytes)
{
    disk.header.sector = sector;
    disk.table[0] = (struct descriptor){(u64)&disk.header, 16, 1, 1};
    disk.table[1] = (struct descriptor){(u64)to, bytes, 3, 2};
    disk.table[2] = (struct descriptor){(u64)&disk.status, 1, 2, 0};
    disk.status = 9;
    *(volatile u16 *)&disk.available[1] = ++index;
    mmio_write(DEVICE + 0x50, 0);
    while (*(volatile u16 *)&disk.used[1] != index)
        asm volatile("pause");
    EQUAL(disk.status, 0);
}

static u64 call(const void *code) { return ((u64(*)(void))(u64)code)(); }

int guest_main(void)
{
    u8 *page = new_page();
    new_page();
    set_up();
    map(0x8000000000, (u64)page, P);
    for (u64 k = 0; k < 400; k++) {
        u64 sector = k * 7 & 31;
        read(page + 512, sector, 512);
        for (int n = 0; n < 512; n += 64) {
            EQUAL(call(page + 512 + n), sector);
            EQUAL(call((u8 *)0x8000000200 + n), sector);
        }
    }
    /* Over the end of a page, not aligned to anything. */
    for (u64 k = 0; k < 100; k++) {
        u64 sector = k * 5 & 31;
        u8 *to = page + PAGE - 256 - 2 - (k & 63);
        read(to, sector, 512);
        for (int n = 0; n < 512; n += 64)
            EQUAL(call(to + n), sector);
    }
    /* More than the device moves in one piece on the vCPU's own thread. */
    static u8 large[1 << 20] __attribute__((aligned(4096)));
    for (u64 k = 0; k < 6; k++) {
        read(large, 32 + (k & 1), sizeof(large));
        for (u32 n = 0; n < sizeof(large); n += 65536)
            EQUAL(call(large + n), (32 + (k & 1) + n / 512) & 0xffff);
    }
    return PASS;
}
