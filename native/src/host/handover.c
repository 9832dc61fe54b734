/*
 * The socket over which clients hand descriptors to their agent, and are lent its heartbeat. Node.js drops descriptors
 * that come with data, and takes whatever comes as soon as it comes; here nothing is accepted or received before
 * somebody asks for it, so that descriptors which belong to no command stay with the kernel and go with their
 * connection. Each handover has its own lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/clock.h"
#include "base/handle.h"

/* Connections that have not said who they are. */
#define STRANGERS 64
#define STRANGER_NS UINT64_C(5000000000)
#define SECRET_BYTES 16

/* A client that is expected, with its connection once that has come. */
typedef struct tb_guest {
    struct tb_guest *next;
    uint8_t secret[SECRET_BYTES];
    uint32_t uid;
    int fd;
} tb_guest;

typedef struct tb_stranger {
    uint64_t since;
    int fd;
    uint32_t got;
    uint8_t secret[SECRET_BYTES];
} tb_stranger;

typedef struct tb_handover {
    pthread_mutex_t lock;
    int fd;
    tb_guest *guests;
    uint32_t stranger_count;
    tb_stranger strangers[STRANGERS]; /* in the order of their coming */
} tb_handover;

int32_t tb_peer_uid(int32_t fd, uint32_t *uid, tb_error *err) {
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "the user of a connection cannot be asked for");
    }
    *uid = peer.uid;
    return TB_OK;
}

static void destroy_handover(void *object) {
    tb_handover *handover = object;
    for (tb_guest *guest = handover->guests; guest != NULL;) {
        tb_guest *next = guest->next;
        if (guest->fd >= 0) {
            close(guest->fd);
        }
        free(guest);
        guest = next;
    }
    for (uint32_t i = 0; i < handover->stranger_count; i++) {
        close(handover->strangers[i].fd);
    }
    close(handover->fd);
    pthread_mutex_destroy(&handover->lock);
    free(handover);
}

int32_t tb_handover_open(const char *path, uint32_t mode, uint64_t *handle, tb_error *err) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return tb_fail(err, TB_ESYSTEM, -1, ENAMETOOLONG, "socket %s", path);
    }
    strcpy(address.sun_path, path);
    tb_handover *handover = calloc(1, sizeof *handover);
    if (handover == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a socket");
    }
    pthread_mutex_init(&handover->lock, NULL);
    handover->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (handover->fd < 0 || bind(handover->fd, (struct sockaddr *)&address, sizeof address) != 0
        || chmod(path, (mode_t)mode) != 0 || listen(handover->fd, SOMAXCONN) != 0) {
        int32_t rc = tb_fail(err, TB_ESYSTEM, -1, errno, "socket %s cannot be opened", path);
        destroy_handover(handover);
        return rc;
    }
    int32_t rc = tb_handle_add(TB_HANDLE_HANDOVER, handover, destroy_handover, handle, err);
    if (rc != TB_OK) {
        destroy_handover(handover);
    }
    return rc;
}

int32_t tb_handover_close(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_HANDOVER, handle, err);
}

/* ---- who is there: the lock is held -------------------------------------------------------------------- */

/* Nobody can learn from the time that this takes where the two differ. */
static bool is_secret(const uint8_t *a, const uint8_t *b) {
    uint8_t differ = 0;
    for (int i = 0; i < SECRET_BYTES; i++) {
        differ |= a[i] ^ b[i];
    }
    return differ == 0;
}

static tb_guest *guest_of(const tb_handover *handover, const uint8_t *secret) {
    tb_guest *found = NULL;
    for (tb_guest *guest = handover->guests; guest != NULL; guest = guest->next) {
        if (is_secret(guest->secret, secret)) {
            found = guest;
        }
    }
    return found;
}

static void drop_stranger(tb_handover *handover, uint32_t index, bool keeps_fd) {
    if (!keeps_fd) {
        close(handover->strangers[index].fd);
    }
    handover->stranger_count--;
    memmove(&handover->strangers[index], &handover->strangers[index + 1],
            (handover->stranger_count - index) * sizeof handover->strangers[0]);
}

/* Reads what is still missing of a stranger's secret. True once it is no stranger any more, or gone. */
static bool meet(tb_handover *handover, uint32_t index, uint64_t now) {
    tb_stranger *stranger = &handover->strangers[index];
    ssize_t got = recv(stranger->fd, stranger->secret + stranger->got, SECRET_BYTES - stranger->got, MSG_DONTWAIT);
    if (got > 0) {
        stranger->got += (uint32_t)got;
    }
    if (stranger->got == SECRET_BYTES) {
        tb_guest *guest = guest_of(handover, stranger->secret);
        uint32_t uid = 0;
        bool is_guest = guest != NULL && guest->fd < 0 && tb_peer_uid(stranger->fd, &uid, NULL) == TB_OK
                        && uid == guest->uid;
        if (is_guest) {
            guest->fd = stranger->fd;
        }
        drop_stranger(handover, index, is_guest);
        return true;
    }
    bool ended = got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
    if (ended || now - stranger->since > STRANGER_NS) {
        drop_stranger(handover, index, false);
        return true;
    }
    return false;
}

/*
 * Accepts who has come. Who has come has been sending before: guests are told at once. No more than can have waited
 * when it began, or who connects without end would keep the caller.
 */
static void welcome(tb_handover *handover) {
    uint64_t now = tb_now();
    for (uint32_t i = 0; i < handover->stranger_count;) {
        i += !meet(handover, i, now);
    }
    for (int accepted = 0; accepted <= SOMAXCONN; accepted++) {
        int fd = accept4(handover->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED) {
                continue;
            }
            return;
        }
        if (handover->stranger_count == STRANGERS) {
            drop_stranger(handover, 0, false);
        }
        handover->strangers[handover->stranger_count++] = (tb_stranger){.since = now, .fd = fd};
        meet(handover, handover->stranger_count - 1, now);
    }
}

/* ---- what is asked for --------------------------------------------------------------------------------- */

int32_t tb_handover_expect(uint64_t handle, const uint8_t secret[16], uint32_t uid, tb_error *err) {
    tb_guest *guest = calloc(1, sizeof *guest);
    if (guest == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a client");
    }
    tb_handover *handover = tb_handle_get(TB_HANDLE_HANDOVER, handle, err);
    if (handover == NULL) {
        free(guest);
        return TB_ECLOSED;
    }
    memcpy(guest->secret, secret, SECRET_BYTES);
    guest->uid = uid;
    guest->fd = -1;
    pthread_mutex_lock(&handover->lock);
    guest->next = handover->guests;
    handover->guests = guest;
    pthread_mutex_unlock(&handover->lock);
    tb_handle_put(handle);
    return TB_OK;
}

int32_t tb_handover_forget(uint64_t handle, const uint8_t secret[16], tb_error *err) {
    tb_handover *handover = tb_handle_get(TB_HANDLE_HANDOVER, handle, err);
    if (handover == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&handover->lock);
    tb_guest **link = &handover->guests;
    while (*link != NULL && !is_secret((*link)->secret, secret)) {
        link = &(*link)->next;
    }
    tb_guest *guest = *link;
    if (guest != NULL) {
        *link = guest->next;
    }
    pthread_mutex_unlock(&handover->lock);
    tb_handle_put(handle);
    if (guest != NULL && guest->fd >= 0) {
        close(guest->fd);
    }
    free(guest);
    return TB_OK;
}

typedef struct tb_received {
    uint64_t number;
    int fds[TB_HANDOVER_MAX];
    uint32_t count;
} tb_received;

static void close_all(const tb_received *received) {
    for (uint32_t i = 0; i < received->count; i++) {
        close(received->fds[i]);
    }
}

/* Every descriptor that came with a message is ours to close, however it is malformed. */
static void gather(struct msghdr *message, tb_received *received) {
    received->count = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        const unsigned char *data = CMSG_DATA(header);
        for (size_t i = 0; i < count && received->count < TB_HANDOVER_MAX; i++) {
            memcpy(&received->fds[received->count++], data + i * sizeof(int), sizeof(int));
        }
    }
}

/* Takes one hand-over. 0, EAGAIN if there is none, EPROTO for what is none, or the errno behind a failure. */
static int receive(int fd, tb_received *received) {
    struct iovec body = {.iov_base = &received->number, .iov_len = sizeof received->number};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(TB_HANDOVER_MAX * sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &body, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got;
    do {
        got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return errno;
    }
    gather(&message, received);
    if (got == sizeof received->number && (message.msg_flags & MSG_CTRUNC) == 0) {
        return 0;
    }
    close_all(received);
    /* The kernel cuts the list if this process has no descriptors left. */
    return got == sizeof received->number ? EMFILE : EPROTO;
}

/* Hand-overs whose command never came have smaller numbers: they are closed. */
static int receive_numbered(int fd, uint64_t number, tb_received *received) {
    for (;;) {
        int failed = receive(fd, received);
        if (failed != 0 || received->number == number) {
            return failed;
        }
        close_all(received);
        if (received->number > number) {
            return EPROTO;
        }
    }
}

static int32_t deliver(const tb_received *received, uint32_t capacity, int32_t *fds, uint32_t *count, tb_error *err) {
    if (received->count > capacity) {
        close_all(received);
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "%u descriptors are too many for one hand-over", received->count);
    }
    memcpy(fds, received->fds, received->count * sizeof(int));
    *count = received->count;
    return TB_OK;
}

int32_t tb_handover_take(uint64_t handle, const uint8_t secret[16], uint64_t number, int32_t *fds, uint32_t capacity,
                         uint32_t *count, tb_error *err) {
    tb_handover *handover = tb_handle_get(TB_HANDLE_HANDOVER, handle, err);
    if (handover == NULL) {
        return TB_ECLOSED;
    }
    *count = 0;
    tb_received received;
    pthread_mutex_lock(&handover->lock);
    welcome(handover);
    const tb_guest *guest = guest_of(handover, secret);
    int failed = guest == NULL || guest->fd < 0 ? EAGAIN : receive_numbered(guest->fd, number, &received);
    pthread_mutex_unlock(&handover->lock);
    tb_handle_put(handle);
    if (failed == 0) {
        return deliver(&received, capacity, fds, count, err);
    }
    if (failed == EAGAIN) {
        return tb_fail(err, TB_ETENSOR_MISSING, -1, 0, "hand-over %llu of descriptors has not come",
                       (unsigned long long)number);
    }
    if (failed == EPROTO) {
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "expected hand-over %llu of descriptors, but another one came",
                       (unsigned long long)number);
    }
    return tb_fail(err, TB_ESYSTEM, -1, failed, "hand-over %llu of descriptors cannot be received",
                   (unsigned long long)number);
}

static int send_descriptor(int fd, int descriptor) {
    char zero = 0;
    struct iovec body = {.iov_base = &zero, .iov_len = 1};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct msghdr message = {
        .msg_iov = &body, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
    ssize_t sent;
    do {
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent == 1 ? 0 : errno;
}

int32_t tb_handover_lend(uint64_t handle, const uint8_t secret[16], const char *heartbeat, tb_error *err) {
    tb_handover *handover = tb_handle_get(TB_HANDLE_HANDOVER, handle, err);
    if (handover == NULL) {
        return TB_ECLOSED;
    }
    int32_t rc = TB_OK;
    int heart = shm_open(heartbeat, O_RDONLY | O_CLOEXEC, 0);
    if (heart < 0) {
        rc = tb_fail(err, TB_ESYSTEM, -1, errno, "heartbeat %s cannot be opened", heartbeat);
        goto end;
    }
    pthread_mutex_lock(&handover->lock);
    welcome(handover);
    const tb_guest *guest = guest_of(handover, secret);
    int failed = guest == NULL || guest->fd < 0 ? ENOTCONN : send_descriptor(guest->fd, heart);
    pthread_mutex_unlock(&handover->lock);
    close(heart);
    if (failed != 0) {
        rc = tb_fail(err, TB_EPROTOCOL, -1, failed, "the client's socket for descriptors");
    }
end:
    tb_handle_put(handle);
    return rc;
}
