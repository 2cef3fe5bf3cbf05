/* The sieve of Eratosthenes, one byte a number: stores with a stride, within 4 MiB. */
#include "bench.h"

#define LIMIT (4 << 20)
static unsigned char *composite;

void prepare(unsigned long percent) {
    (void)percent;
    composite = memory(LIMIT);
}

uint64_t work(unsigned long percent) {
    uint64_t primes = 0;
    unsigned long rounds = (6 * percent + 99) / 100;
    for (unsigned long round = 0; round < rounds; round++) {
        memset(composite, 0, LIMIT);
        for (unsigned long p = 2; p * p < LIMIT; p++)
            if (!composite[p])
                for (unsigned long m = p * p; m < LIMIT; m += p)
                    composite[m] = 1;
        for (unsigned long k = 2; k < LIMIT; k++)
            primes += !composite[k];
    }
    return primes;
}
