/* Random values to every port, MMIO register or MSR.  ATTACK: 1 ports, 2 MMIO, 3 MSRs.  SPARE leaves alone what ends or
   restarts a machine on purpose; INTERRUPTS lets every interrupt that comes of it in. */
#include "bare.h"

#ifndef ROUNDS
#define ROUNDS 20000
#endif

static void end_of_interrupt(struct frame *f)
{
    (void)f;
    mmio_write(0xfee000b0, 0);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

static void nmi(struct frame *f) { (void)f; }

/* For ports: the 8259 pair may be told to use vectors of exceptions, for which no error code comes. */
void any_vector(void);
asm("any_vector: push %rax; mov $0x20, %al; out %al, $0xa0; out %al, $0x20; mov $0xfee000b0, %eax; movl $0, (%rax); pop %rax; iretq");

static int spared(u32 port)
{
    if (port >= 0xf4 && port < 0xf8)
        return 1;
    return SPARE && (port == 0xcf9 || port == 0x64 || port == 0x92 || (port & ~3U) == 0x604);
}

static void one_port(void)
{
    u64 r = rnd();
    u16 port = r & 3 ? (r >> 8) & 0xfff : (r >> 8) & 0xffff;
    for (u32 k = 0; k < 4; k++)
        if (spared((port + k) & 0xffff))
            return;
    u32 v = rnd() >> 20;
    switch (r >> 40 & 7) {
    case 0: outb(port, v); break;
    case 1: outw(port, v); break;
    case 2: outl(port, v); break;
    case 3: inb(port); break;
    case 4: inw(port); break;
    case 5: inl(port); break;
    case 6: asm volatile("rep outsb" ::"d"(port), "S"(boot_params), "c"(r >> 48 & 7) : "memory"); break;
    case 7: asm volatile("rep insl" ::"d"(port), "D"(user_stack), "c"(r >> 48 & 7) : "memory"); break;
    }
}

/* Ranges that hold something on one board or the other; the last two are for holes. */
static const u64 places[][2] = {
    {0xfec00000, 0x1000}, {0xfee00000, 0x1000}, {0xfeb00000, 0x1000}, {0xe0000000, 0x10000}, {0xfed00000, 0x1000}, {0xb0000000, 0x100000},
    {0xc0000000, 0x40000000}, {0x8000000000, 0x8000},
};

static u64 somewhere(void)
{
    u64 r = rnd();
    const u64 *place = places[r % (sizeof(places) / 16)];
    u64 at = place[0] + (r >> 8) % place[1];
    return r >> 60 & 1 ? at : at & ~3UL;
}

static void one_access(void *unused)
{
    (void)unused;
    u64 at = somewhere(), r = rnd(), v = rnd();
    if (r >> 62 == 0)
        v &= 0xff;
    switch (r & 15) {
    case 0: *(volatile u8 *)at = v; break;
    case 1: *(volatile u16 *)at = v; break;
    case 2: case 3: *(volatile u32 *)at = v; break;
    case 4: *(volatile u64 *)at = v; break;
    case 5: (void)*(volatile u8 *)at; break;
    case 6: (void)*(volatile u16 *)at; break;
    case 7: (void)*(volatile u32 *)at; break;
    case 8: (void)*(volatile u64 *)at; break;
    case 9: asm volatile("lock addl %k1, (%0)" ::"r"(at), "r"(v) : "memory"); break;
    case 10: asm volatile("xchg %k1, (%0)" ::"r"(at), "r"(v) : "memory"); break;
    case 11: asm volatile("movups (%0), %%xmm0" ::"r"(at) : "memory"); break;
    case 12: asm volatile("movups %%xmm0, (%0)" ::"r"(at) : "memory"); break;
    case 13: asm volatile("rep stosw" ::"D"(at), "a"(v), "c"(r >> 40 & 7) : "memory"); break;
    case 14: asm volatile("rep movsl" ::"D"(user_stack), "S"(at), "c"(r >> 40 & 7) : "memory"); break;
    case 15: asm volatile("btsq %1, (%0)" ::"r"(at), "r"(v & 0xfff) : "memory"); break;
    }
}

static void one_msr(void *unused)
{
    (void)unused;
    static const u32 bases[][2] = {{0, 0x2000}, {0x800, 0x40}, {0x4b564d00, 0x10}, {0xc0000000, 0x2000}, {0xc0010000, 0x200}, {0x10, 2}, {0x6e0, 1}};
    u64 r = rnd(), v = rnd();
    const u32 *base = bases[r % 7];
    u32 n = base[0] + (u32)(r >> 8) % base[1];
    if (r >> 61 == 0)
        v &= 0xfff;
    else if (r >> 61 == 1)
        v = (u64)user_stack | (v & 1);
    else if (r >> 61 == 2)
        v &= 0xffffffff;
    if (n == 0x1b && SPARE)  /* turns the local APIC off */
        return;
    if (r >> 40 & 1)
        wrmsr(n, v);
    else
        rdmsr(n);
}

int guest_main(void)
{
    random_state(SEED);
    for (int n = 32; n < 256; n++)
        handlers[n] = end_of_interrupt;
    handlers[NMI] = nmi;
    u64 *high = pte_of(0x8000000000, 1, P | W);
    for (int n = 0; n < 8; n++)
        high[n] = (rnd() & 0xfffffff000) | P | W;
    for (int n = 0; ATTACK == 1 && n < 256; n++)
        gate(n, (u64)any_vector, 0, 0);
    if (INTERRUPTS)
        sti();
    for (int n = 0; n < ROUNDS; n++) {
        if (ATTACK == 1)
            one_port();
        else
            catch(ATTACK == 2 ? one_access : one_msr, 0);
        if (n % 1000 == 999 && ATTACK == 2)
            for (int k = 0; k < 8; k++) {
                high[k] = (rnd() & 0xfffffff000) | P | W;
                invlpg(0x8000000000 + k * PAGE);
            }
    }
    cli();
    outb(0x3fb, 3);
    print("%d done\n", (u64)ROUNDS);
    return PASS;
}
