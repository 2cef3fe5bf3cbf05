/* Two threads, each on a CPU of its own, that do the same. */
#include "bench.h"
#include <pthread.h>
#include <sched.h>

#define THREADS 2

static void thread(unsigned long rounds);
static unsigned long rounds_of_each;

static void *on_own_cpu(void *argument) {
    cpu_set_t set;
    int k = (int)(intptr_t)argument;
    CPU_ZERO(&set);
    CPU_SET(k, &set);
    need(!sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
    thread(rounds_of_each);
    return NULL;
}

static void run_threads(unsigned long rounds) {
    pthread_t threads[THREADS];
    rounds_of_each = rounds;
    for (intptr_t k = 0; k < THREADS; k++)
        need(!pthread_create(&threads[k], NULL, on_own_cpu, (void *)k), "pthread_create");
    for (int k = 0; k < THREADS; k++)
        need(!pthread_join(threads[k], NULL), "pthread_join");
}

NOTHING_TO_PREPARE
