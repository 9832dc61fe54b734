/*
 * Memory: what is mapped, sealed, reserved and refused; offsets beyond 4 GiB in pages that are never touched.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/available.h"
#include "check.h"
#include "tensorbus.h"

static void host(void) {
    uint64_t at;
    tb_error err;
    CHECK(tb_host_allocate(10000, &at, &err) == TB_OK, "%s", err.message);
    CHECK(at % 4096 == 0, "aligned");
    uint8_t *bytes = (uint8_t *)(uintptr_t)at;
    CHECK(bytes[0] == 0 && bytes[9999] == 0, "zero");
    bytes[9999] = 1;
    CHECK(tb_host_free(at, 10000, &err) == TB_OK, "%s", err.message);
    CHECK(tb_host_allocate(0, &at, &err) == TB_EREGION, "nothing");
    CHECK(tb_host_allocate(UINT64_MAX, &at, &err) == TB_EREGION, "more than there can be");
    CHECK(tb_host_allocate(UINT64_C(1) << 62, &at, &err) == TB_ENO_MEMORY && err.os_errno == ENOMEM, "%d",
          err.code);
    CHECK(tb_host_free(1, 4096, &err) == TB_ESYSTEM && err.os_errno == EINVAL, "not an allocation");
}

static void shared(void) {
    int32_t fd;
    uint64_t at;
    uint64_t other;
    tb_error err;
    CHECK(tb_shared_create("test", 8192, &fd, &at, &err) == TB_OK, "%s", err.message);
    CHECK(fcntl(fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "seals");
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0, "not handed to children");
    CHECK(ftruncate(fd, 4096) != 0 && ftruncate(fd, 16384) != 0, "its size stands");
    CHECK(tb_shared_map(fd, 8192, &other, &err) == TB_OK, "%s", err.message);
    ((uint8_t *)(uintptr_t)at)[8191] = 42;
    CHECK(((uint8_t *)(uintptr_t)other)[8191] == 42, "one memory");
    CHECK(tb_shared_map(fd, 8193, &other, &err) == TB_ESEAL, "larger than it is");
    CHECK(tb_shared_unmap(other, 8192, &err) == TB_OK, "%s", err.message);
    CHECK(tb_shared_unmap(at, 8192, &err) == TB_OK, "%s", err.message);
    close(fd);
}

static void refused(void) {
    int32_t fd = -1;
    uint64_t at;
    tb_error err;
    CHECK(tb_shared_create("test", 0, &fd, &at, &err) == TB_EREGION, "nothing");
    CHECK(tb_shared_create("test", INT64_MAX, &fd, &at, &err) == TB_ENO_SPACE, "%d", err.code);
    CHECK(tb_shared_create("test", tb_memory_available() * 2, &fd, &at, &err) == TB_ENO_SPACE, "%d",
          err.code);
    CHECK(fd == -1, "no descriptor");
    char name[300];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    CHECK(tb_shared_create(name, 4096, &fd, &at, &err) == TB_ESYSTEM && err.os_errno == EINVAL,
          "a name too long");
    CHECK(tb_shared_map(-1, 4096, &at, &err) == TB_ESYSTEM && err.os_errno == EBADF, "no descriptor");
    int ends[2];
    CHECK(pipe(ends) == 0, "pipe");
    CHECK(tb_shared_map(ends[0], 1, &at, &err) == TB_ESEAL, "a pipe");
    close(ends[0]);
    close(ends[1]);
    int unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(unsealed >= 0 && ftruncate(unsealed, 4096) == 0, "memfd");
    CHECK(tb_shared_map(unsealed, 4096, &at, &err) == TB_ESEAL, "it may still shrink");
    CHECK(fcntl(unsealed, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "seal");
    CHECK(tb_shared_map(unsealed, 4096, &at, &err) == TB_OK, "%s", err.message);
    CHECK(tb_shared_unmap(at, 4096, &err) == TB_OK, "%s", err.message);
    close(unsealed);
}

/* A column of a matrix of 6 GiB: rows 3 GiB apart, of which three pages are touched. */
static void far_apart(void) {
    const uint64_t gib = UINT64_C(1) << 30;
    uint64_t at;
    tb_error err;
    CHECK(tb_host_allocate(6 * gib + 4096, &at, &err) == TB_OK, "%s", err.message);
    uint8_t *bytes = (uint8_t *)(uintptr_t)at;
    int64_t words[] = {4, 1, 3, (int64_t)(3 * gib), 8};
    int64_t packed[] = {0, 0, 24};
    uint64_t in[3] = {1, 2, 3};
    uint64_t out[3] = {0};
    tb_end far = {at, 6 * gib + 4096, words, 5, 6};
    tb_end near = {(uintptr_t)in, sizeof in, packed, 3, 6};
    CHECK(tb_move(&far, &near, &err) == TB_OK, "%s", err.message);
    uint64_t last;
    memcpy(&last, bytes + 6 * gib + 4, sizeof last);
    CHECK(last == 3, "%llu", (unsigned long long)last);
    near.base = (uintptr_t)out;
    CHECK(tb_move(&near, &far, &err) == TB_OK, "%s", err.message);
    CHECK(memcmp(in, out, sizeof in) == 0, "there and back");
    far.bytes = 6 * gib + 11;
    CHECK(tb_move(&far, &near, &err) == TB_EREGION, "one byte beyond");
    CHECK(tb_host_free(at, 6 * gib + 4096, &err) == TB_OK, "%s", err.message);
}

int main(void) {
    host();
    shared();
    refused();
    far_apart();
    return 0;
}
