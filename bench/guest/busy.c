/* As many busy programs as are asked for, each a process on a CPU of its own, which all start together.

       busy PROCESSES PERCENT

   Prints "end busyN NANOSECONDS CHECKSUM" when the last is done.
*/
#define OWN_MAIN
#include "bench.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

static uint64_t work_of_one(unsigned long steps) {
    static uint32_t table[4096];
    uint64_t a = 1, sum = 0;
    for (unsigned long k = 0; k < steps; k++) {
        a = next_random(a);
        table[a >> 52] += (uint32_t)a;
        sum ^= table[(a >> 40) & 4095] + k;
    }
    return sum;
}

int main(int count, char **words) {
    int processes = count > 1 ? atoi(words[1]) : 1;
    unsigned long percent = count > 2 ? strtoul(words[2], NULL, 10) : 100;
    uint64_t *sums = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(sums != MAP_FAILED, "mmap");
    printf("begin busy%d\n", processes);
    fflush(stdout);
    uint64_t start = now_ns();
    for (int k = 0; k < processes; k++) {
        pid_t child = fork();
        need(child >= 0, "fork");
        if (!child) {
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(k, &set);
            need(!sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
            sums[k] = work_of_one(percent * 400000);
            _exit(0);
        }
    }
    for (int k = 0; k < processes; k++) {
        int status;
        need(wait(&status) > 0 && status == 0, "a busy process");
        need(sums[k] == sums[0], "the same checksum of each");
    }
    uint64_t taken = now_ns() - start;
    printf("end busy%d %llu %016llx\n", processes, (unsigned long long)taken, (unsigned long long)sums[0]);
    return 0;
}
