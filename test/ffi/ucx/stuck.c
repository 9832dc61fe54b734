/*
 * Closes a session of UCX whose thread does not come back from the library. Built twice: as a library in front of UCX, which then
 * never returns from its progress, and as the program.
 */
#include <stdio.h>
#include <unistd.h>

#ifdef LIBRARY
#include <dlfcn.h>

__attribute__((visibility("default"))) _Atomic int is_stuck;

unsigned ucp_worker_progress(void *worker) {
    static unsigned (*progress)(void *worker);
    while (is_stuck) {
        pause();
    }
    if (progress == NULL) {
        progress = (unsigned (*)(void *))dlsym(RTLD_NEXT, "ucp_worker_progress");
    }
    return progress(worker);
}
#else
#include <dlfcn.h>

#include "tensorbus.h"

int main(int count, char **arguments) {
    tb_session_options options = {.struct_bytes = sizeof options,
                                  .kind = TB_BACKEND_TCP,
                                  .world = 1,
                                  .generation = 1,
                                  .connections = 1,
                                  .io_threads = 1,
                                  .peer_timeout_ms = 5000,
                                  .quiesce_ms = 1000,
                                  .carriers = TB_CARRY_UCX,
                                  .listen_host = "127.0.0.1"};
    tb_error error = {0};
    uint64_t session;
    int32_t event_fd;
    int32_t code = count < 2 ? TB_ESYSTEM : tb_session_open(&options, &session, &event_fd, &error);
    code = code == TB_OK ? tb_session_use_ucx(session, arguments[1], NULL, &error) : code;
    _Atomic int *is_stuck = dlsym(dlopen(arguments[1], RTLD_NOW), "is_stuck");
    if (code != TB_OK || is_stuck == NULL) {
        printf("failed: %s\n", error.message);
        return 1;
    }
    *is_stuck = 1;
    code = tb_session_close(session, &error);
    printf("closed %d: %s\n", code, error.message);
    fflush(stdout);
    _exit(0);
}
#endif
