/* Runs another program and tells how long it took and what the checksum of its output is.

       timed NAME PROGRAM ARGUMENT ...
*/
#define OWN_MAIN
#include "bench.h"
#include <sys/wait.h>

int main(int count, char **words) {
    static char output[64 << 10];
    uint64_t size = 0, sum = NO_BYTES;
    ssize_t got;
    int out[2], status;
    need(count > 2 && !pipe(out), "pipe");
    printf("begin %s\n", words[1]);
    fflush(stdout);
    uint64_t start = now_ns();
    pid_t child = fork();
    need(child >= 0, "fork");
    if (!child) {
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        execv(words[2], words + 2);
        perror(words[2]);
        _exit(127);
    }
    close(out[1]);
    while ((got = read(out[0], output, sizeof output)) > 0) {
        sum = continued(sum, output, got);
        size += got;
    }
    need(waitpid(child, &status, 0) == child, "waitpid");
    uint64_t taken = now_ns() - start;
    need(WIFEXITED(status) && !WEXITSTATUS(status) && size > 0, words[2]);
    printf("end %s %llu %016llx\n", words[1], (unsigned long long)taken, (unsigned long long)sum);
    return 0;
}
