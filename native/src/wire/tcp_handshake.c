/*
 * The handshake: a hello both ways, then a proof and a verdict both ways, first of the side that connected. Nothing
 * else is read before both sides have accepted, and never more than the next expected bytes. In the connection's
 * thread, which takes the session's lock to ask the caller.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "base/handle.h"
#include "wire/tcp.h"
#include "wire/peer.h"

tb_handshake *tb_handshake_create(tb_net *net, bool accepted, int32_t peer, uint32_t index,
                                  uint32_t count) {
    tb_handshake *shake = calloc(1, sizeof *shake);
    if (shake == NULL) {
        return NULL;
    }
    shake->accepted = accepted;
    tb_hello *hello = &shake->ours;
    tb_hello_start(hello);
    hello->rank = net->options.rank;
    hello->peer = peer;
    hello->world = net->options.world;
    hello->connections = count;
    hello->connection = index;
    hello->generation = net->options.generation;
    hello->incarnation = net->incarnation;
    memcpy(hello->name_space, net->options.name_space, sizeof hello->name_space);
    if (getrandom(hello->nonce, sizeof hello->nonce, 0) != sizeof hello->nonce) {
        free(shake);
        return NULL;
    }
    return shake;
}

/* ---- saying: the lock is held -------------------------------------------------------------------------- */

static void say_hello(tb_conn *conn) {
    conn->handshake->said_hello = true;
    tb_conn_say_bytes(conn, &conn->handshake->ours, TB_HELLO_BYTES);
}

static void say_verdict(tb_conn *conn, int32_t code) {
    tb_conn_say(conn, &(tb_wire_header){.kind = TB_FRAME_VERDICT, .count = (uint32_t)code}, NULL);
}

/* Questions that strangers cause wait for their turn: the caller has an event loop to run. */
enum { MOST_QUESTIONS = 32 };

static void say_question(tb_conn *conn) {
    tb_handshake *shake = conn->handshake;
    uint32_t step = shake->question == TB_ASK_CHECK;
    shake->asked = true;
    conn->net->question_count += shake->accepted;
    tb_event event = {
        .kind = TB_EVENT_HANDSHAKE,
        .connection = shake->number,
        .handshake_role = shake->accepted ? 1 : 0,
        .handshake_step = step,
    };
    memcpy(event.handshake_hello[0], shake->accepted ? &shake->theirs : &shake->ours, TB_HELLO_BYTES);
    memcpy(event.handshake_hello[1], shake->accepted ? &shake->ours : &shake->theirs, TB_HELLO_BYTES);
    memcpy(event.handshake_proof, shake->proof, TB_PROOF_BYTES);
    event.error.rank = conn->rank;
    if (!tb_net_event(conn->net, &event)) {
        conn->net->question_count -= shake->accepted;
        conn->doomed = true;
    }
}

static void ask(tb_conn *conn, int question) {
    tb_handshake *shake = conn->handshake;
    shake->question = question;
    shake->asked = false;
    if (!shake->accepted || conn->net->question_count < MOST_QUESTIONS) {
        say_question(conn);
    }
}

/* The caller has answered a question: whoever has waited longest asks the next one. */
static void ask_next(tb_net *net) {
    while (net->question_count < MOST_QUESTIONS) {
        tb_conn *first = NULL;
        for (uint32_t i = 0; i < net->loop_count; i++) {
            for (tb_conn *conn = net->loops[i]->conns; conn != NULL; conn = conn->next) {
                const tb_handshake *shake = conn->handshake;
                bool waits = shake != NULL && !conn->doomed && !shake->refused
                             && shake->question != TB_ASK_NOTHING && !shake->asked;
                if (waits && (first == NULL || shake->number < first->handshake->number)) {
                    first = conn;
                }
            }
        }
        if (first == NULL) {
            return;
        }
        say_question(first);
    }
}

/* ---- refusing ------------------------------------------------------------------------------------------ */

/* The peer is told why, if it can understand; then the connection ends. The lock is held. */
static void refuse(tb_conn *conn, const tb_error *error, bool tell) {
    tb_net *net = conn->net;
    if (conn->handshake->refused) {
        return;
    }
    conn->handshake->refused = true;
    tb_net_fault(net, error);
    if (!conn->handshake->accepted && net->peers[conn->rank] != NULL) {
        net->handler->unreachable(net->peers[conn->rank], error->code, error->os_errno, error->message);
        net->peers[conn->rank]->connecting = false;
    }
    if (!tell) {
        conn->doomed = true;
        return;
    }
    say_verdict(conn, error->code);
    tb_conn_close_orderly(conn, conn->deadline);
}

/* ---- hearing ------------------------------------------------------------------------------------------- */

/*
 * Reads what the peer says that it is; our own hello goes out even if the peer is refused, so that it can tell why. The
 * lock is held.
 */
static void hear_hello(tb_conn *conn, const uint8_t *bytes) {
    tb_net *net = conn->net;
    tb_handshake *shake = conn->handshake;
    tb_error error = {.rank = -1};
    memcpy(&shake->theirs, bytes, TB_HELLO_BYTES);
    shake->got_hello = true;
    if (shake->accepted) {
        conn->deadline = shake->since + (uint64_t)HANDSHAKE_SECONDS * 1000000000;
        tb_net_timer(net, conn->deadline);
    }
    int32_t code = tb_hello_check(&shake->theirs, &shake->ours, shake->accepted ? -1 : conn->rank, &error);
    if (code == TB_EPROTOCOL) {
        refuse(conn, &error, false);
        return;
    }
    if (shake->accepted) {
        bool ranked = shake->theirs.rank >= 0 && shake->theirs.rank < net->options.world;
        conn->rank = ranked ? shake->theirs.rank : -1;
        error.rank = conn->rank;
        shake->ours.peer = shake->theirs.rank;
        shake->ours.connections = shake->theirs.connections;
        shake->ours.connection = shake->theirs.connection;
        say_hello(conn);
        bool lower = shake->theirs.rank < net->options.rank;
        bool counted = shake->theirs.connections >= 1 && shake->theirs.connections <= TB_CONNECTIONS
                       && shake->theirs.connection < shake->theirs.connections;
        if (code == TB_OK && (!lower || !counted)) {
            code = tb_fail(&error, TB_EPROTOCOL, conn->rank, 0, "rank %d may not open this connection",
                           conn->rank);
        }
    } else if (code == TB_OK
               && (shake->theirs.connections != shake->ours.connections
                   || shake->theirs.connection != shake->ours.connection)) {
        code = tb_fail(&error, TB_EPROTOCOL, conn->rank, 0, "rank %d answered for another connection",
                       conn->rank);
    }
    if (code != TB_OK) {
        refuse(conn, &error, true);
        return;
    }
    if (!shake->accepted) {
        ask(conn, TB_ASK_PROVE);
    }
}

static void hear_proof(tb_conn *conn, const uint8_t *proof) {
    memcpy(conn->handshake->proof, proof, TB_PROOF_BYTES);
    conn->handshake->got_proof = true;
    ask(conn, TB_ASK_CHECK);
}

static void hear_verdict(tb_conn *conn, int32_t code) {
    if (code == TB_OK) {
        conn->handshake->welcomed = true;
        return;
    }
    tb_error error;
    bool known = code == TB_EVERSION || code == TB_EAUTH || code == TB_EPROTOCOL;
    tb_fail(&error, known ? code : TB_EPROTOCOL, conn->rank, 0, "rank %d refused the connection", conn->rank);
    refuse(conn, &error, false);
}

static bool changed(tb_conn *conn) {
    tb_error error;
    tb_fail(
        &error, TB_ECHECKSUM, conn->rank, 0,
        "what came from rank %d, or from somebody in its name, is not a frame of the handshake, or changed on its way",
        conn->rank);
    refuse(conn, &error, false);
    return false;
}

/*
 * A frame of the handshake. False if it was refused, or is not whole: *needed bytes have to be there.
 */
static bool hear_frame(tb_conn *conn, uint32_t *needed) {
    tb_wire_header header;
    tb_handshake *shake = conn->handshake;
    memcpy(&header, conn->read_buffer, sizeof header);
    bool proof = header.kind == TB_FRAME_PROOF && header.body_bytes == TB_PROOF_BYTES && !shake->got_proof
                 && (shake->accepted || shake->proof_sent);
    bool verdict = header.kind == TB_FRAME_VERDICT && header.body_bytes == 0
                   && (shake->got_proof || header.count != TB_OK);
    tb_error error;
    if (!tb_wire_header_intact(&header)) {
        return changed(conn);
    }
    if (!proof && !verdict) {
        tb_fail(&error, TB_EPROTOCOL, conn->rank, 0, "rank %d did not keep to the handshake", conn->rank);
        refuse(conn, &error, false);
        return false;
    }
    *needed = TB_HEADER_BYTES + (uint32_t)tb_wire_control_bytes(&header);
    if (conn->read_end < *needed) {
        return false;
    }
    if (!tb_wire_body_intact(&header, conn->read_buffer + TB_HEADER_BYTES)) {
        return changed(conn);
    }
    if (proof) {
        hear_proof(conn, conn->read_buffer + TB_HEADER_BYTES);
    } else {
        hear_verdict(conn, (int32_t)header.count);
    }
    return true;
}

/* Takes what is whole. True if more is to be read, of which *needed says how much. The lock is held. */
static bool hear(tb_conn *conn, uint32_t *needed) {
    tb_handshake *shake = conn->handshake;
    *needed = shake->got_hello ? TB_HEADER_BYTES : TB_HELLO_BYTES;
    if (conn->doomed || shake->refused || shake->welcomed || conn->read_end < *needed) {
        return !shake->refused && !shake->welcomed;
    }
    if (!shake->got_hello) {
        hear_hello(conn, conn->read_buffer);
        conn->read_end = 0;
    } else if (hear_frame(conn, needed)) {
        conn->read_end = 0;
    } else {
        return !shake->refused; /* the body is still to come */
    }
    return hear(conn, needed);
}

static void read_handshake(tb_conn *conn) {
    tb_net *net = conn->net;
    while (!conn->doomed) {
        uint32_t needed;
        pthread_mutex_lock(&net->lock);
        bool more = hear(conn, &needed);
        pthread_mutex_unlock(&net->lock);
        if (!more || !conn->readable) {
            return;
        }
        struct iovec iov = {conn->read_buffer + conn->read_end, needed - conn->read_end};
        ssize_t got = conn->link.kind->readv(&conn->link, &iov, 1);
        if (got > 0) {
            conn->read_end += (uint32_t)got;
            continue;
        }
        conn->readable = got == -EINTR;
        if (got != -EAGAIN && got != -EINTR) {
            conn->end_errno = (int)-got;
            conn->doomed = true;
        }
    }
}

/* ---- the end of it ------------------------------------------------------------------------------------- */

/* The lock is held. */
static void establish(tb_conn *conn) {
    tb_net *net = conn->net;
    tb_handshake *shake = conn->handshake;
    tb_peer *peer = tb_net_peer(net, conn->rank);
    if (peer == NULL || net->closing) {
        conn->doomed = true;
        return;
    }
    bool another = peer->open > 0 && peer->incarnation != shake->theirs.incarnation;
    if (peer->up || another || peer->conns[shake->ours.connection] != NULL) {
        /* It came back before its end was noticed. */
        tb_peer_lost(peer, TB_EPEER_LOST, 0, "it connected anew", false);
    }
    if (peer->open > 0 && peer->connections != shake->ours.connections) {
        /* Those of a set are counted: it is whole once each of its numbers is open. */
        tb_error error;
        tb_fail(&error, TB_EPROTOCOL, conn->rank, 0, "rank %d wants %u connections, but wanted %u before",
                conn->rank, shake->ours.connections, peer->connections);
        refuse(conn, &error, false);
        return;
    }
    peer->incarnation = shake->theirs.incarnation;
    peer->connections = shake->ours.connections;
    uint32_t index = shake->ours.connection;
    net->half_open -= shake->counted;
    conn->handshake = NULL;
    free(shake);
    tb_conn_open(conn, peer, index);
}

void tb_handshake_advance(tb_conn *conn) {
    tb_net *net = conn->net;
    pthread_mutex_lock(&net->lock);
    if (!conn->handshake->accepted && !conn->handshake->said_hello) {
        say_hello(conn);
    }
    pthread_mutex_unlock(&net->lock);
    read_handshake(conn);
    if (conn->doomed) {
        return;
    }
    tb_conn_write(conn);
    pthread_mutex_lock(&net->lock);
    if (conn->state == TB_CONN_HANDSHAKE && conn->handshake->proof_good
        && conn->handshake->proof_sent && conn->handshake->welcomed) {
        establish(conn);
    }
    pthread_mutex_unlock(&net->lock);
}

/* ---- the caller's answers ------------------------------------------------------------------------------ */

static tb_conn *find(tb_net *net, uint64_t number) {
    for (uint32_t i = 0; i < net->loop_count; i++) {
        for (tb_conn *conn = net->loops[i]->conns; conn != NULL; conn = conn->next) {
            if (conn->handshake != NULL && conn->handshake->number == number && !conn->doomed) {
                return conn;
            }
        }
    }
    return NULL;
}

static void say_proof(tb_conn *conn, const uint8_t proof[32]) {
    conn->handshake->proof_sent = true;
    tb_conn_say(conn, &(tb_wire_header){.kind = TB_FRAME_PROOF, .body_bytes = TB_PROOF_BYTES}, proof);
}

/* Whoever accepts proves only to those who have proved: a stranger gets nothing that it could guess the secret by. */
static void answer(tb_conn *conn, const uint8_t proof[32], uint32_t accept) {
    tb_handshake *shake = conn->handshake;
    int question = shake->question;
    if (shake->refused || !shake->asked || question == TB_ASK_NOTHING) {
        return;
    }
    shake->question = TB_ASK_NOTHING;
    if (question == TB_ASK_PROVE) {
        say_proof(conn, proof);
        if (shake->accepted) {
            say_verdict(conn, TB_OK);
        }
    } else if (!accept) {
        tb_error error;
        tb_fail(&error, TB_EAUTH, conn->rank, 0, "rank %d does not know the secret", conn->rank);
        refuse(conn, &error, true);
    } else {
        shake->proof_good = true;
        if (shake->accepted) {
            ask(conn, TB_ASK_PROVE);
        } else {
            say_verdict(conn, TB_OK);
        }
    }
}

int32_t tb_session_handshake(uint64_t handle, uint64_t connection, const uint8_t proof[32], uint32_t accept,
                             tb_error *err) {
    tb_net *net = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (net == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&net->lock);
    tb_conn *conn = find(net, connection);
    if (conn != NULL) {
        answer(conn, proof, accept); /* one that has ended needs none */
    }
    ask_next(net);
    pthread_mutex_unlock(&net->lock);
    tb_handle_put(handle);
    return TB_OK;
}
