/*
 * Closes a session of UCX whose thread does not come back from the library. Built twice: as a library in front of UCX, which then
 * never returns from its progress, and as the program.
 */
#include <stdio.h>
#include <unistd.h>

#ifdef LIBRARY
#include <dlfcn.h>

__attribute__((visibility("default"))) _Atomic int is_stuck, is_inside;

unsigned ucp_worker_progress(void *worker) {
    static unsigned (*progress)(void *worker);
    while (is_stuck) {
        is_inside = 1;
        pause();
    }
    if (progress == NULL) {
        progress = (unsigned (*)(void *))dlsym(RTLD_NEXT, "ucp_worker_progress");
    }
    return progress(worker);
}
#else
#include <dlfcn.h>

#include "carriers/registry.h"
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
    void *library = code == TB_OK ? dlopen(arguments[1], RTLD_NOW) : NULL;
    _Atomic int *is_stuck = library == NULL ? NULL : dlsym(library, "is_stuck");
    _Atomic int *is_inside = library == NULL ? NULL : dlsym(library, "is_inside");
    if (is_stuck == NULL || is_inside == NULL) {
        printf("failed: %s\n", code == TB_OK ? dlerror() : error.message);
        return 1;
    }
    *is_stuck = 1;
    code = tb_session_use_ucx(session, arguments[1], NULL, &error);
    if (code != TB_OK) {
        printf("failed: %s\n", error.message);
        return 1;
    }
    /* A thread that is not in the library yet would see that it is to end, and do so. */
    while (*is_inside == 0) {
        usleep(1000);
    }
    code = tb_session_close(session, &error);
    printf("closed %d: %s\n", code, error.message);
    fflush(stdout);
    _exit(0);
}
#endif
