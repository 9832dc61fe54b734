/* Events between processes, and waits for them that a port is told of, on the double of libcuda. No GPU takes part. */
#include <poll.h>
#include <unistd.h>

#include "cuda_kit.h"

static void next_token(uint64_t port, int fd, uint64_t expected) {
    tb_error err;
    uint64_t token = 0;
    uint32_t found = 0;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    uint8_t read_away[64];
    CHECK(poll(&wait, 1, 30000) == 1, "no token within 30 s");
    CHECK(read(fd, read_away, sizeof read_away) > 0, "an empty pipe");
    CHECK(tb_port_next(port, &token, &found, &err) == TB_OK, "%s", err.message);
    CHECK(found == 1 && token == expected, "token %llu, found %u", (unsigned long long)token, found);
}

static uint32_t is_over(uint64_t watch) {
    tb_error err;
    uint32_t over = 7;
    CHECK(tb_cuda_event_watched(watch, &over, &err) == TB_OK, "%s", err.message);
    return over;
}

static uint64_t start(uint64_t port, uint64_t token, uint64_t event) {
    tb_error err;
    uint64_t watch;
    CHECK(tb_cuda_event_watch(port, token, double_uuid, event, &watch, &err) == TB_OK, "%s", err.message);
    return watch;
}

int main(void) {
    tb_error err;
    uint64_t port, event, watch;
    int32_t fd;
    uint8_t handle[64];
    setenv("CUDA_DOUBLE_DELAY_US", "200000", 1);
    use_cuda_double();
    CHECK(tb_port_open(&port, &fd, &err) == TB_OK, "%s", err.message);
    CHECK(tb_cuda_event_create(double_uuid, &event, &err) == TB_OK, "%s", err.message);
    CHECK(tb_cuda_event_export(double_uuid, event, handle, &err) == TB_OK, "%s", err.message);

    /* An event that nobody has recorded counts as happened. */
    watch = start(port, 1, event);
    next_token(port, fd, 1);
    CHECK(is_over(watch) == 1, "an event without a record is not over");
    CHECK(tb_cuda_event_unwatch(watch, &err) == TB_OK, "%s", err.message);

    CHECK(tb_cuda_event_record(double_uuid, event, &err) == TB_OK, "%s", err.message);
    watch = start(port, 2, event);
    CHECK(is_over(watch) == 0, "an event is over before its stream came to it");
    CHECK(tb_port_close(port, &err) == TB_EBUSY, "a port closes under a watch");
    next_token(port, fd, 2);
    CHECK(is_over(watch) == 1, "a token came before the event");
    CHECK(tb_cuda_event_unwatch(watch, &err) == TB_OK, "%s", err.message);
    CHECK(tb_cuda_event_unwatch(watch, &err) == TB_ECLOSED, "a watch ends twice");

    /* One that is given up early, and the event with it. */
    CHECK(tb_cuda_event_record(double_uuid, event, &err) == TB_OK, "%s", err.message);
    watch = start(port, 3, event);
    CHECK(tb_cuda_event_unwatch(watch, &err) == TB_OK, "%s", err.message);
    CHECK(tb_cuda_event_close(double_uuid, event, &err) == TB_OK, "%s", err.message);

    /* Neither a process's own handle nor one of no event can be opened, and neither leaves anything behind. */
    CHECK(tb_cuda_event_open(double_uuid, handle, &event, &err) == TB_ECUDA, "an own handle was opened");
    memset(handle, 0, sizeof handle);
    CHECK(tb_cuda_event_open(double_uuid, handle, &event, &err) == TB_ECUDA, "nothing was opened");
    CHECK(tb_port_close(port, &err) == TB_OK, "%s", err.message);
    close(fd);
    return 0;
}
