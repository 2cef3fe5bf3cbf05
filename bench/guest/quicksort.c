/* The C library's qsort over integers, then a quicksort of our own: calls, comparisons, branches that no one can foresee. */
#include "bench.h"

#define N 200000
static uint32_t *numbers, *copy;

void prepare(unsigned long percent) {
    uint64_t x = 1;
    (void)percent;
    numbers = memory(N * sizeof *numbers);
    copy = memory(N * sizeof *copy);
    for (int k = 0; k < N; k++)
        numbers[k] = (x = next_random(x)) >> 33;
}

static int order(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void sort(uint32_t *low, uint32_t *high) {
    while (low < high) {
        uint32_t middle = low[(high - low) / 2], *i = low, *j = high;
        while (i <= j) {
            while (*i < middle)
                i++;
            while (*j > middle)
                j--;
            if (i <= j) {
                uint32_t t = *i;
                *i++ = *j;
                *j-- = t;
            }
        }
        sort(low, j);
        low = i;
    }
}

uint64_t work(unsigned long percent) {
    uint64_t sum = 0;
    unsigned long rounds = (4 * percent + 99) / 100;
    for (unsigned long round = 0; round < rounds; round++) {
        memcpy(copy, numbers, N * sizeof *copy);
        qsort(copy, N / 2, sizeof *copy, order);
        sort(copy + N / 2, copy + N - 1);
        sum += checksum(copy, N * sizeof *copy) + round;
    }
    return sum;
}
