/* First touches of anonymous memory: 16 MiB are mapped, touched page by page, and given back, again and again. */
#include "bench.h"
#include <sys/mman.h>

#define SIZE (16ul << 20)

NOTHING_TO_PREPARE

uint64_t work(unsigned long percent) {
    uint64_t sum = 0;
    unsigned long rounds = (5 * percent + 99) / 100;
    for (unsigned long round = 0; round < rounds; round++) {
        unsigned char *m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        need(m != MAP_FAILED && !madvise(m, SIZE, MADV_NOHUGEPAGE), "mmap");
        for (unsigned long at = 0; at < SIZE; at += 4096)
            sum += m[at]++ + (at >> 12);
        need(!munmap(m, SIZE), "munmap");
    }
    return sum;
}
