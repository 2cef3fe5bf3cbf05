/* Triad of the STREAM benchmark: a[i] = b[i] + s * c[i] over arrays of 8 MiB, more than the caches near a core hold. */
#include "bench.h"

#define N (1 << 20)
static double *a, *b, *c;

void prepare(unsigned long percent) {
    (void)percent;
    a = memory(N * sizeof *a);
    b = memory(N * sizeof *b);
    c = memory(N * sizeof *c);
    for (int k = 0; k < N; k++) {
        b[k] = k;
        c[k] = 1.0 / (k + 1);
    }
}

uint64_t work(unsigned long percent) {
    unsigned long rounds = (50 * percent + 99) / 100;
    for (unsigned long round = 0; round < rounds; round++) {
        double s = round;
        for (int k = 0; k < N; k++)
            a[k] = b[k] + s * c[k];
        __asm__ volatile("" : : "r"(a) : "memory");
    }
    return checksum(a, 64 << 10);
}
