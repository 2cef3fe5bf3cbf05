/* CPUs ask devices in memory all the time, while each of them also does what others have to be stopped or waited for. */
#include "smp.h"

#define TURNS 6000
#define IOAPIC 0xfec00000UL
static volatile u64 device_lock;
static u8 across[2 * 4096] __attribute__((aligned(4096)));
static u8 code[MOST_CPUS][4096] __attribute__((aligned(4096)));

WORK(hammer)
{
    volatile u64 *over_the_end = (volatile u64 *)(across + 4096 - 4);
    u8 *own = code[number];
    for (u32 k = 1; k <= TURNS; k++) {
        EQUAL(mmio_read(APIC + APIC_ID) >> 24, number);
        mmio_write(APIC + APIC_INITIAL, k << 8 | number);
        EQUAL(mmio_read(APIC + APIC_INITIAL), (u32)(k << 8 | number));
        while (swap(&device_lock, 1))
            pause_();
        u32 entry = 0x11 + 2 * (k & 7); /* the upper half: its destination */
        mmio_write(IOAPIC, entry);
        mmio_write(IOAPIC + 0x10, (k << 4 | number) << 24);
        EQUAL(mmio_read(IOAPIC), entry);
        EQUAL(mmio_read(IOAPIC + 0x10), (u32)(k << 4 | number) << 24);
        device_lock = 0;
        if (k % 64 == 0)
            add_locked(over_the_end, 1); /* all others are stopped */
        if (k % 16 == 0) { /* all others are waited for */
            own[k % 512] = 0xb8; /* mov $k, %eax; ret */
            *(volatile u32 *)(own + k % 512 + 1) = k;
            own[k % 512 + 5] = 0xc3;
            u64 got;
            asm volatile("call *%1" : "=a"(got) : "r"(own + k % 512) : "memory", "rcx", "rdx");
            EQUAL(got, k);
        }
    }
}

int guest_main(void)
{
    outb(0x21, 0xff);
    start_others();
    on_all(hammer);
    EQUAL(*(volatile u64 *)(across + 4096 - 4), (u64)CPUS * (TURNS / 64));
    return PASS;
}
