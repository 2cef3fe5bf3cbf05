/* A byte to and fro between two processes through two pipes: each step switches the process. */
#include "bench.h"
#include <sys/wait.h>

static int there[2], back[2];
static pid_t child;

void prepare(unsigned long percent) {
    (void)percent;
    need(!pipe(there) && !pipe(back), "pipe");
    child = fork();
    need(child >= 0, "fork");
    if (!child) {
        unsigned char byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte = byte * 5 + 1;
            need(write(back[1], &byte, 1) == 1, "write");
        }
        _exit(0);
    }
}

uint64_t work(unsigned long percent) {
    unsigned char byte = 1;
    uint64_t sum = 0;
    for (unsigned long k = 0; k < 150 * percent; k++) {
        need(write(there[1], &byte, 1) == 1, "write");
        need(read(back[0], &byte, 1) == 1, "read");
        sum += byte;
    }
    close(there[1]);
    waitpid(child, NULL, 0);
    return sum;
}
