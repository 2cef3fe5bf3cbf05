/* Random bytes executed in ring RING: thousands of snippets, each with random registers, ended by an exception, by `int 0x80`
   bytes behind it or by a timer.  Ring 3 sees its own five pages only; ring 0 may ruin its machine. */
#include "bare.h"

#define AREA 0x8000000000UL
#define APIC 0xfee00000UL

static u8 *pages[5];
u64 registers[16];
static u64 counts[256];

/* void run_snippet(u64 rip, u64 cs, u64 ss, u64 rsp, u64 rflags): all registers from `registers`. */
void run_snippet(u64 rip, u64 cs, u64 ss, u64 rsp, u64 rflags);
asm("run_snippet: push %rdx; push %rcx; push %r8; push %rsi; push %rdi\n"
    "lea registers(%rip), %rax; mov 8(%rax), %rbx; mov 16(%rax), %rcx; mov 24(%rax), %rdx; mov 32(%rax), %rsi; mov 40(%rax), %rdi\n"
    "mov 48(%rax), %rbp; mov 56(%rax), %r8; mov 64(%rax), %r9; mov 72(%rax), %r10; mov 80(%rax), %r11; mov 88(%rax), %r12\n"
    "mov 96(%rax), %r13; mov 104(%rax), %r14; mov 112(%rax), %r15; mov (%rax), %rax; iretq");

static u8 weighted_byte(void)
{
    static const u8 favourites[] = {0x66, 0xf2, 0xf3, 0xf0, 0x48, 0x4c, 0x41, 0x0f, 0x0f, 0x0f, 0x64, 0x65, 0x67, 0xff, 0xc7, 0xdb, 0xd9, 0xdd, 0x00, 0x38, 0x3a};
    u64 r = rnd();
    return r & 3 ? r >> 8 : favourites[(r >> 8) % sizeof(favourites)];
}

static void snippet(void *unused)
{
    (void)unused;
    u64 r = rnd();
    u32 offset = r & 1 ? (r >> 8) % (3 * PAGE - 64) : r & 2 ? 3 * PAGE - 1 - (r >> 8) % 20 : PAGE - 1 - (r >> 8) % 20;
    for (u32 k = 0; k < 40; k++) {
        u32 at = offset + k;
        if (at < 3 * PAGE)
            pages[at / PAGE][at % PAGE] = k < 24 + (r >> 40 & 7) ? weighted_byte() : k & 1 ? 0x80 : 0xcd;
    }
    for (int k = 0; k < 15; k++) {
        u64 v = rnd();
        registers[k] = v & 1 ? AREA + (v >> 8) % (5 * PAGE) : v & 2 ? v >> 8 & 0xff : v & 4 ? -(v >> 8 & 0xffff) : v;
    }
    mmio_write(APIC + 0x380, 20000);
    u64 flags = 0x202 | (rnd() & 0x8d5) | (rnd() & 31 ? 0 : 0x100) | (rnd() & 31 ? 0 : 1 << 18);
    u64 stack = AREA + 5 * PAGE - 8 - (rnd() & 0x3f8);
    if (RING == 3)
        run_snippet(AREA + offset, USER_CS, USER_SS, stack, flags);
    else
        run_snippet(AREA + offset, KERNEL_CS, KERNEL_SS, stack, flags);
}

int guest_main(void)
{
    random_state(SEED);
    for (int k = 0; k < 5; k++) {
        pages[k] = new_page();
        map(AREA + k * PAGE, (u64)pages[k], P | W | (RING == 3 ? U : 0));
        for (u32 n = 0; n < PAGE; n += 2)
            *(u16 *)(pages[k] + n) = 0x80cd;
    }
    pml4[0] &= ~(u64)U;
    flush();
    for (int n = 0; n < 256; n++)
        gate(n, (u64)stubs + 16 * n, 1, n == 3 || n == 0x80 ? 3 : 0);
    mmio_write(APIC + 0xf0, 0x1ff);
    mmio_write(APIC + 0x3e0, 11);
    mmio_write(APIC + 0x320, 0xf0);
    wrmsr(0xc0000082, (u64)stubs + 16 * UD);
    set_cr0(get_cr0() | 1 << 18 | 1 << 16 | 1 << 5);
    u64 cr0 = get_cr0(), cr4 = get_cr4();
    for (int n = 0; n < ROUNDS; n++) {
        counts[catch(snippet, 0) & 255]++;
        mmio_write(APIC + 0xb0, 0);
        if (RING == 0) {  /* as much as can be had back */
            set_cr0(cr0);
            set_cr4(cr4);
            set_cr3((u64)pml4);
            set_dr7(0x400);
            set_cr8(0);
            asm volatile("lgdt %0; lidt %1; mov %2, %%ds; mov %2, %%es" ::"m"(gdt_pointer), "m"(idt_pointer), "r"((u64)KERNEL_SS) : "memory");
        }
        u32 mxcsr = 0x1f80;
        if ((rnd() & 7) == 0)
            mxcsr = rnd() & 0xffff;
        asm volatile("fninit; ldmxcsr %0" ::"m"(mxcsr));
        if ((rnd() & 7) == 0) {
            u16 control = rnd() & 0xf7f;
            asm volatile("fldcw %0" ::"m"(control));
        }
    }
    for (int n = 0; n < 256; n++)
        if (counts[n])
            print("%x:%d ", (u64)n, counts[n]);
    print("\n%d done\n", (u64)ROUNDS);
    return PASS;
}
