/*
 * Closes a session of UCX as the process ends, when the thread of its workers already rests: it must not be waited for.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "carriers/registry.h"
#include "tensorbus.h"

static uint64_t session;
static char memory[4096];

static void close_late(void) {
    tb_error error = {0};
    int32_t code = tb_session_close(session, &error);
    printf("closed %d: %s\n", code, error.message);
    fflush(stdout);
}

int main(void) {
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
    tb_error error;
    int32_t event_fd;
    atexit(close_late); /* called last: what is registered later is called earlier */
    int32_t code = tb_session_open(&options, &session, &event_fd, &error);
    code = code == TB_OK ? tb_session_use_ucx(session, NULL, NULL, &error) : code;
    code = code == TB_OK ? tb_session_register(session, (uint64_t)(uintptr_t)memory, sizeof memory, &error) : code;
    if (code != TB_OK) {
        printf("failed: %s\n", error.message);
        return 1;
    }
    if (tb_session_use_ucx(session, NULL, NULL, &error) != TB_EUNSUPPORTED) {
        printf("taken twice\n");
    }
    return 0;
}
