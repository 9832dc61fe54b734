/* What does not hold ends the process, and says what and where. */
#include "base/invariant.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

int main(void) {
    int ends[2];
    char text[512] = {0};
    int status;
    TB_INVARIANT(1 + 1 == 2);
    CHECK(pipe(ends) == 0, "no pipe");
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        TB_INVARIANT(1 + 1 == 3);
        _exit(0);
    }
    close(ends[1]);
    CHECK(waitpid(child, &status, 0) == child, "no child");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "it ended with status %x", (unsigned)status);
    CHECK(read(ends[0], text, sizeof text - 1) > 0, "it said nothing");
    CHECK(strstr(text, "invariant_test.c:") != NULL && strstr(text, "\"1 + 1 == 3\" does not hold") != NULL, "%s", text);
    return 0;
}
