/*
 * A link carries bytes, in order, both ways, between two sessions. All of the engine works on links; a back
 * end gives its own and says when one can be read or written (edge-triggered: after a call that moved less
 * than it was asked to).
 */
#ifndef TB_LINK_H
#define TB_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef struct tb_link tb_link;

typedef struct tb_link_name {
    uint8_t here[24], there[24];
} tb_link_name;

typedef struct tb_link_kind {
    /*
     * Bytes moved, or a negative errno: -EAGAIN if it would block. 0 from readv and -EPIPE from writev: the other end
     * has finished or closed the link. A link that broke otherwise, or whose other end is a process that was killed,
     * gives another errno; TCP does that by itself (a reset after an end is EPIPE, one without is ECONNRESET).
     */
    ssize_t (*readv)(tb_link *link, const struct iovec *iov, int count);
    ssize_t (*writev)(tb_link *link, const struct iovec *iov, int count);
    /* No more bytes will be written. */
    void (*finish)(tb_link *link);
    void (*close)(tb_link *link);
    /* What its two ends are called, here and at the other end the same. False if that is not known. */
    bool (*name)(const tb_link *link, tb_link_name *name);
} tb_link_kind;

struct tb_link {
    const tb_link_kind *kind; /* NULL: no link */
    int fd;              /* tcp, and the epoll that watches it, or -1 */
    int epoll_fd;
    struct tb_pipe *pipe; /* memory, and which end of it */
    int end;
};

#endif
