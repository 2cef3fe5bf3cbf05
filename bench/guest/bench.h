/* What the programs of the bench share.

   A program gives `prepare(n)`, which is not timed, and `work(n)`, which is; n is the size of the work in percent of the usual.
   It prints two lines, between which the host may look at its clocks, too:

       begin NAME
       end NAME NANOSECONDS CHECKSUM
*/
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void prepare(unsigned long percent);
uint64_t work(unsigned long percent);

#define NOTHING_TO_PREPARE \
    void prepare(unsigned long percent) { (void)percent; }

/* Ends the program; the bench takes a missing line for a failure and shows this text. */
static inline void need(int holds, const char *what) {
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* One step of Knuth's MMIX generator. */
static inline uint64_t next_random(uint64_t x) { return x * 6364136223846793005ull + 1442695040888963407ull; }

#define NO_BYTES 14695981039346656037ull

/* FNV-1a, continued over the bytes of a region. */
static inline uint64_t continued(uint64_t sum, const void *data, size_t size) {
    const unsigned char *bytes = data;
    for (size_t k = 0; k < size; k++)
        sum = (sum ^ bytes[k]) * 1099511628211ull;
    return sum;
}

static inline uint64_t checksum(const void *data, size_t size) { return continued(NO_BYTES, data, size); }

static inline void *memory(size_t size) {
    void *m = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
    need(m != NULL, "memory");
    memset(m, 0, size);
    return m;
}

#ifndef OWN_MAIN
int main(int count, char **words) {
    unsigned long percent = count > 1 ? strtoul(words[1], NULL, 10) : 100;
    const char *slash = strrchr(words[0], '/'), *name = slash ? slash + 1 : words[0];
    prepare(percent);
    printf("begin %s\n", name);
    fflush(stdout);
    uint64_t start = now_ns();
    uint64_t sum = work(percent);
    uint64_t taken = now_ns() - start;
    printf("end %s %llu %016llx\n", name, (unsigned long long)taken, (unsigned long long)sum);
    return 0;
}
#endif
