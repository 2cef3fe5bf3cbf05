/* A counter behind a spin lock (test, then exchange), taken by two threads in turn. */
#include "threads.h"

static volatile int lock;
static uint64_t counter;

static void thread(unsigned long rounds) {
    for (unsigned long k = 0; k < rounds; k++) {
        for (unsigned long tries = 1; __atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE); tries++)
            while (lock)
                if (tries++ % 4096 == 0)
                    sched_yield(); /* the holder may have lost its host CPU */
                else
                    __asm__ volatile("pause");
        counter += k;
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    }
}

uint64_t work(unsigned long percent) {
    run_threads(50000 * percent);
    return counter;
}
