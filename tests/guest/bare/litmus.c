/* The memory model of several CPUs, and what lock-free programs build on it (SDM 3A 9.2: memory ordering; 9.3: serialising).

   Each litmus test is a few loads and stores by two to four CPUs on fresh cells; what x86 forbids must never be seen, what it
   allows is counted and printed.  Then counters, locks, queues, and code that one CPU writes for another.  Repeated for SECONDS. */
#include "smp.h"

#ifndef SECONDS
#define SECONDS 1
#endif
#ifndef BATCH
#define BATCH 1024
#endif
#ifndef COUNTS
#define COUNTS 20000
#endif

struct cell { volatile u64 v; u8 code[LINE - 8]; };
static struct cell x[BATCH] __attribute__((aligned(4096))), y[BATCH] __attribute__((aligned(4096)));
static u8 seen[4][BATCH][2];
static struct { volatile u64 v, pad[7]; } progress[MOST_CPUS];
static u64 parties, relaxed[16];
static u32 started;

/* CPUs of a test go through its cells side by side. */
INLINE void together(u64 number, u64 i)
{
    progress[number].v = i + 1;
    for (u64 n = 0; n < parties; n++)
        while (progress[n].v < i)
            barrier_();
}

#define THREAD(name, ...) \
    static void name(u64 number) \
    { \
        for (u64 i = 0; i < BATCH; i++) { \
            u64 a = 0, b = 0; \
            together(number, i); \
            asm volatile(__VA_ARGS__ : "+r"(a), "+r"(b) : "r"(&x[i].v), "r"(&y[i].v) : "memory", "rax"); \
            seen[number][i][0] = a; \
            seen[number][i][1] = b; \
        } \
    }
#define MFENCE "mfence; "
#define LOCKED "lock; addq $0, (%%rsp); "

THREAD(store_x_load_y, "movq $1, (%2); movq (%3), %0")
THREAD(store_y_load_x, "movq $1, (%3); movq (%2), %0")
THREAD(store_x_fence_load_y, "movq $1, (%2); " MFENCE "movq (%3), %0")
THREAD(store_y_fence_load_x, "movq $1, (%3); " MFENCE "movq (%2), %0")
THREAD(store_x_lock_load_y, "movq $1, (%2); " LOCKED "movq (%3), %0")
THREAD(store_y_lock_load_x, "movq $1, (%3); " LOCKED "movq (%2), %0")
THREAD(swap_x_load_y, "movl $1, %%eax; xchgq %%rax, (%2); movq (%3), %0")
THREAD(swap_y_load_x, "movl $1, %%eax; xchgq %%rax, (%3); movq (%2), %0")
THREAD(store_x_store_y, "movq $1, (%2); movq $1, (%3)")
THREAD(load_y_load_x, "movq (%3), %0; movq (%2), %1")
THREAD(load_x_load_y, "movq (%2), %0; movq (%3), %1")
THREAD(load_x_store_y, "movq (%2), %0; movq $1, (%3)")
THREAD(load_y_store_x, "movq (%3), %0; movq $1, (%2)")
THREAD(store_x1_store_y2, "movq $1, (%2); movq $2, (%3)")
THREAD(store_y1_store_x2, "movq $1, (%3); movq $2, (%2)")
THREAD(store_x2_store_y1, "movq $2, (%2); movq $1, (%3)")
THREAD(store_x, "movq $1, (%2)")
THREAD(store_y, "movq $1, (%3)")
THREAD(load_x_twice, "movq (%2), %0; movq (%2), %1")
THREAD(string_x_store_y, "push %%rdi; push %%rcx; mov %2, %%rdi; mov $1, %%ecx; mov $1, %%eax; rep stosq; pop %%rcx; pop %%rdi; movq $1, (%3)")

enum { SB, SB_FENCE, SB_LOCK, SB_SWAP, MP, MP_STRING, LB, WW, S, CORR, WRC, IRIW, TESTS };
static const struct { const char *name; u64 cpus; void (*threads[4])(u64); } tests[TESTS] = {
    [SB] = {"SB", 2, {store_x_load_y, store_y_load_x}},
    [SB_FENCE] = {"SB+mfence", 2, {store_x_fence_load_y, store_y_fence_load_x}},
    [SB_LOCK] = {"SB+lock", 2, {store_x_lock_load_y, store_y_lock_load_x}},
    [SB_SWAP] = {"SB+xchg", 2, {swap_x_load_y, swap_y_load_x}},
    [MP] = {"MP", 2, {store_x_store_y, load_y_load_x}},
    [MP_STRING] = {"MP+string", 2, {string_x_store_y, load_y_load_x}},
    [LB] = {"LB", 2, {load_x_store_y, load_y_store_x}},
    [WW] = {"2+2W", 2, {store_x1_store_y2, store_y1_store_x2}},
    [S] = {"S", 2, {store_x2_store_y1, load_y_store_x}},
    [CORR] = {"CoRR", 2, {store_x, load_x_twice}},
    [WRC] = {"WRC", 3, {store_x, load_x_store_y, load_y_load_x}},
    [IRIW] = {"IRIW", 4, {store_x, store_y, load_x_load_y, load_y_load_x}},
};
static u64 test;

static int forbidden(u64 i)
{
    u8 a = seen[0][i][0], b = seen[1][i][0], c = seen[1][i][1];
    switch (test) {
    case SB:
        relaxed[SB] += !a && !b;
        return 0;
    case SB_FENCE: case SB_LOCK: case SB_SWAP: return !a && !b;
    case MP: case MP_STRING: return b && !c;
    case LB: return a && b;
    case WW: return x[i].v == 1 && y[i].v == 1;
    case S: return b && x[i].v == 2;
    case CORR: return b && !c;
    case WRC: return b && seen[2][i][0] && !seen[2][i][1];
    case IRIW: return seen[2][i][0] && !seen[2][i][1] && seen[3][i][0] && !seen[3][i][1];
    }
    return 1;
}

WORK(run_test)
{
    if (number < parties)
        tests[test].threads[number](number);
}

/* With `over_code` there is code beside every cell that CPUs have executed: the stores go over it. */
static void litmus(int over_code)
{
    for (test = 0; test < TESTS; test++) {
        parties = tests[test].cpus;
        if (parties > CPUS)
            continue;
        EACH(n) progress[n].v = 0;
        for (u64 i = 0; i < BATCH; i++) {
            x[i].v = y[i].v = 0;
            if (over_code && i % 16 == 0) {
                x[i].code[0] = y[i].code[0] = 0xc3;
                ((void (*)(void))x[i].code)();
                ((void (*)(void))y[i].code)();
            }
        }
        on_all(run_test);
        for (u64 i = 0; i < BATCH; i++)
            if (forbidden(i)) {
                print("%s at %d over code %d: ", tests[test].name, i, (u64)over_code);
                for (u64 n = 0; n < parties; n++)
                    print("%d %d, ", (u64)seen[n][i][0], (u64)seen[n][i][1]);
                fail("litmus", test, "forbidden outcome", x[i].v, y[i].v);
            }
    }
}

/* ---- counters */
static u8 area[3 * 4096] __attribute__((aligned(4096)));
static volatile u64 *counter;
static u64 each_counts;
static struct { u64 low, high; } wide __attribute__((aligned(16)));

WORK(count_up)
{
    volatile u64 *c = counter;
    for (u64 k = 0; k < each_counts; k++)
        switch (k & 3) {
        case 0: asm volatile("lock incq %0" : "+m"(*c)::"memory"); break;
        case 1: add_locked(c, 1); break;
        case 2: asm volatile("lock addq $1, %0" : "+m"(*c)::"memory"); break;
        case 3:
            for (u64 old = *c, now; (now = cas(c, old, old + 1)) != old; old = now)
                ;
        }
}

WORK(count_wide)
{
    for (u64 k = 0; k < each_counts; k++) {
        u64 low = wide.low, high = wide.high;
        u8 done;
        do {
            asm volatile("lock cmpxchg16b %1; sete %0"
                         : "=q"(done), "+m"(wide), "+a"(low), "+d"(high) : "b"(low + 1), "c"(high + 3) : "memory", "cc");
        } while (!done);
    }
}

static void count_at(u64 offset, u64 counts)
{
    counter = (volatile u64 *)(area + offset);
    *counter = 0;
    each_counts = counts;
    on_all(count_up);
    EQUAL(*counter, counts * CPUS);
}

static void counters(void)
{
    count_at(64, COUNTS);
    count_at(4096 - 4, 40); /* over a page's end */
    count_at(64 * 3 - 4, COUNTS); /* over a line's end */
    u8 *code = area + 4096 + 128;
    code[0] = 0xc3;
    ((void (*)(void))code)();
    count_at(4096 + 136, 4000); /* beside code */
    wide.low = wide.high = 0;
    each_counts = COUNTS;
    on_all(count_wide);
    EQUAL(wide.low, COUNTS * CPUS);
    EQUAL(wide.high, 3 * COUNTS * CPUS);
}

/* ---- locks around what is not atomic */
static volatile u64 plain, lock_word, next_ticket, now_served;
static struct { volatile u64 v, pad[7]; } wants[2];
static volatile u64 turn;

WORK(with_swap)
{
    for (u64 k = 0; k < COUNTS / 4; k++) {
        while (lock_word || swap(&lock_word, 1))
            pause_();
        plain++;
        barrier_();
        lock_word = 0;
    }
}

WORK(with_tickets)
{
    for (u64 k = 0; k < COUNTS / 40; k++) {
        u64 mine = add_locked(&next_ticket, 1);
        while (now_served != mine)
            pause_();
        plain++;
        barrier_();
        now_served = mine + 1;
    }
}

/* Peterson's, of two CPUs: right only where a store is seen before a later load, which MFENCE is for. */
WORK(with_fences)
{
    if (number > 1)
        return;
    for (u64 k = 0; k < COUNTS / 4; k++) {
        wants[number].v = 1;
        turn = !number;
        asm volatile("mfence" ::: "memory");
        while (wants[!number].v && turn == !number)
            pause_();
        plain++;
        barrier_();
        wants[number].v = 0;
    }
}

/* A queue of one writer and one reader, with plain loads and stores. */
static struct { u64 items[64]; volatile u64 head, pad[7], tail; } queue;
WORK(pass_items)
{
    for (u64 k = 0; number < 2 && k < COUNTS; k++) {
        if (number == 0) {
            while (queue.head - queue.tail == 64)
                pause_();
            queue.items[k & 63] = k * 0x9e3779b97f4a7c15UL;
            barrier_();
            queue.head = k + 1;
        } else {
            while (queue.head == k)
                pause_();
            EQUAL(queue.items[k & 63], k * 0x9e3779b97f4a7c15UL);
            barrier_();
            queue.tail = k + 1;
        }
    }
}

static void locks(void)
{
    plain = 0;
    on_all(with_swap);
    EQUAL(plain, COUNTS / 4 * CPUS);
    plain = 0;
    on_all(with_tickets);
    EQUAL(plain, COUNTS / 40 * CPUS);
    plain = 0;
    on_all(with_fences);
    EQUAL(plain, COUNTS / 4 * 2);
    queue.head = queue.tail = 0;
    on_all(pass_items);
}

/* ---- code that one CPU writes and another executes (SDM 3A 9.1.3) */
static u8 code_page[4096] __attribute__((aligned(4096)));
static volatile u64 version, executed;
#ifndef VERSIONS
#define VERSIONS 400
#endif
#ifndef PAGES
#define PAGES 100
#endif
#ifndef CHANGES_US
#define CHANGES_US 500
#endif
#define CHANGES 5

static u64 call_code(u8 *at) { u64 v; asm volatile("call *%1" : "=a"(v) : "r"(at) : "memory", "rcx", "rdx"); return v; }

static void put_code(u8 *at, u32 value)
{
    at[0] = 0xb8; /* mov $value, %eax; ret */
    *(volatile u32 *)(at + 1) = value;
    at[5] = 0xc3;
}

/* In turns: each CPU rewrites the code for all others.  It executes its own work first or last: whoever is first makes code of the
   page, while the others still know it as data. */
WORK(rewrite)
{
    for (u64 k = 1; k <= VERSIONS; k++) {
        u8 *at = code_page + k % 7 * 100 + k % 3;
        if (k % CPUS == number) {
            put_code(at, k);
            barrier_();
            version = k;
            while (k & 4 && executed < k * CPUS - 1)
                pause_();
        } else {
            while (version < k)
                pause_();
            serialize();
        }
        EQUAL(call_code(at), k);
        add_locked(&executed, 1);
        while (executed < k * CPUS)
            pause_();
    }
}

/* Without turns: one changes an instruction by a single store, the others must find the one or the other. */
static volatile u64 toggling;
WORK(toggle)
{
    u8 *at = code_page + 2048 + 3; /* the immediate is aligned */
    if (number == 0) {
        for (u32 k = 0; k < 5 * VERSIONS; k++)
            *(volatile u32 *)(at + 1) = k & 1 ? 0x11111111 : 0x22222222;
        toggling = 0;
    } else {
        while (toggling) {
            u64 got = call_code(at);
            CHECK(got == 0x11111111 || got == 0x22222222);
        }
        serialize();
        EQUAL(call_code(at), 0x11111111);
    }
}

/* A loop that is executed all the time, while another CPU changes an instruction of it and says so afterwards: nothing in it is
   serialising, but processors keep what they execute coherent: who has been told, and jumps then, finds the new one. */
asm(".data; .p2align 12\n"
    "changing: movq (%rsi), %rcx; jmp 1f; 1: nop; nop\n"
    " .byte 0xb8\n" /* mov $..., %eax */
    "changing_value: .long 0\n" /* aligned */
    " cmpl %ecx, %eax; jb 1f; incq (%rdi); cmpl $5, %ecx; jne changing\n" /* CHANGES */
    "1: ret\n"
    ".text");
extern u8 changing[];
extern volatile u32 changing_value;
static volatile u64 changes_told, changes_met;
WORK(change)
{
    if (number == 0) {
        for (u32 k = 1; k <= CHANGES; k++) {
            wait_us(CHANGES_US);
            changing_value = k;
            barrier_();
            changes_told = k;
        }
    } else {
        u64 told, found;
        asm volatile("call *%4" : "=a"(found), "=c"(told) : "D"(&changes_met), "S"(&changes_told), "r"(changing) : "memory", "cc");
        EQUAL(told, CHANGES);
        EQUAL(found, CHANGES);
    }
}

/* Fresh pages become code on one CPU while others store beside it. */
static u8 fresh[8][4096] __attribute__((aligned(4096)));
static volatile u64 fresh_round, fresh_done;
WORK(grow)
{
    for (u64 k = 1; k <= PAGES; k++) {
        u8 *page = fresh[k & 7];
        if (number == 0) {
            for (int n = 0; n < 8; n++)
                put_code(page + 512 * n, k * 8 + n);
            barrier_();
            fresh_round = k;
            while (k & 1 && fresh_done < k * CPUS - 1)
                pause_();
            for (int n = 0; n < 8; n++)
                EQUAL(call_code(page + 512 * n), k * 8 + n);
        } else {
            while (fresh_round < k)
                pause_();
            for (int n = 0; n < 200; n++) {
                volatile u64 *beside = (volatile u64 *)(page + 512 * (n & 7) + 64 + 8 * number);
                *beside = n;
                EQUAL(*beside, n);
            }
            serialize();
            EQUAL(call_code(page + 512 * (number & 7)), k * 8 + (number & 7));
        }
        add_locked(&fresh_done, 1);
        while (fresh_done < k * CPUS)
            pause_();
    }
}

static void modifications(void)
{
    version = executed = 0;
    on_all(rewrite);
    put_code(code_page + 2051, 0x22222222);
    toggling = 1;
    on_all(toggle);
    changing_value = changes_told = 0;
    on_all(change);
    fresh_round = fresh_done = 0;
    on_all(grow);
}

int guest_main(void)
{
    x2apic = 1;
    outb(0x21, 0xff);
    start_others();
    started = ticks();
    u64 turns = 0, seconds = 0;
    for (u32 last = started, now; !turns || (s64)seconds < SECONDS * 3579545L; last = now) {
        litmus(0);
        litmus(1);
        counters();
        locks();
        modifications();
        turns++;
        now = ticks();
        seconds += (u32)(now - last);
        if (turns == 1)
            print("one turn\n");
    }
    print("%d CPUs, %d turns, SB relaxed %d times of %d\n", (u64)CPUS, turns, relaxed[SB], 2 * turns * BATCH);
    return PASS;
}
