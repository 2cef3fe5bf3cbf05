/* An NVMe controller under random registers, doorbells, queues anywhere, commands with any fields, lists of pages that loop;
   then the same controller has to serve a driver that behaves. */
#include "bare.h"

struct command { u8 opcode, flags; u16 cid; u32 nsid; u64 reserved, metadata, prp1, prp2; u32 cdw[6]; };
struct completion { u32 result, reserved; u16 head, queue, cid, status; };

static __attribute__((aligned(4096))) u8 area[16 * 4096];
static u64 nvme;

static u32 config(u32 slot, u32 offset)
{
    outl(0xcf8, 0x80000000 | slot << 11 | offset);
    return inl(0xcfc);
}

static void find(void)
{
    for (u32 slot = 0; slot < 32; slot++)
        if (config(slot, 8) >> 8 == 0x010802) {
            outl(0xcf8, 0x80000000 | slot << 11 | 4);
            outl(0xcfc, 6);
            nvme = (config(slot, 0x10) & ~15U) | (u64)config(slot, 0x14) << 32;
        }
    CHECK(nvme);
}

static u64 wild_address(void)
{
    u64 r = rnd();
    switch (r & 15) {
    case 0: return rnd();
    case 1: return (64UL << 20) - (r >> 8 & 0x1fff);
    case 2: return 0xfee00000 + (r >> 8 & 0xfff);
    case 3: return -(r >> 8 & 0xffff);
    case 4: return 0x100000000;
    case 5: return nvme + 0x1000;
    case 6: return (u64)area + (r >> 8) % sizeof(area);
    default: return (u64)area + (r >> 8 & 15) * PAGE;
    }
}

static void start(u64 aqa, u64 sq, u64 cq)
{
    mmio_write(nvme + 0x14, 0);
    mmio_write(nvme + 0x24, aqa);
    *(volatile u64 *)(nvme + 0x28) = sq;
    *(volatile u64 *)(nvme + 0x30) = cq;
    mmio_write(nvme + 0x14, 4 << 20 | 6 << 16 | 1);
}

static void wild_commands(void)
{
    static const u8 opcodes[] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x0d, 0x7c};
    struct command *c = (void *)area;
    for (u32 k = 0; k < 3 * PAGE / sizeof *c; k++) {
        u64 r = rnd();
        c[k].opcode = r & 15 ? opcodes[(r >> 8) % sizeof opcodes] : r >> 16;
        c[k].flags = r >> 24 & 31 ? 0 : r >> 32;
        c[k].nsid = r >> 40 & 7 ? 1 : r >> 32;
        c[k].prp1 = wild_address();
        c[k].prp2 = wild_address();
        for (int n = 0; n < 6; n++) {
            u64 v = rnd();
            c[k].cdw[n] = v & 1 ? 0 : v & 2 ? v >> 8 & 15 : v & 4 ? (v >> 8 & 0x00070007) | (v >> 40 & 3) : v >> 8;
        }
    }
    u64 *lists = (u64 *)(area + 8 * PAGE);
    for (u32 k = 0; k < 4 * PAGE / 8; k++)
        lists[k] = rnd() & 15 ? (u64)area + (rnd() & 15) * PAGE : wild_address();
}

static void attack(void *unused)
{
    (void)unused;
    u64 r = rnd();
    wild_commands();
    start(r & 7 ? 0x001f001f : r >> 32, r & 0x70 ? (u64)area : wild_address(), r & 0x700 ? (u64)area + 3 * PAGE : wild_address());
    for (int k = 0; k < 24; k++) {
        u64 v = rnd();
        u32 value = v & 15 ? v >> 8 & 31 : v >> 8 & 0xffff;
        switch (v >> 32 & 7) {
        case 0: mmio_write(nvme + (v >> 40 & 0x3c), rnd()); break;
        case 1: *(volatile u64 *)(nvme + (v >> 40 & 0x1ff8)) = rnd(); break;
        case 2: *(volatile u16 *)(nvme + (v >> 40 & 0x3ffe)) = rnd(); break;
        case 3: mmio_write(nvme + 0x1000 + 4 * (v >> 40 & 31), value); break;
        case 4: mmio_write(nvme + 0x1004, value); break;
        default: mmio_write(nvme + 0x1000, value);
        }
    }
}

/* One command on queue 0, which has two entries a ring. */
static u32 turn;
static u32 admin(struct command c)
{
    volatile struct completion *done = (void *)(area + 4 * PAGE);
    u32 slot = turn++ & 1, phase = !((turn - 1) & 2);
    c.cid = turn;
    ((struct command *)(area + 3 * PAGE))[slot] = c;
    mmio_write(nvme + 0x1000, turn & 1);
    for (u64 k = 0; (done[slot].status & 1) != phase; k++)
        CHECK(k < 10000000);
    EQUAL(done[slot].cid, turn);
    mmio_write(nvme + 0x1004, turn & 1);
    return done[slot].status >> 1;
}

int guest_main(void)
{
    random_state(SEED);
    find();
    for (int n = 0; n < ROUNDS; n++)
        catch(attack, 0);
    memset(area, 0, sizeof area);
    start(0x00010001, (u64)area + 3 * PAGE, (u64)area + 4 * PAGE);
    EQUAL(mmio_read(nvme + 0x1c), 1);
    EQUAL(admin((struct command){.opcode = 6, .cdw = {1}, .prp1 = (u64)area}), 0);
    CHECK(!memcmp(area + 24, "Ringfence NVMe ", 15));
    EQUAL(admin((struct command){.opcode = 5, .cdw = {3 << 16 | 1, 1}, .prp1 = (u64)area + 5 * PAGE}), 0);
    EQUAL(admin((struct command){.opcode = 1, .cdw = {3 << 16 | 1, 1 << 16 | 1}, .prp1 = (u64)area + 6 * PAGE}), 0);
    struct command *io = (void *)(area + 6 * PAGE);
    volatile struct completion *done = (void *)(area + 5 * PAGE);
    for (int k = 0; k < 512; k++)
        area[k] = k * 11;
    io[0] = (struct command){.opcode = 1, .nsid = 1, .prp1 = (u64)area, .cdw = {100}};
    io[1] = (struct command){.opcode = 2, .nsid = 1, .prp1 = (u64)area + PAGE, .cdw = {100}};
    mmio_write(nvme + 0x1008, 2);
    for (u64 k = 0; !(done[1].status & 1); k++)
        CHECK(k < 10000000);
    EQUAL(done[0].status, 1);
    EQUAL(done[1].status, 1);
    CHECK(!memcmp(area, area + PAGE, 512));
    print("served after %d\n", (u64)ROUNDS);
    return PASS;
}
