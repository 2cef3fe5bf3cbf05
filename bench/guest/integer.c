/* A loop of integer arithmetic in registers: adds, shifts, multiplies and a branch that depends on data. */
#include "bench.h"

NOTHING_TO_PREPARE

uint64_t work(unsigned long percent) {
    uint64_t a = 1, b = 2, c = 0;
    for (unsigned long k = 0; k < 150000 * percent; k++) {
        a = a * 3 + (b >> 7);
        b ^= a << 5;
        if (b & 64)
            c += a ^ k;
        else
            c = (c >> 1) + b;
    }
    return a ^ b ^ c;
}
