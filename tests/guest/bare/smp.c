/* Several CPUs: start-up, interprocessor interrupts of every kind, timers, TLB shootdown, page-table bits. */
#include "smp.h"

static volatile u64 received[MOST_CPUS][8], nmis[MOST_CPUS];
static volatile u64 stay = 1;

static void count_ipi(struct frame *f) { add_locked(&received[own_number()][f->vector & 7], 1); eoi(); }
HANDLER(count_nmi) { add_locked(&nmis[own_number()], 1); }

WORK(listen)
{
    sti();
    if (number)
        while (stay)
            asm volatile("hlt");
    cli();
}

HANDLER(let_go) { eoi(); }

/* The others halt with interrupts enabled; after `work` they are called back. */
static void while_others_listen(void (*work)(void))
{
    stay = 1;
    job = listen;
    jobs_done = 0;
    barrier_();
    job_round++;
    wait_us(2000);
    work();
    stay = 0;
    while (jobs_done != CPUS - 1) {
        send_ipi(0, FIXED | ASSERT | TO_OTHERS | 0x50);
        wait_us(500);
    }
}

static void expect_ipi(u64 number, int kind, u64 count)
{
    for (int tries = 0; received[number][kind] != count; tries++) {
        if (tries == 100000)
            fail("expect_ipi", number, "interrupts received", received[number][kind], count);
        wait_us(20);
    }
}

static u32 logical_id(u64 number)
{
    return x2apic ? (number >> 4) << 16 | 1 << (number & 15) : 1 << number;
}

static void test_destinations(void)
{
    EACH(n) for (int k = 0; k < 8; k++) received[n][k] = 0;
    sti();
    EACH(n) {
        send_ipi(n, FIXED | ASSERT | 0x41);
        send_ipi(logical_id(n), FIXED | LOGICAL | ASSERT | 0x42);
    }
    u32 everybody = 0;
    EACH(n) everybody |= logical_id(n);
    send_ipi(everybody, FIXED | LOGICAL | ASSERT | 0x43);
    EACH(n) { expect_ipi(n, 1, 1); expect_ipi(n, 2, 1); expect_ipi(n, 3, 1); }
    send_ipi(0, FIXED | ASSERT | TO_ALL | 0x44);
    send_ipi(0, FIXED | ASSERT | TO_OTHERS | 0x45);
    send_ipi(0, FIXED | ASSERT | TO_SELF | 0x46);
    send_ipi(x2apic ? 0xffffffff : 0xff, FIXED | ASSERT | 0x47);
    EACH(n) { expect_ipi(n, 4, 1); expect_ipi(n, 5, n != 0); expect_ipi(n, 6, n == 0); expect_ipi(n, 7, 1); }
    for (int k = 0; k < 20; k++) {
        send_ipi(everybody, LOWEST | LOGICAL | ASSERT | 0x41);
        wait_us(200);
    }
    u64 all = 0;
    for (int tries = 0; all != 20 + CPUS && tries < 10000; tries++) {
        wait_us(20);
        all = 0;
        EACH(n) all += received[n][1];
    }
    EQUAL(all, 20 + CPUS);
    EACH(n) nmis[n] = 0;
    EACH(n) if (n) send_ipi(n, SEND_NMI | ASSERT);
    EACH(n) for (int tries = 0; n && nmis[n] != 1; tries++) { CHECK(tries < 10000); wait_us(20); }
    EQUAL(nmis[0], 0);
    cli();
}

/* Ping-pong: who is interrupted interrupts the next. */
static volatile u64 rounds_left;
HANDLER(pass_on)
{
    eoi();
    if (rounds_left && --rounds_left)
        send_ipi((own_number() + 1) % CPUS, FIXED | ASSERT | 0x60);
}

static void test_ring(void)
{
    rounds_left = 500;
    send_ipi(1, FIXED | ASSERT | 0x60);
    sti();
    while (rounds_left)
        pause_();
    cli();
}

/* ---- INIT stops a CPU wherever it is; SIPI starts it anew. */
static volatile u64 spinning;
WORK(spin_for_ever)
{
    if (number == 1)
        for (;;)
            spinning++;
}

static void test_init(void)
{
    job = spin_for_ever;
    jobs_done = 0;
    spinning = 0;
    barrier_();
    job_round++;
    while (!spinning)
        pause_();
    while (jobs_done != CPUS - 2)
        pause_();
    send_ipi(1, INIT | ASSERT);
    wait_us(20000);
    u64 before = spinning;
    wait_us(20000);
    EQUAL(spinning, before);
    numbers_seen &= ~2UL;
    send_ipi(1, STARTUP | ASSERT | TRAMPOLINE >> 12);
    send_ipi(1, STARTUP | ASSERT | TRAMPOLINE >> 12);
    while (!(numbers_seen & 2))
        pause_();
}

/* ---- each CPU's own timer wakes it */
static volatile u64 timer_ticks[MOST_CPUS];
HANDLER(tick) { timer_ticks[own_number()]++; eoi(); }
WORK(wait_for_ticks)
{
    timer_ticks[number] = 0;
    apic_write(APIC_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, 0x61 | 1 << 17);
    apic_write(APIC_INITIAL, 2000000 + 100000 * number);
    while (timer_ticks[number] < 10)
        asm volatile("sti; hlt; cli" ::: "memory");
    apic_write(APIC_INITIAL, 0);
    apic_write(APIC_LVT_TIMER, 1 << 16);
}

/* ---- TLB shootdown */
#define SHOT 0x10000000000UL /* linear address of the page that changes hands */
static u64 *shot_pte;
static volatile u64 shots_left, acknowledged, faults;
static volatile u64 *frames[2];

HANDLER(shoot_down)
{
    invlpg(SHOT);
    add_locked(&acknowledged, 1);
    eoi();
}

static void wait_for_page(struct frame *f)
{
    add_locked(&faults, 1);
    EQUAL(get_cr2() & ~0xfffUL, SHOT);
    sti();
    while (!(*(volatile u64 *)shot_pte & P) || (f->error & W && !(*(volatile u64 *)shot_pte & W)))
        pause_();
    cli();
    invlpg(SHOT);
}

static void shoot(void)
{
    acknowledged = 0;
    invlpg(SHOT);
    send_ipi(0, FIXED | ASSERT | TO_OTHERS | 0x62);
    while (acknowledged != CPUS - 1)
        pause_();
}

WORK(change_page)
{
    volatile u64 *page = (volatile u64 *)SHOT;
    if (number) {
        sti();
        while (shots_left)
            add_locked(&page[number], 1);
        cli();
        return;
    }
    for (; shots_left; shots_left--) {
        u64 old = swap(shot_pte, 0);
        shoot();
        EQUAL(*(volatile u64 *)shot_pte, 0); /* nobody's walk has put a bit back */
        volatile u64 *frame = (volatile u64 *)(old & FRAME);
        u64 seen[MOST_CPUS];
        EACH(n) seen[n] = frame[n];
        for (int k = 0; k < 100; k++)
            pause_();
        EACH(n) EQUAL(frame[n], seen[n]);
        *(volatile u64 *)shot_pte = (u64)frames[shots_left & 1] | P | W | (shots_left & 2 ? A : 0);
        if (shots_left % 3 == 0) {
            wait_us(5);
            swap(shot_pte, *(volatile u64 *)shot_pte & ~(u64)W);
            shoot();
            frame = frames[shots_left & 1];
            EACH(n) seen[n] = frame[n];
            for (int k = 0; k < 100; k++)
                pause_();
            EACH(n) EQUAL(frame[n], seen[n]);
        }
    }
    *(volatile u64 *)shot_pte = (u64)frames[0] | P | W;
}

static void test_shootdown(void)
{
    frames[0] = new_page();
    frames[1] = new_page();
    map(SHOT, (u64)frames[0], P | W);
    shot_pte = pte_of(SHOT, 1, 0);
    handlers[PF] = wait_for_page;
    shots_left = 300;
    on_all(change_page);
    handlers[PF] = 0;
    CHECK(faults);
}

int guest_main(void)
{
    for (int v = 0x40; v < 0x48; v++)
        handlers[v] = count_ipi;
    handlers[NMI] = count_nmi;
    handlers[0x50] = let_go;
    handlers[0x60] = pass_on;
    handlers[0x61] = tick;
    handlers[0x62] = shoot_down;
    x2apic = X2APIC;
    set_cr0(get_cr0() | 1 << 16); /* WP: what is read-only is so for ring 0 too */
    outb(0x21, 0xff);
    start_others();
    print("%d CPUs\n", (u64)CPUS);
    while_others_listen(test_destinations);
    print("destinations\n");
    while_others_listen(test_ring);
    print("ring\n");
    test_init();
    print("init\n");
    on_all(wait_for_ticks);
    print("timers\n");
    test_shootdown();
    print("shootdown\n");
    return PASS;
}
