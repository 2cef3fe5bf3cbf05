/* One counter that two threads add to with locked instructions, by fetch-and-add and by compare-and-exchange. */
#include "threads.h"

static uint64_t added, exchanged;

static void thread(unsigned long rounds) {
    for (unsigned long k = 0; k < rounds; k++) {
        uint64_t old = __atomic_load_n(&exchanged, __ATOMIC_RELAXED);
        __atomic_fetch_add(&added, k, __ATOMIC_SEQ_CST);
        while (!__atomic_compare_exchange_n(&exchanged, &old, old + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            ;
    }
}

uint64_t work(unsigned long percent) {
    run_threads(20000 * percent);
    return added ^ exchanged;
}
