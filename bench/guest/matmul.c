/* Product of two matrices of doubles, 200 x 200, as written in a textbook but with the loops in cache order. */
#include "bench.h"

#define N 200
static double a[N][N], b[N][N], c[N][N];

void prepare(unsigned long percent) {
    (void)percent;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i + 1) / (double)(j + 1);
            b[i][j] = (i - j) / 7.0;
        }
}

uint64_t work(unsigned long percent) {
    unsigned long rounds = (20 * percent + 99) / 100;
    for (unsigned long round = 0; round < rounds; round++)
        for (int i = 0; i < N; i++)
            for (int k = 0; k < N; k++) {
                double x = a[i][k];
                for (int j = 0; j < N; j++)
                    c[i][j] += x * b[k][j];
            }
    return checksum(c, sizeof c);
}
