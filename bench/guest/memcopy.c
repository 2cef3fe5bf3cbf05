/* The C library's memcpy, 16 KiB to 1 MiB at a time. */
#include "bench.h"

#define SIZE (1 << 20)
static unsigned char *from, *to;

void prepare(unsigned long percent) {
    uint64_t x = percent;
    from = memory(SIZE);
    to = memory(SIZE);
    for (int k = 0; k < SIZE; k++)
        from[k] = (x = next_random(x)) >> 56;
}

uint64_t work(unsigned long percent) {
    unsigned long rounds = 60 * percent;
    for (unsigned long round = 0; round < rounds; round++) {
        size_t size = SIZE >> (round % 7);
        memcpy(to, from, size);
        __asm__ volatile("" : : "r"(to) : "memory");
        to[round % SIZE] ^= round;
    }
    return checksum(to, SIZE / 16);
}
