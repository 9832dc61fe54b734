/* Links over TCP, and addresses as text. Used by the connection's thread; no lock is needed. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/error.h"
#include "wire/tcp.h"

int32_t tb_tcp_parse(const char *host, uint32_t port, struct tb_address *address, tb_error *err) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address->at;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address->at;
    memset(address, 0, sizeof *address);
    if (port > 65535) {
        return tb_fail(err, TB_ECONNECT, -1, 0, "%u is not a port", port);
    }
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        address->length = sizeof *v4;
        return TB_OK;
    }
    if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        address->length = sizeof *v6;
        return TB_OK;
    }
    return tb_fail(err, TB_ECONNECT, -1, 0, "\"%.64s\" is not a numeric IPv4 or IPv6 address", host);
}

static int set(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value) == 0 ? 0 : errno;
}

int tb_tcp_configure(const tb_net *net, int fd) {
    uint32_t timeout = net->options.peer_timeout_ms;
    int idle = timeout / 2000 > 1 ? (int)(timeout / 2000) : 1;
    int error = set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    error = error ? error : set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)timeout);
    error = error ? error : set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    error = error ? error : set(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle);
    /* Buffer sizes are the kernel's to choose: it makes them larger than SO_SNDBUF may ask for. */
    return error ? error : set(fd, IPPROTO_TCP, TCP_KEEPINTVL, idle);
}

int tb_tcp_watch(tb_conn *conn) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = conn};
    if (epoll_ctl(conn->loop->epoll_fd, EPOLL_CTL_ADD, conn->link.fd, &event) != 0) {
        return errno;
    }
    conn->link.epoll_fd = conn->loop->epoll_fd;
    return 0;
}

/* ---- the link ------------------------------------------------------------------------------------------ */

static ssize_t tcp_readv(tb_link *link, const struct iovec *iov, int count) {
    ssize_t got = readv(link->fd, iov, count);
    return got >= 0 ? got : -errno;
}

static ssize_t tcp_writev(tb_link *link, const struct iovec *iov, int count) {
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
    ssize_t taken = sendmsg(link->fd, &message, MSG_NOSIGNAL);
    return taken >= 0 ? taken : -errno;
}

static void tcp_finish(tb_link *link) {
    shutdown(link->fd, SHUT_WR); /* a socket that is broken already is finished as well */
}

/*
 * A process that was forked has the socket as well: close alone would neither end the connection nor its
 * events, which name memory that is freed.
 */
static void tcp_close(tb_link *link) {
    if (link->epoll_fd >= 0) {
        epoll_ctl(link->epoll_fd, EPOLL_CTL_DEL, link->fd, NULL);
    }
    shutdown(link->fd, SHUT_RDWR);
    close(link->fd);
    link->fd = -1;
}

/* Address and port; an IPv4 address is written as IPv6 writes it, which a socket of both may do or not. */
static bool write_name(const struct sockaddr_storage *at, uint8_t name[24]) {
    memset(name, 0, 24);
    if (at->ss_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)at;
        memcpy(name, &six->sin6_addr, 16);
        memcpy(name + 16, &six->sin6_port, 2);
        return true;
    }
    const struct sockaddr_in *four = (const struct sockaddr_in *)at;
    memset(name + 10, 0xff, 2);
    memcpy(name + 12, &four->sin_addr, 4);
    memcpy(name + 16, &four->sin_port, 2);
    return at->ss_family == AF_INET;
}

static bool tcp_name(const tb_link *link, tb_link_name *name) {
    struct sockaddr_storage here, there;
    socklen_t here_length = sizeof here, there_length = sizeof there;
    return getsockname(link->fd, (struct sockaddr *)&here, &here_length) == 0
           && getpeername(link->fd, (struct sockaddr *)&there, &there_length) == 0
           && write_name(&here, name->here) && write_name(&there, name->there);
}

static const tb_link_kind tcp_kind = {tcp_readv, tcp_writev, tcp_finish, tcp_close, tcp_name};

tb_link tb_tcp_link(int fd) {
    return (tb_link){.kind = &tcp_kind, .fd = fd, .epoll_fd = -1};
}
