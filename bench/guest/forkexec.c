/* A child that executes another program (this one again, which then ends at once), and is waited for. */
#define OWN_MAIN
#include "bench.h"
#include <sys/wait.h>

int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "child"))
        return atoi(words[2]);
    unsigned long rounds = ((count > 1 ? strtoul(words[1], NULL, 10) : 100) * 300 + 99) / 100;
    uint64_t sum = 0;
    printf("begin forkexec\n");
    fflush(stdout);
    uint64_t start = now_ns();
    for (unsigned long k = 0; k < rounds; k++) {
        int status;
        char value[8];
        snprintf(value, sizeof value, "%lu", k & 127);
        pid_t child = fork();
        need(child >= 0, "fork");
        if (!child) {
            execl("/proc/self/exe", "forkexec", "child", value, (char *)NULL);
            _exit(255);
        }
        need(waitpid(child, &status, 0) == child, "waitpid");
        sum = sum * 31 + WEXITSTATUS(status);
    }
    printf("end forkexec %llu %016llx\n", (unsigned long long)(now_ns() - start), (unsigned long long)sum);
    return 0;
}
