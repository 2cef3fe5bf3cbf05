/* Random values in page tables, control registers, descriptors, the TSS and system MSRs; whatever comes of it. */
#include "bare.h"

static u64 tables[8];
static u8 other_gdt[256], other_idt[4096];

static u64 value(void)
{
    u64 r = rnd();
    switch (r & 7) {
    case 0: return rnd();
    case 1: return 1UL << (r >> 8 & 63);
    case 2: return r >> 8 & 0xfff;
    case 3: return -(r >> 8 & 0xffff);
    case 4: return (u64)other_gdt + (r >> 8 & 0xff);
    default: return r >> 32;
    }
}

static void touch(u64 at)
{
    u64 r = rnd();
    if (r & 1)
        (void)*(volatile u64 *)at;
    else if (r & 2)
        *(volatile u8 *)at = r;
    else
        ((void (*)(void))at)();
}

static void one(void *unused)
{
    (void)unused;
    static struct table t;
    u64 v = value(), at = 0x10000000000 + (rnd() & 0x3fffffffff);
    switch (rnd() % 30) {
    case 0: case 1: case 2: case 3: case 4: case 5: case 6: {
        u64 *table = (u64 *)tables[rnd() & 7];
        u64 entry = rnd() & 3 ? tables[rnd() & 7] | (rnd() & 0xfff) : rnd() & 1 ? rnd() : (rnd() & 0xfffff000) | (rnd() & 0xfff) | 1;
        table[rnd() & 511] = entry;
        pml4[2] = tables[0] | 7;
        at = 0x10000000000 + (rnd() & 7) * 0x40000000 * (rnd() & 1) + (rnd() & 0x1ff) * 0x200000 * (rnd() & 1) + (rnd() & 0x1ff) * 0x1000 + (rnd() & 0xfff);
        if (rnd() & 1)
            flush();
        touch(at);
        break;
    }
    case 7: set_cr0(get_cr0() ^ 2UL << (rnd() % 30)); break;
    case 8: set_cr0(v | (rnd() & 0xfff ? 0x80000001 : 0)); break;  /* without PG or PE that ends it */
    case 9: set_cr4(get_cr4() ^ 1UL << (rnd() & 63)); break;
    case 10: set_cr4(v); break;
    case 11: set_cr3((u64)pml4 | (v & 0xfff)); break;
    case 12: set_cr3((u64)pml4 | (v & 0x8000000000000fff)); break;
    case 13: wrmsr(0xc0000080, rdmsr(0xc0000080) ^ 1UL << (rnd() & 63)); break;
    case 14: wrmsr(0xc0000080, v); break;
    case 15: for (int k = 0; k < 8; k++) ((u64 *)other_gdt)[8 + rnd() % 24] = rnd() & 1 ? rnd() : 0x00af9b000000ffff ^ 1UL << (rnd() & 63); break;
    case 16: asm volatile("mov %w0, %%ds; mov %w0, %%es; mov %w0, %%fs; mov %w0, %%gs" ::"r"(v)); break;
    case 17: asm volatile("mov %w0, %%ss" ::"r"(v)); break;
    case 18: t.base = (u64)other_gdt; t.limit = v | 0x3f; asm volatile("lgdt %0" ::"m"(t)); asm volatile("mov %w0, %%gs; lldt %w0" ::"r"(v)); break;
    case 19: asm volatile("ltr %w0" ::"r"(v)); break;
    case 20: asm volatile("push %0; push %1; lretq" ::"r"(v & 0xff), "r"(at)); break;
    case 21: asm volatile("push %0; push %1; push %2; push %3; push %4; iretq" ::"r"(v & 0xff), "r"(rnd()), "r"(rnd() & ~0x4000UL), "r"(rnd() & 0xff), "r"(at)); break;
    case 22: wrmsr(0xc0000081 + (rnd() & 3), v); break;
    case 23: wrmsr(0x174, v); wrmsr(0x176, rnd() & 7 ? (u64)stubs + 16 * UD : v); asm volatile("sysenter" ::: "memory"); break;
    case 24: asm volatile("sysretq" ::"c"(v), "r"(0) : "r11", "memory"); break;
    case 25: set_dr7(v); set_dr0(at); set_dr1((u64)&tables); set_dr6(v); break;
    case 26: asm volatile("invlpg (%0); clts; lmsw %w1; xsetbv" ::"r"(at), "r"(v), "c"(0), "a"(v), "d"(0)); break;
    case 27: { u64 d[2] = {v, at}; asm volatile("invpcid (%0), %1" ::"r"(d), "r"(v & 7) : "memory"); break; }
    case 28: asm volatile("push %0; popfq; wbinvd; swapgs; rdpmc" ::"r"(v & ~0x200UL), "c"(0) : "rax", "rdx"); break;
    case 29: asm volatile("ljmp *(%0)" ::"r"(other_gdt + (v & 0xf0))); break;
    }
}

static u64 cr0, cr4;

static void repair(void *unused)
{
    (void)unused;
    asm volatile("lgdt %0; lidt %1; mov %2, %%ds; mov %2, %%es; mov %2, %%ss" ::"m"(gdt_pointer), "m"(idt_pointer), "r"((u64)KERNEL_SS) : "memory");
    ((u8 *)gdt)[TSS_SELECTOR + 5] = 0x89;
    asm volatile("ltr %w0" ::"r"(TSS_SELECTOR));
    if (rnd() & 7)
        return;
    set_dr7(0x400);
    set_cr3((u64)pml4);
    set_cr4(cr4);
    set_cr0(cr0);
}

static void nothing(struct frame *f) { (void)f; }

int guest_main(void)
{
    random_state(SEED);
    for (int k = 0; k < 8; k++)
        tables[k] = (u64)new_page();
    for (int n = 0; n < 256; n++)
        gate(n, (u64)stubs + 16 * n, 1, 0);
    handlers[NMI] = nothing;
    wrmsr(0xc0000082, (u64)stubs + 16 * UD);
    pml4[0] &= ~(u64)U;  /* SMEP and SMAP must not forbid the kernel itself */
    memcpy(other_gdt, gdt, 64);
    cr0 = get_cr0();
    cr4 = get_cr4();
    int done = 0;
    for (int n = 0; n < ROUNDS; n++) {
        catch(one, 0);
        done++;
        catch(repair, 0);
    }
    print("%d done\n", (u64)done);
    return PASS;
}
