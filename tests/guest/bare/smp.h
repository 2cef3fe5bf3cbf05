/* Several CPUs for a test kernel: start-up of the others, local APIC in both modes, barriers, work for all. */
#ifndef SMP_H
#define SMP_H
#include "bare.h"

#ifndef CPUS
#define CPUS 2
#endif
#define MOST_CPUS 16
#define TRAMPOLINE 0x8000UL
#define APIC 0xfee00000UL
#define LINE 64
#define HANDLER(name) static void name(struct frame *f __attribute__((unused)))
#define WORK(name) static void name(u64 number __attribute__((unused)))
#define EACH(n) for (u64 n = 0; n < CPUS; n++)

enum { APIC_ID = 0x20, APIC_EOI = 0xb0, APIC_LDR = 0xd0, APIC_DFR = 0xe0, APIC_SVR = 0xf0, APIC_ESR = 0x280, APIC_ICR = 0x300,
       APIC_ICR_HIGH = 0x310, APIC_LVT_TIMER = 0x320, APIC_INITIAL = 0x380, APIC_CURRENT = 0x390, APIC_DIVIDE = 0x3e0 };
enum { FIXED = 0, LOWEST = 1 << 8, SEND_NMI = 4 << 8, INIT = 5 << 8, STARTUP = 6 << 8, LOGICAL = 1 << 11, ASSERT = 1 << 14,
       TO_SELF = 1 << 18, TO_ALL = 2 << 18, TO_OTHERS = 3 << 18 };

INLINE void pause_(void) { asm volatile("pause" ::: "memory"); }
INLINE void barrier_(void) { asm volatile("" ::: "memory"); }
INLINE u64 add_locked(volatile u64 *at, u64 n) { asm volatile("lock xaddq %0, %1" : "+r"(n), "+m"(*at)::"memory"); return n; }
INLINE u64 swap(volatile u64 *at, u64 n) { asm volatile("xchgq %0, %1" : "+r"(n), "+m"(*at)::"memory"); return n; }
INLINE u64 cas(volatile u64 *at, u64 old, u64 new)
{
    asm volatile("lock cmpxchgq %2, %1" : "+a"(old), "+m"(*at) : "r"(new) : "memory");
    return old;
}
INLINE void serialize(void) { u32 a = 0, b, c = 0, d; asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory"); }
INLINE u32 cpuid_ebx(u32 leaf) { u32 b, c = 0, d; asm volatile("cpuid" : "+a"(leaf), "=b"(b), "+c"(c), "=d"(d)::"memory"); return b; }

static int x2apic;
__attribute__((used)) static volatile u64 cpus_up;
static volatile u64 numbers_seen;
__attribute__((aligned(16), used)) static u8 ap_stacks[MOST_CPUS][16384];
static void (*volatile job)(u64 number);
static volatile u64 job_round, jobs_done;

/* ---- local APIC */
INLINE u32 apic_read(u32 at) { return x2apic ? (u32)rdmsr(0x800 + (at >> 4)) : mmio_read(APIC + at); }
INLINE void apic_write(u32 at, u32 v)
{
    if (x2apic)
        wrmsr(0x800 + (at >> 4), v);
    else
        mmio_write(APIC + at, v);
}
INLINE u64 own_number(void) { return x2apic ? apic_read(APIC_ID) : apic_read(APIC_ID) >> 24; }
INLINE void eoi(void) { apic_write(APIC_EOI, 0); }

static void send_ipi(u32 destination, u32 what)
{
    if (x2apic) {
        wrmsr(0x830, (u64)destination << 32 | what);
    } else {
        mmio_write(APIC + APIC_ICR_HIGH, destination << 24);
        mmio_write(APIC + APIC_ICR, what);
    }
}

static void set_up_apic(void)
{
    if (x2apic)
        wrmsr(0x1b, rdmsr(0x1b) | 1 << 10);
    apic_write(APIC_SVR, 0x1ff);
    if (!x2apic) {
        apic_write(APIC_DFR, 0xffffffff);
        apic_write(APIC_LDR, 1u << (24 + own_number()));
    }
}

/* The ACPI timer: 3.579545 MHz, 32 bits. */
INLINE u32 ticks(void) { return inl(0x608); }
static void wait_us(u64 us)
{
    u32 start = ticks();
    while ((u64)(ticks() - start) * 1000 / 3580 < us)
        pause_();
}

/* ---- start-up */
asm(".section .rodata\n"
    ".globl trampoline, trampoline_end, trampoline_values\n"
    ".code16\n"
    "trampoline:\n"
    " cli\n"
    " mov %cs, %ax\n"
    " mov %ax, %ds\n"
    " lgdtl trampoline_gdt - trampoline\n"
    " movl trampoline_values - trampoline + 4, %eax\n"
    " mov %eax, %cr4\n"
    " movl trampoline_values - trampoline + 0, %eax\n"
    " mov %eax, %cr3\n"
    " movl $0xc0000080, %ecx\n"
    " movl $0x901, %eax\n"
    " xorl %edx, %edx\n"
    " wrmsr\n"
    " movl trampoline_values - trampoline + 8, %eax\n"
    " mov %eax, %cr0\n"
    " ljmpl *trampoline_values - trampoline + 12\n"
    " .p2align 3\n"
    "trampoline_gdt: .word 127; .long gdt\n"
    " .p2align 3\n"
    "trampoline_values: .long 0, 0, 0, ap_entry; .word 8\n"
    "trampoline_end:\n"
    ".code64\n"
    ".text\n"
    "ap_entry:\n"
    " mov $0x10, %eax; mov %eax, %ss; mov %eax, %ds; mov %eax, %es\n"
    " mov $1, %eax; lock xaddq %rax, cpus_up(%rip)\n"
    " inc %rax\n"
    " shl $14, %rax\n"
    " lea ap_stacks(%rip), %rsp\n"
    " add %rax, %rsp\n"
    " call ap_main\n"
    "1: cli; hlt; jmp 1b\n");
extern u8 trampoline[], trampoline_end[], trampoline_values[];

__attribute__((used)) static void ap_main(void)
{
    asm volatile("lidt %0" ::"m"(idt_pointer));
    set_up_apic();
    u64 number = own_number();
    EQUAL(cpuid_ebx(1) >> 24, number);
    u64 done = job_round;
    add_locked(&numbers_seen, 1UL << number);
    for (;;) {
        while (job_round == done)
            pause_();
        done = job_round;
        job(number);
        add_locked(&jobs_done, 1);
    }
}

static void prepare_trampoline(void)
{
    memcpy((void *)TRAMPOLINE, trampoline, trampoline_end - trampoline);
    u32 *values = (u32 *)(TRAMPOLINE + (trampoline_values - trampoline));
    values[0] = (u32)(u64)pml4;
    values[1] = (u32)get_cr4();
    values[2] = (u32)get_cr0();
}

static void start_others(void)
{
    set_up_apic();
    EQUAL(own_number(), 0);
    prepare_trampoline();
    numbers_seen = 1;
    send_ipi(0, INIT | ASSERT | TO_OTHERS);
    wait_us(1000);
    for (int n = 0; n < 2; n++) {
        send_ipi(0, STARTUP | ASSERT | TO_OTHERS | TRAMPOLINE >> 12);
        wait_us(200);
    }
    while (numbers_seen != (1UL << CPUS) - 1)
        pause_();
    EQUAL(cpus_up, CPUS - 1);
}

/* Runs `work` on every CPU. */
static void on_all(void (*work)(u64 number))
{
    job = work;
    jobs_done = 0;
    barrier_();
    job_round++;
    work(0);
    while (jobs_done != CPUS - 1)
        pause_();
}

static volatile u64 at_barrier, barrier_round;
static void meet(u64 parties)
{
    u64 round = barrier_round;
    if (add_locked(&at_barrier, 1) == parties - 1) {
        at_barrier = 0;
        barrier_();
        barrier_round = round + 1;
    } else {
        while (barrier_round == round)
            pause_();
    }
}
#endif
