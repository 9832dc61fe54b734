/*
 * Listening: connections are taken, and wait in a bounded number for their handshake. In the first thread, which takes
 * the session's lock to count them.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/error.h"
#include "base/handle.h"
#include "wire/tcp.h"

/* Without a free descriptor, connections wait this long. */
#define PAUSE_NS 100000000ull
enum { ACCEPTS_A_TURN = 64 };
enum { BACKLOG = 1024, FEWEST_HALF_OPEN = 64, MOST_HALF_OPEN = 4096 };

static int32_t port_of(const struct sockaddr_storage *at) {
    return at->ss_family == AF_INET6 ? ntohs(((const struct sockaddr_in6 *)at)->sin6_port)
                                     : ntohs(((const struct sockaddr_in *)at)->sin_port);
}

static int32_t listen_at(tb_net *net, const struct tb_address *address, tb_error *err) {
    const tb_session_options *options = &net->options;
    int yes = 1;
    struct sockaddr_storage bound;
    socklen_t length = sizeof bound;
    int fd = socket(address->at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "a socket");
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = net};
    /* Buffers are inherited by what is accepted, and only then are they there for the first bytes. */
    int error = tb_tcp_configure(net, fd);
    if (error == 0
        && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0
            || bind(fd, (const struct sockaddr *)&address->at, address->length) != 0
            || listen(fd, BACKLOG) != 0 || getsockname(fd, (struct sockaddr *)&bound, &length) != 0)) {
        error = errno;
    }
    /* Whoever knows the port connects from here on, and a thread accepts. */
    pthread_mutex_lock(&net->lock);
    if (error == 0 && epoll_ctl(net->loops[0]->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        error = errno;
    }
    if (error == 0) {
        net->listen_fd = fd;
        net->port = (uint32_t)port_of(&bound);
        net->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    pthread_mutex_unlock(&net->lock);
    if (error != 0) {
        close(fd);
        return tb_fail(err, error == EADDRINUSE ? TB_EADDRESS_IN_USE : TB_ESYSTEM, -1, error,
                       "listening on %s port %u", options->listen_host, options->listen_port);
    }
    return TB_OK;
}

static int32_t tcp_open(tb_net *net, tb_error *err) {
    tb_session_options *options = &net->options;
    struct tb_address address;
    options->listen_host[sizeof options->listen_host - 1] = '\0';
    if (options->connections < 1 || options->connections > TB_CONNECTIONS) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "%u connections for each peer were asked for; there may be 1 to %d",
                       options->connections, TB_CONNECTIONS);
    }
    const char *host = options->listen_host[0] == '\0' ? "127.0.0.1" : options->listen_host;
    int32_t code = tb_tcp_parse(host, options->listen_port, &address, err);
    return code == TB_OK ? listen_at(net, &address, err) : code;
}

static void tcp_close(tb_net *net) {
    pthread_mutex_lock(&net->lock);
    epoll_ctl(net->loops[0]->epoll_fd, EPOLL_CTL_DEL, net->listen_fd, NULL);
    close(net->listen_fd);
    net->listen_fd = -1;
    if (net->spare_fd >= 0) {
        close(net->spare_fd);
        net->spare_fd = -1;
    }
    pthread_mutex_unlock(&net->lock);
}

/* Sockets end with their connections, and the listener with close. */
static void tcp_free(tb_net *net) {
    (void)net;
}

static uint32_t most_half_open(const tb_net *net) {
    uint64_t peers = (uint64_t)net->options.world * net->options.connections;
    return peers > MOST_HALF_OPEN     ? MOST_HALF_OPEN
           : peers < FEWEST_HALF_OPEN ? FEWEST_HALF_OPEN
                                      : (uint32_t)peers;
}

/* By the address that they come from, in a table that may mix a few up. */
enum { SOURCES = 1024 };

static uint32_t bucket_of(const uint8_t source[24]) {
    uint32_t hash = 2166136261u;
    for (int i = 0; i < 24; i++) {
        hash = (hash ^ source[i]) * 16777619u;
    }
    return hash % SOURCES;
}

static void source_of(const struct sockaddr_storage *at, uint8_t source[24]) {
    memset(source, 0, 24);
    if (at->ss_family == AF_INET6) {
        /* Whoever has one address of IPv6 has all 2^64 of its network. */
        memcpy(source, &((const struct sockaddr_in6 *)at)->sin6_addr, 8);
        if (IN6_IS_ADDR_V4MAPPED(&((const struct sockaddr_in6 *)at)->sin6_addr)) {
            memcpy(source, &((const struct sockaddr_in6 *)at)->sin6_addr, 16);
        }
    } else {
        memset(source + 10, 0xff, 2);
        memcpy(source + 12, &((const struct sockaddr_in *)at)->sin_addr, 4);
    }
}

static bool is_half_open(const tb_conn *conn) {
    return conn->handshake != NULL && conn->handshake->counted;
}

/* Between two of the busiest source, one that has said nothing goes first, then the older one. */
static bool goes_before(const tb_handshake *one, const tb_handshake *other) {
    return one->got_hello != other->got_hello ? !one->got_hello : one->number < other->number;
}

/*
 * Whoever comes is let in, and one of those that have not shown yet who they are has to go for it: of the source that
 * has the most of them. A peer's handshake takes one exchange, so that a stranger would have to open all there may be
 * within that time, from the peer's own address.
 */
static void make_room(tb_net *net) {
    uint16_t counts[SOURCES] = {0};
    tb_conn *victim = NULL;
    for (uint32_t i = 0; i < net->loop_count; i++) {
        for (tb_conn *conn = net->loops[i]->conns; conn != NULL; conn = conn->next) {
            if (is_half_open(conn)) {
                counts[bucket_of(conn->handshake->source)]++;
            }
        }
    }
    for (uint32_t i = 0; i < net->loop_count; i++) {
        for (tb_conn *conn = net->loops[i]->conns; conn != NULL; conn = conn->next) {
            if (!is_half_open(conn)) {
                continue;
            }
            int more = victim == NULL ? 1
                                      : (int)counts[bucket_of(conn->handshake->source)]
                                            - (int)counts[bucket_of(victim->handshake->source)];
            if (more > 0 || (more == 0 && goes_before(conn->handshake, victim->handshake))) {
                victim = conn;
            }
        }
    }
    if (victim != NULL) {
        victim->handshake->counted = false;
        net->half_open--;
        tb_conn_doom(victim);
    }
}

static void take_connection(tb_net *net, int fd, const struct sockaddr_storage *from) {
    tb_link link = tb_tcp_link(fd);
    tb_handshake *shake = NULL;
    tb_conn *conn = NULL;
    if (tb_tcp_configure(net, fd) == 0) {
        shake = tb_handshake_create(net, true, -1, 0, 1);
        conn = shake == NULL ? NULL : tb_conn_create(net, &link, TB_CONN_HANDSHAKE);
    }
    if (conn == NULL) {
        free(shake);
        close(fd);
        return;
    }
    if (net->half_open >= most_half_open(net)) {
        make_room(net);
    }
    shake->number = ++net->connection_count;
    shake->since = tb_now();
    shake->counted = true;
    source_of(from, shake->source);
    conn->handshake = shake;
    conn->deadline = shake->since + (uint64_t)HELLO_SECONDS * 1000000000;
    net->half_open++;
    tb_net_timer(net, conn->deadline);
    if (tb_tcp_watch(conn) != 0) {
        tb_conn_doom(conn);
    }
}

/* Nothing is heard of the listener if events is 0. */
static void watch_listener(tb_net *net, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = net};
    epoll_ctl(net->loops[0]->epoll_fd, EPOLL_CTL_MOD, net->listen_fd, &event);
}

/*
 * Without a free descriptor the connection would wait, and the listener never sleep: it is taken and closed
 * instead. If somebody was faster and took the spare descriptor, it waits after all, and the listener with
 * it.
 */
static void turn_away(tb_net *net, int os_errno) {
    tb_error error;
    tb_fail(&error, TB_ESYSTEM, -1, os_errno, "a connection could not be accepted");
    tb_net_fault(net, &error);
    if (net->spare_fd >= 0) {
        close(net->spare_fd);
        net->spare_fd = -1;
        int fd = accept4(net->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            close(fd);
        }
    }
    net->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (net->spare_fd < 0) {
        watch_listener(net, 0);
        net->accept_at = tb_now() + PAUSE_NS;
        tb_net_timer(net, net->accept_at);
    }
}

/* accept4 of a listener that does not block may be called with the lock: so nobody closes it meanwhile. */
static void tcp_accept(tb_net *net) {
    pthread_mutex_lock(&net->lock);
    if (net->accept_at != 0 && net->listen_fd >= 0) {
        net->accept_at = 0;
        watch_listener(net, EPOLLIN);
    }
    /* More than a few wait for another turn, so that those that have to go are gone by then. */
    for (int taken = 0; net->listen_fd >= 0 && taken < ACCEPTS_A_TURN; taken++) {
        struct sockaddr_storage from = {0};
        socklen_t length = sizeof from;
        int fd = accept4(net->listen_fd, (struct sockaddr *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            take_connection(net, fd, &from);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            turn_away(net, errno);
            break;
        } else if (errno == EAGAIN) {
            break;
        }
        /* Anything else is an error of the connection that was to be taken: on to the next one. */
    }
    pthread_mutex_unlock(&net->lock);
}

int32_t tb_session_port(uint64_t handle, uint32_t *port, tb_error *err) {
    tb_net *net = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (net == NULL) {
        return TB_ECLOSED;
    }
    int32_t code = TB_OK;
    if (net->options.kind == TB_BACKEND_TCP) {
        *port = net->port;
    } else {
        code = tb_fail(err, TB_EUNSUPPORTED, -1, 0, "this transport has no ports");
    }
    tb_handle_put(handle);
    return code;
}

const tb_backend tb_backend_tcp = {
    .pings = true,
    .open = tcp_open,
    .close = tcp_close,
    .free = tcp_free,
    .connect = tb_tcp_connect,
    .accept = tcp_accept,
    .establish = tb_tcp_establish,
    .ended = tb_tcp_ended,
};
