/* Code, stacks, tables and operands where no RAM is.  What a case returns from must leave the machine usable; cases from 100
   on end it by a triple fault or the like. */
#include "bare.h"

#define HOLE 0xc0000000UL
#define APIC 0xfee00000UL
#define RAM_END (64UL << 20)

typedef void (*function)(void);
static u64 saved_rsp;

static void jump(void *to) { ((function)to)(); }

static void on_stack(void *top)
{
    asm volatile("mov %%rsp, %0; mov %1, %%rsp; push $5; pop %%rax; call 1f; 1: mov %0, %%rsp" : "+m"(saved_rsp) : "r"(top) : "rax", "memory");
}

static void operands(void *at)
{
    asm volatile("movups (%0), %%xmm1; movups %%xmm1, (%0)" ::"r"(at) : "memory");
    asm volatile("movaps (%0), %%xmm1; movaps %%xmm1, (%0); movntdq %%xmm1, (%0)" ::"r"((u64)at & ~15UL) : "memory");
    asm volatile("lock xaddl %%eax, (%0); xchgb %%al, (%0); lock cmpxchgq %%rcx, (%0); lock btsl $3, (%0)" ::"r"(at) : "rax", "memory");
    asm volatile("lock cmpxchg16b (%0)" ::"r"((u64)at & ~15UL) : "rax", "rdx", "memory");
    asm volatile("fldt (%0); fstpt (%0); fldl (%0); fistpll (%0); fnstenv (%0); fldenv (%0); fnclex" ::"r"(at) : "memory");
    asm volatile("addq $1, (%0); notl (%0); shldl $3, %%eax, (%0); rolw %%cl, (%0); incb (%0); sbbl %%eax, (%0)" ::"r"(at) : "memory");
    asm volatile("push (%0); pop (%0)" ::"r"(at) : "memory");
    asm volatile("sgdt (%0); sidt (%0); sldt (%0); str (%0); smsw (%0)" ::"r"(at) : "memory");
    asm volatile("crc32q (%0), %%rax; pshufb (%1), %%xmm1; pcmpistri $0, (%0), %%xmm1; maskmovdqu %%xmm1, %%xmm0" ::"r"(at), "r"((u64)at & ~15UL), "D"(at) : "rax", "rcx", "memory");
}

static void fxsave(void *at) { asm volatile("fxsave (%0)" ::"r"((u64)at & ~15UL) : "memory"); }
static void fxrstor(void *at) { asm volatile("fxrstor (%0)" ::"r"((u64)at & ~15UL) : "memory"); }

static void strings(void *at)
{
    u64 a = (u64)at;
    asm volatile("rep movsb" ::"D"(a), "S"(user_stack), "c"(300) : "memory");
    asm volatile("rep movsq" ::"D"(user_stack), "S"(a), "c"(40) : "memory");
    asm volatile("rep stosl" ::"D"(a), "a"(0), "c"(40) : "memory");
    asm volatile("std; rep stosw; cld" ::"D"(a + 64), "a"(0), "c"(40) : "memory");
    asm volatile("repne scasb" ::"D"(a), "a"(0), "c"(64) : "memory", "cc");
    asm volatile("repe cmpsd" ::"D"(a), "S"(a), "c"(64) : "memory", "cc");
    asm volatile("rep lodsq" ::"S"(a), "c"(64) : "memory", "rax");
    asm volatile("rep outsb" ::"d"(0x80), "S"(a), "c"(16) : "memory");
    asm volatile("rep insw" ::"d"(0x80), "D"(a), "c"(16) : "memory");
}

/* Every kind of access around an address, one case a call, so that a fault in one does not hide the others. */
static void abuse(u64 at)
{
    catch(operands, (void *)at);
    catch(fxsave, (void *)at);
    catch(fxrstor, (void *)at);
    catch(strings, (void *)at);
    catch(on_stack, (void *)(at + 64));
    asm volatile("fninit");
}

static void code_at_ram_end(void)
{
    static const u8 code[] = {0x90, 0x90, 0xc3};
    memcpy((void *)(RAM_END - 3), code, 3);
    EQUAL(catch(jump, (void *)(RAM_END - 3)), -1);
    /* An instruction that runs on into the hole, where all bytes are ff. */
    *(volatile u8 *)(RAM_END - 1) = 0xb8;
    catch(jump, (void *)(RAM_END - 1));
    *(volatile u8 *)(RAM_END - 1) = 0xff;
    EQUAL(catch(jump, (void *)(RAM_END - 1)), UD);
    *(volatile u8 *)(RAM_END - 1) = 0x90;
    EQUAL(catch(jump, (void *)(RAM_END - 1)), UD);
}

static void page_tables_in_holes(void)
{
    u64 *e = pte_of(0x10000000000, 3, P | W | U), *t;
    *e = HOLE | P | W | U;
    flush();
    catch(operands, (void *)0x10000000000);
    *e = APIC | P | W | U;
    flush();
    catch(operands, (void *)0x10000000000);
    catch(jump, (void *)0x10000000000);
    *e = (RAM_END - PAGE) | P | W | U;
    t = (u64 *)(RAM_END - PAGE);
    for (int n = 0; n < 512; n++)
        t[n] = 0xffffffffff000 | P | W | U;
    flush();
    catch(operands, (void *)0x10000000000);
    *e = 0;
    flush();
}

static void nothing(struct frame *f) { (void)f; }

int guest_main(void)
{
#if CASE < 100
    for (int n = 0; n < 32; n++)
        gate(n, (u64)stubs + 16 * n, 1, 0);
    handlers[NMI] = nothing;
    u64 slots[] = {HOLE, APIC, APIC + 0x300, 0xfec00000, 0xfeb00000, 0xfeb00ffc, 0xe0000000, 0xe0003ff8, 0xfff80000, RAM_END, RAM_END - 4, RAM_END - 300,
                   0xfee00ff8, 0xffffffffff, 0x8000000000};
    wrmsr(0x1b, rdmsr(0x1b));
    for (int n = 0; n < sizeof(slots) / 8; n++)
        abuse(slots[n]);
    map(0x8000000ff8 & ~0xfffUL, (u64)new_page(), P | W | U);
    map(0x8000001000, APIC, P | W | U);
    abuse(0x8000000ffc);
    map(0x8000002000, (u64)new_page(), P | W | U);
    abuse(0x8000001ffc);
    for (int n = 0; n < sizeof(slots) / 8; n++)
        catch(jump, (void *)slots[n]);
    catch(jump, (void *)0x8000000000000000);
    catch(jump, (void *)0x800000000000);
    catch(jump, (void *)0x7fffffffffff);
    catch(jump, (void *)-1L);
    catch(jump, (void *)1L);
    code_at_ram_end();
    page_tables_in_holes();
    mmio_write(APIC + 0x80, 0);
    print("done\n");
    return PASS;
#elif CASE == 100 /* stack in a hole when an exception comes */
    asm volatile("mov %0, %%rsp; ud2" ::"r"(HOLE));
#elif CASE == 101 /* descriptor tables in holes */
    idt_pointer.base = HOLE;
    asm volatile("lidt %0; ud2" ::"m"(idt_pointer));
#elif CASE == 102
    idt_pointer.base = APIC;
    asm volatile("lidt %0; ud2" ::"m"(idt_pointer));
#elif CASE == 103
    gdt_pointer.base = HOLE;
    asm volatile("lgdt %0; ud2" ::"m"(gdt_pointer));
#elif CASE == 104 /* page tables in a hole */
    set_cr3(HOLE);
#elif CASE == 105
    set_cr3(0xffffffffff000);
#elif CASE == 106 /* #PF whose handler cannot be fetched, with room on its stack for ever */
    gate(PF, 0x8000000000, 1, 0);
    *(volatile u8 *)0x8000000000;
#elif CASE == 107 /* the same in MMIO */
    gate(PF, 0x8000000000, 1, 0);
    map(0x8000000000, APIC, P | W);
    ((function)0x9000000000)();
#elif CASE == 108 /* stack of the TSS in a hole, from ring 3 */
    tss.rsp[0] = HOLE + 0x1000;
    to_user(HOLE, 0, 2);
#elif CASE == 109 /* out of paging */
    set_cr0(get_cr0() & ~(1UL << 31));
#elif CASE == 110 /* a compatibility-mode segment */
    gdt[8] = 0x00cf9b000000ffff;
    asm volatile("push %0; lea 1f(%%rip), %%rax; push %%rax; lretq; 1: nop" ::"i"(SPARE_SELECTOR) : "rax", "memory");
#elif CASE == 111 /* strings of ports without end */
    asm volatile("rep outsb" ::"d"(0x80), "S"(user_stack), "c"(-1L) : "memory");
#elif CASE == 112
    asm volatile("1: rep outsb; mov %2, %%rcx; mov %1, %%rsi; jmp 1b" ::"d"(0x80), "r"(user_stack), "r"(1L << 40) : "rcx", "rsi", "memory");
#elif CASE == 113 /* MMIO without end */
    asm volatile("rep stosl" ::"D"(0xc0000000), "a"(0), "c"(-1L) : "memory");
#elif CASE == 114 /* single steps and interpreted instructions without end */
    set_dr7(0x401);
    for (;;)
        asm volatile("nop");
#elif CASE == 115 /* exceptions without end */
    for (;;)
        catch(jump, (void *)0x8000000000);
#elif CASE == 116 /* RIP runs over the end of the address space, and over the canonical hole */
    map(0xfffffffffffff000, (u64)memset(new_page(), 0x90, PAGE), P | W);
    map(0x7ffffffff000, (u64)memset(new_page(), 0x90, PAGE), P | W);
    EQUAL(catch(jump, (void *)0x7ffffffff800), GP);
    CHECK(catch(jump, (void *)0xfffffffffffff800) >= 0);
    return PASS;
#endif
    return 1;
}
