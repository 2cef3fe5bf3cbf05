/* A disk's speed as a program sees it, past the guest's page cache (O_DIRECT).

       disk DEVICE MEBIBYTES SECONDS [TEST ...]

   The first MEBIBYTES of DEVICE are used.  Tests: read4k, write4k (random 4 KiB, one request at a time), read4k32, write4k32 (the
   same, 32 under way), read, write (sequential, 1 MiB each), flush (random 4 KiB and a flush).  A line before each test and one after it:

       begin TEST
       end TEST OPERATIONS BYTES NANOSECONDS
*/
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SMALL 4096
#define LARGE (1 << 20)
#define DEPTH 32

static int disk;
static uint64_t extent, seed = 88172645463325252ull;
static double seconds;
static char *buffer;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void failed(const char *what) {
    printf("failed %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t somewhere(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % (extent / SMALL) * SMALL;
}

static uint64_t one_by_one(int writes, size_t size, int random, int flush, uint64_t end) {
    uint64_t done = 0, at = 0;
    do {
        uint64_t offset = random ? somewhere() : at;
        ssize_t n = writes ? pwrite(disk, buffer, size, offset) : pread(disk, buffer, size, offset);
        if (n != (ssize_t)size || (flush && fdatasync(disk)))
            failed(writes ? "write" : "read");
        at = (at + size) % (extent / size * size);
        done++;
    } while (now() < end);
    return done;
}

static uint64_t many(int writes, uint64_t end) {
    static struct iocb blocks[DEPTH];
    struct iocb *list[DEPTH];
    struct io_event events[DEPTH];
    aio_context_t context = 0;
    uint64_t done = 0;
    int n = DEPTH, under_way = 0;
    if (syscall(SYS_io_setup, DEPTH, &context))
        failed("io_setup");
    for (int k = 0; k < DEPTH; k++) {
        blocks[k].aio_data = k;
        list[k] = &blocks[k];
    }
    for (;;) {
        for (int k = 0; k < n; k++) {
            struct iocb *b = list[k];
            b->aio_fildes = disk;
            b->aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            b->aio_buf = (uintptr_t)buffer + b->aio_data * SMALL;
            b->aio_nbytes = SMALL;
            b->aio_offset = somewhere();
        }
        for (int k = 0; k < n;) {
            long taken = syscall(SYS_io_submit, context, n - k, list + k);
            if (taken <= 0)
                failed("io_submit");
            k += taken;
        }
        under_way += n;
        int last = now() >= end;
        n = syscall(SYS_io_getevents, context, last ? under_way : 1, DEPTH, events, NULL);
        if (n <= 0)
            failed("io_getevents");
        under_way -= n;
        done += n;
        for (int k = 0; k < n; k++) {
            if (events[k].res != SMALL)
                failed("request");
            list[k] = &blocks[events[k].data];
        }
        if (last)
            break;
    }
    syscall(SYS_io_destroy, context);
    return done;
}

static void test(const char *name) {
    int writes = strstr(name, "write") || !strcmp(name, "flush"), small = strstr(name, "4k") || !strcmp(name, "flush");
    printf("begin %s\n", name);
    fflush(stdout);
    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9);
    uint64_t done = strstr(name, "32") ? many(writes, end) : one_by_one(writes, small ? SMALL : LARGE, small, !strcmp(name, "flush"), end);
    uint64_t taken = now() - start;
    printf("end %s %llu %llu %llu\n", name, (unsigned long long)done, (unsigned long long)done * (small ? SMALL : LARGE),
           (unsigned long long)taken);
    fflush(stdout);
}

int main(int count, char **words) {
    static const char *all[] = {"read4k", "read4k32", "write4k", "write4k32", "read", "write"};
    if (count < 4)
        return 2;
    disk = open(words[1], O_RDWR | O_DIRECT);
    if (disk < 0)
        failed(words[1]);
    extent = strtoull(words[2], 0, 0) << 20;
    seconds = atof(words[3]);
    if (posix_memalign((void **)&buffer, SMALL, LARGE))
        failed("memory");
    memset(buffer, 0x5A, LARGE);
    if (count == 4)
        for (unsigned k = 0; k < sizeof all / sizeof *all; k++)
            test(all[k]);
    for (int k = 4; k < count; k++)
        test(words[k]);
    return 0;
}
