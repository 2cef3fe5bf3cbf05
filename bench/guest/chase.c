/* A chain of pointers through 512 KiB in an order that no prefetcher guesses: one load after the other.  It fits into a
   core's own cache, so that neither the host's other tenants nor its page sizes are what is measured. */
#include "bench.h"

#define N (8 << 10)
#define STRIDE 8 /* pointers: one cache line */
static void **cells;

void prepare(unsigned long percent) {
    uint32_t *order = memory(N * sizeof *order);
    uint64_t x = 5;
    (void)percent;
    cells = memory((size_t)N * STRIDE * sizeof *cells);
    for (uint32_t k = 0; k < N; k++)
        order[k] = k;
    for (uint32_t k = N - 1; k > 0; k--) {
        x = next_random(x);
        uint32_t other = (x >> 33) % (k + 1), t = order[k];
        order[k] = order[other];
        order[other] = t;
    }
    for (uint32_t k = 0; k < N; k++)
        cells[(size_t)order[k] * STRIDE] = &cells[(size_t)order[(k + 1) % N] * STRIDE];
    free(order);
}

uint64_t work(unsigned long percent) {
    void **p = cells;
    for (unsigned long k = 0; k < 100000 * percent; k++)
        p = *p;
    return p - cells;
}
