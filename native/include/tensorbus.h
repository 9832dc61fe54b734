/*
 * The C interface of tensorbus. The only public header.
 *
 * Every function that can fail returns 0 or a code of TB_E*, and then fills *err (which may be NULL). The numbers are
 * those of src/errors.ts. Handles are never pointers: a stale one is TB_ECLOSED, not a crash. No function blocks
 * unless its comment says so; what takes time is started, and ends in an event.
 */
#ifndef TENSORBUS_H
#define TENSORBUS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TB_ABI_VERSION 1
#define TB_PROTOCOL_VERSION 3
#define TB_API __attribute__((visibility("default")))

enum tb_code {
    TB_OK = 0,
    TB_EPARTIAL_OP = 103,
    TB_EDTYPE = 107,
    TB_EPLAN_FORMAT = 109,
    TB_EALIAS = 200,
    TB_EREGION = 201,
    TB_EUNSUPPORTED = 202,
    TB_ETENSOR_MISSING = 203,
    TB_ENO_SPACE = 204,
    TB_ENO_MEMORY = 205,
    TB_EQUARANTINED = 206,
    TB_ESEAL = 207,
    TB_ETIMEOUT = 300,
    TB_ECANCELLED = 301,
    TB_EPEER_LOST = 302,
    TB_EAUTH = 303,
    TB_EVERSION = 304,
    TB_EPROTOCOL = 305,
    TB_ECHECKSUM = 306,
    TB_EADDRESS_IN_USE = 307,
    TB_ECONNECT = 308,
    TB_ECLOSED = 309,
    TB_EPLAN_MISMATCH = 310,
    TB_EBUSY = 311,
    TB_ESYSTEM = 312,
    TB_EINVALIDATED = 313,
    TB_ENCCL = 314,
    TB_EDEVICE_SHARED = 315,
    TB_ECUDA = 316,
    TB_ELIBRARY = 401,
    TB_EDEVICE = 402,
    TB_EEXISTS = 704,
    TB_EBUS_FORMAT = 707,
    TB_EFOREIGN = 708,
};

/* The message is UTF-8, always terminated. rank is that where the failure began, or -1. */
typedef struct tb_error {
    int32_t code;
    int32_t rank;
    int32_t os_errno;
    int32_t reserved;
    char message[496];
} tb_error;

TB_API uint32_t tb_abi_version(void);
/* One line: compiler, its version, and the vector units that were found at run time. */
TB_API const char *tb_build_info(void);

/* ---- kernels --------------------------------------------------------------------------------------------------- */

/* Element types and operators have the numbers of src/layout; a descriptor is that of docs/program-format.md. */
enum tb_op { TB_OP_COPY = 0, TB_OP_REDUCE = 1 };

/* One end of a move: memory of this process, and how the elements lie in it. */
typedef struct tb_end {
    uint64_t base;              /* address of the first element */
    uint64_t bytes;             /* accesses outside of [base, base + bytes) are TB_EREGION */
    const int64_t *descriptor;  /* words */
    uint32_t descriptor_words;
    uint32_t dtype;
} tb_end;

/* Copies or casts every element of src to dst, in this thread. Blocks for as long as that takes. */
TB_API int32_t tb_move(const tb_end *dst, const tb_end *src, tb_error *err);

/*
 * Folds count packed elements into an accumulator. The accumulator of 16- and 8-bit floats is float32, that of other
 * types their own. first: set instead of combine. partial_op: the numbers of partialOps.
 */
TB_API int32_t tb_reduce(void *acc, const void *in, uint64_t count, uint32_t dtype, uint32_t partial_op,
                         uint32_t first, tb_error *err);
/* Divides the accumulator and rounds it once to count packed elements of dtype; out may be acc. */
TB_API int32_t tb_reduce_finish(void *out, void *acc, uint64_t count, uint32_t dtype, uint64_t divisor,
                                tb_error *err);

/* CRC-32C (Castagnoli) of data, continuing from crc, which is 0 at the start. */
TB_API uint32_t tb_crc32c(uint32_t crc, const void *data, uint64_t bytes);

/* ---- memory ---------------------------------------------------------------------------------------------------- */

/* Anonymous private memory, page-aligned, zero, not yet touched. */
TB_API int32_t tb_host_allocate(uint64_t bytes, uint64_t *address, tb_error *err);
TB_API int32_t tb_host_free(uint64_t address, uint64_t bytes, tb_error *err);

/* A memfd of that size, its space reserved (TB_ENO_SPACE), sealed against shrinking and growing, and mapped. */
TB_API int32_t tb_shared_create(const char *name, uint64_t bytes, int32_t *fd, uint64_t *address, tb_error *err);
/* Maps another process's memfd, after its size and seals were checked (TB_ESEAL). */
TB_API int32_t tb_shared_map(int32_t fd, uint64_t bytes, uint64_t *address, tb_error *err);
TB_API int32_t tb_shared_unmap(uint64_t address, uint64_t bytes, tb_error *err);

/* ---- sessions -------------------------------------------------------------------------------------------------- */

enum tb_backend_kind { TB_BACKEND_MEMORY = 0, TB_BACKEND_TCP = 1 };

/*
 * What carries the buckets between two peers is named by a bit, those that a session may use by a mask of them: see
 * src/carriers/registry.h. These two say how carriers are used.
 */
enum tb_carrier_flags {
    /* NCCL may be asked to stand on one GPU with another rank that says so, too. */
    TB_CARRY_SHARED_GPU = 0x40000000,
    /* For tests: memory of this process is reached as if it were another's. */
    TB_CARRY_APART = 0x80000000,
};

typedef struct tb_session_options {
    uint32_t struct_bytes; /* sizeof(tb_session_options) of the caller */
    uint32_t kind;
    int32_t rank;
    int32_t world;
    uint64_t generation;
    uint64_t hub;             /* memory: sessions of one hub meet; from tb_hub_create */
    uint32_t connections;     /* tcp: sockets per pair of peers, 1 to 16 */
    uint32_t io_threads;      /* threads that move data, 1 to 16 */
    uint32_t peer_timeout_ms; /* tcp: a silent host is lost after this long */
    uint32_t quiesce_ms;
    uint32_t listen_port;     /* tcp: 0 takes a free one */
    uint32_t carriers;        /* bits of those that may be used; 0: stream alone */
    char listen_host[64];     /* tcp: a numeric IPv4 or IPv6 address */
    uint8_t name_space[32];   /* SHA-256 of the namespace; peers of another are refused */
    uint8_t device[16];       /* UUID of the GPU that all registered memory lies on; 0: it is of the host */
} tb_session_options;

TB_API int32_t tb_hub_create(uint64_t *hub, tb_error *err);
TB_API int32_t tb_hub_destroy(uint64_t hub, tb_error *err);

/*
 * Opens a session. *event_fd is the read end of a pipe: it is readable while tb_session_next_event has something to
 * say. The caller closes it after the session.
 */
TB_API int32_t tb_session_open(const tb_session_options *options, uint64_t *session, int32_t *event_fd, tb_error *err);
/* tcp: the port that the session listens on. */
TB_API int32_t tb_session_port(uint64_t session, uint32_t *port, tb_error *err);
/* tcp: where a peer listens: a numeric address. May be said again after the peer was lost. */
TB_API int32_t tb_session_set_peer(uint64_t session, int32_t rank, const char *host, uint32_t port, tb_error *err);
/*
 * Begins the end: rounds stop without an event, peers hear of it, and no other events come but the last one,
 * TB_EVENT_ENDED, once no thread of the session runs any more. After it only tb_session_next_event and tb_session_close
 * are to be called.
 */
TB_API int32_t tb_session_stop(uint64_t session, tb_error *err);
/*
 * Ends everything and joins the threads; blocks until they are gone, which is at most quiesce_ms and half a second, and
 * no time after TB_EVENT_ENDED. Events not yet read are lost. A closed or unknown handle is TB_ECLOSED. TB_EQUARANTINED
 * if a thread did not end, a GPU or a library did not come to rest, or a peer may still read: what is registered may
 * still be touched.
 */
TB_API int32_t tb_session_close(uint64_t session, tb_error *err);

/* In a session with a device, the driver is asked whether it is memory of that device, which blocks; TB_EREGION if it
 * is not, and no carrier moves memory of the host. */
TB_API int32_t tb_session_register(uint64_t session, uint64_t address, uint64_t bytes, tb_error *err);
/* TB_EBUSY while a transfer uses it. */
TB_API int32_t tb_session_unregister(uint64_t session, uint64_t address, uint64_t bytes, tb_error *err);

enum tb_event_kind {
    TB_EVENT_NONE = 0,
    TB_EVENT_HANDSHAKE = 1, /* tcp: a connection asks for a proof; see tb_session_handshake */
    TB_EVENT_PREPARED = 2,  /* transfer: error.code 0, or why not */
    TB_EVENT_ROUND = 3,     /* transfer, round: error.code 0, or why it failed; its memory is quiet */
    TB_EVENT_PEER_LOST = 4, /* error.rank */
    TB_EVENT_FAULT = 5,     /* something was refused that belongs to no transfer: garbage on the port, a wrong secret */
    TB_EVENT_PEER_LEFT = 6, /* error.rank: it closed its session in order, or came back as another one */
    TB_EVENT_ENDED = 7,     /* after tb_session_stop: nothing of the session runs any more */
};

typedef struct tb_event {
    uint32_t kind;
    uint32_t reserved;
    uint64_t transfer;
    uint64_t round;
    uint64_t connection;
    uint64_t bytes_sent;
    uint64_t bytes_received;
    uint64_t bytes_copied;
    uint64_t nanoseconds;
    uint64_t staging_high_water;
    uint32_t handshake_role;   /* 0 this side connected, 1 this side accepted */
    uint32_t handshake_step;   /* 0 make a proof of our own, 1 check the peer's proof */
    uint8_t handshake_hello[2][128]; /* the connecting side's and the accepting side's, as sent */
    uint8_t handshake_proof[32];     /* step 1: what the peer sent */
    tb_error error;
} tb_event;

/* Fills *event; kind TB_EVENT_NONE if there is none. */
TB_API int32_t tb_session_next_event(uint64_t session, tb_event *event, tb_error *err);

/*
 * Answers TB_EVENT_HANDSHAKE: step 0 with this side's 32 bytes, HMAC-SHA-256(secret, role byte of the prover || hello
 * of the connecting side || hello of the accepting side); step 1 with accept 1 or 0. Secrets stay with the caller.
 */
TB_API int32_t tb_session_handshake(uint64_t session, uint64_t connection, const uint8_t proof[32], uint32_t accept,
                                    tb_error *err);

/* ---- transfers --------------------------------------------------------------------------------------------------- */

/* One buffer of the program's buffer table, in its order. */
typedef struct tb_binding {
    uint64_t address; /* the address of the first element */
    uint64_t bytes;   /* from there to the end of the memory that may be touched */
} tb_binding;

enum tb_transfer_flags { TB_TRANSFER_CHECKSUM = 1 };

/* What a rank is to a transfer beyond what its program exchanges with it. */
enum tb_member_roles {
    TB_MEMBER_JOINS = 1, /* it is of the communicator; others only begin their rounds with those who are */
    TB_MEMBER_PEER = 2,  /* what it and this rank exchange goes by NCCL; both join then */
    TB_MEMBER_LINKED = 4, /* neither of the two completes a round that the other has not begun; the role is mutual */
    TB_MEMBER_APART = 8,  /* it is linked alone: it begins no round together with those who join */
};
typedef struct tb_member {
    int32_t rank;
    uint32_t roles;
} tb_member;

/*
 * Copies and checks the program and binds it; every access that it can make must lie in its binding and every binding
 * in registered memory. Connects its peers and exchanges key, plan digest and channel fingerprints with them. Ends
 * with TB_EVENT_PREPARED, at the latest at the deadline; timeout_ns of UINT64_MAX is none, here and in
 * tb_transfer_post.
 *
 * members: NULL and 0 unless some buckets go by NCCL or ranks are linked. By ascending rank, this one among them, all
 * who begin rounds of it together: the lowest that joins leads them, and is connected with all. Which those are is the
 * same for all; a peer that counts others in, or of which another carrier than was said comes out, is TB_EINVALIDATED
 * with ESTALE: one of the two knew what is not so any more. If this rank joins, and once it is prepared,
 * tb_transfer_attach binds it to the communicator of those who do, and takes what memory it needs of the device;
 * *attached is 0 until that is there. A round that begins before is TB_EINVALIDATED.
 */
TB_API int32_t tb_transfer_prepare(uint64_t session, const char *key, const void *program, uint64_t program_bytes,
                                   const tb_binding *bindings, uint32_t binding_count, uint32_t flags,
                                   uint64_t timeout_ns, const tb_member *members, uint32_t member_count,
                                   uint64_t *transfer, tb_error *err);
TB_API int32_t tb_transfer_attach(uint64_t session, uint64_t transfer, uint64_t communicator, tb_error *err);
/* TB_EINVALIDATED with ESTALE if a peer prepares anew what is prepared here: so must this rank. */
TB_API int32_t tb_transfer_check_peers(uint64_t session, uint64_t transfer, tb_error *err);
TB_API int32_t tb_transfer_attached(uint64_t session, uint64_t transfer, uint32_t *attached, tb_error *err);
/*
 * This session as carriers know it, which may be told to anybody: for tb_carrier_between, of this version of the
 * library.
 */
enum { TB_IDENTITY_BYTES = 96 };
TB_API int32_t tb_session_identity(uint64_t session, uint8_t identity[TB_IDENTITY_BYTES], tb_error *err);
/* What an identity says: the bits of its carriers, and which GPU of which host it is. */
TB_API int32_t tb_identity_read(const uint8_t identity[TB_IDENTITY_BYTES], uint32_t *carriers, uint8_t gpu[32],
                                tb_error *err);
/*
 * What would carry the buckets of two sessions between tensors in these kinds of memory (1 host, 2 shared, 4 CUDA),
 * with these flags of a transfer: as of tb_transfer_carrier. TB_EUNSUPPORTED if nothing would; the message names
 * what is missing.
 * TB_EDEVICE_SHARED if NCCL misses nothing but a GPU for each of the two.
 */
TB_API int32_t tb_carrier_between(const uint8_t one[TB_IDENTITY_BYTES], const uint8_t other[TB_IDENTITY_BYTES],
                                  uint32_t memory, uint32_t flags, uint32_t *carrier, tb_error *err);
/*
 * Starts a round, at least 1 and larger than the last one. Ends with TB_EVENT_ROUND. TB_EBUSY while one is under way.
 */
/* A round that a peer had given up before it was posted fails at once, with ESTALE in os_errno. */
TB_API int32_t tb_transfer_post(uint64_t session, uint64_t transfer, uint64_t round, uint64_t timeout_ns,
                                tb_error *err);
/* Begins a round and cancels it before a byte of it moves, so that its end is told to all others. */
TB_API int32_t tb_transfer_post_cancelled(uint64_t session, uint64_t transfer, uint64_t round, tb_error *err);
/* Ends the prepare or round under way with that code; its event still comes. Nothing under way: does nothing. */
TB_API int32_t tb_transfer_cancel(uint64_t session, uint64_t transfer, int32_t code, tb_error *err);
/* Bytes of the round under way or the last one; staging is what the transfer can take at most. */
TB_API int32_t tb_transfer_progress(uint64_t session, uint64_t transfer, uint64_t *round, uint64_t *done,
                                    uint64_t *total, uint64_t *staging, tb_error *err);
/* What carries the buckets between this rank and a peer of the transfer: the number of its bit. */
TB_API int32_t tb_transfer_carrier(uint64_t session, uint64_t transfer, int32_t rank, uint32_t *carrier, tb_error *err);
/*
 * Whom the round under way, or the last one if it failed, waits or waited for: at most `capacity` ranks of the
 * transfer's peers, each with one of these states. *count is how many there are.
 */
enum tb_wait_states {
    TB_WAITS_ABSENT = 1, /* it has not begun the round, as far as is known here */
    TB_WAITS_UNFINISHED = 2,
};
TB_API int32_t tb_transfer_waits(uint64_t session, uint64_t transfer, int32_t *ranks, uint32_t *states,
                                 uint32_t capacity, uint32_t *count, tb_error *err);
/* TB_EBUSY while a prepare or round is under way. Peers' next rounds of it fail with TB_EINVALIDATED. */
TB_API int32_t tb_transfer_release(uint64_t session, uint64_t transfer, tb_error *err);

/* ---- CUDA ------------------------------------------------------------------------------------------------------ */

/*
 * Memory of a GPU, which is named by its UUID. All calls but the first two block while the device's worker answers.
 * TB_ELIBRARY: no driver, too old a one, or no kernels; TB_EDEVICE: there is no such GPU.
 */

/* The file of the kernels, for devices that are used from here on. */
TB_API int32_t tb_cuda_kernels(const char *path, tb_error *err);
/* How many GPUs this process sees, and the version of the driver (1000 * major + 10 * minor). */
TB_API int32_t tb_cuda_count(uint32_t *count, uint32_t *version, tb_error *err);
/* One of them: its UUID, and its name in at most `bytes` bytes, terminated. */
TB_API int32_t tb_cuda_device(uint32_t index, uint8_t uuid[16], void *name, uint32_t bytes, tb_error *err);
TB_API int32_t tb_cuda_allocate(const uint8_t uuid[16], uint64_t bytes, uint64_t *address, tb_error *err);
TB_API int32_t tb_cuda_free(const uint8_t uuid[16], uint64_t address, tb_error *err);
TB_API int32_t tb_cuda_write(const uint8_t uuid[16], uint64_t address, const void *from, uint64_t bytes, tb_error *err);
TB_API int32_t tb_cuda_read(const uint8_t uuid[16], uint64_t address, void *to, uint64_t bytes, tb_error *err);
/*
 * The legacy IPC handle of the allocation that the memory lies in, and where in it. TB_EUNSUPPORTED if there is
 * none.
 */
TB_API int32_t tb_cuda_export(const uint8_t uuid[16], uint64_t address, uint64_t bytes, uint8_t handle[64],
                              uint64_t *offset, tb_error *err);
/*
 * Maps another process's allocation; once, however often it is opened. *bytes is its size. tb_cuda_close for each.
 */
TB_API int32_t tb_cuda_open(const uint8_t uuid[16], const uint8_t handle[64], uint64_t *address, uint64_t *bytes,
                            tb_error *err);
TB_API int32_t tb_cuda_close(const uint8_t uuid[16], uint64_t address, tb_error *err);

/*
 * Events between processes (cuIpcGetEventHandle): made here, or opened by the handle of another process. record puts
 * it behind what this process's own calls have done. close for each create and open.
 */
TB_API int32_t tb_cuda_event_create(const uint8_t uuid[16], uint64_t *event, tb_error *err);
TB_API int32_t tb_cuda_event_open(const uint8_t uuid[16], const uint8_t handle[64], uint64_t *event, tb_error *err);
TB_API int32_t tb_cuda_event_export(const uint8_t uuid[16], uint64_t event, uint8_t handle[64], tb_error *err);
TB_API int32_t tb_cuda_event_record(const uint8_t uuid[16], uint64_t event, tb_error *err);
TB_API int32_t tb_cuda_event_close(const uint8_t uuid[16], uint64_t event, tb_error *err);
/*
 * Raises token at port (tb_port_open) once what was recorded last has happened, or cannot be known any more. watched:
 * *over is 1 from then on; TB_ECUDA if it cannot be known. unwatch before the event or the port is closed.
 */
TB_API int32_t tb_cuda_event_watch(uint64_t port, uint64_t token, const uint8_t uuid[16], uint64_t event,
                                   uint64_t *watch, tb_error *err);
TB_API int32_t tb_cuda_event_watched(uint64_t watch, uint32_t *over, tb_error *err);
TB_API int32_t tb_cuda_event_unwatch(uint64_t watch, tb_error *err);

/*
 * For benchmarks: nanoseconds of `times` copies by the driver from one place on the device to another, one after the
 * other.
 */
TB_API int32_t tb_cuda_time_copies(const uint8_t uuid[16], uint64_t to, uint64_t from, uint64_t bytes, uint32_t times,
                                   uint64_t *nanoseconds, tb_error *err);
/* Bytes of the device that are free, and all of them. */
TB_API int32_t tb_cuda_info(const uint8_t uuid[16], uint64_t *left, uint64_t *total, tb_error *err);

/* ---- NCCL ------------------------------------------------------------------------------------------------------ */

/*
 * What can be asked of libnccl without a device. path: NULL is $TENSOR_BUS_LIBNCCL, else libnccl.so.2. The first call
 * for a path loads the library, for good. TB_ELIBRARY if it is missing or too old.
 */
TB_API int32_t tb_nccl_version(const char *path, uint32_t *version, tb_error *err);
/* A new unique id. This process listens for those who join by it, until all have. */
TB_API int32_t tb_nccl_unique_id(const char *path, uint8_t id[128], tb_error *err);

/*
 * What a session of TB_BACKEND_TCP with TB_CARRY_NCCL needs before it is used: the library. path: as above; control
 * frames go over TCP. Blocks while the device's thread begins. TB_ELIBRARY, TB_EDEVICE.
 */
TB_API int32_t tb_session_use_nccl(uint64_t session, const char *library, tb_error *err);
/*
 * Begins to join the communicator of these ranks of the session, ascending, by an id that one of them made: see
 * tb_nccl_state. It is there until the session is closed, or until one of its ranks is lost. epoch: tells it from
 * others of the same ranks; a round whose ranks are on different ones is TB_EINVALIDATED.
 */
TB_API int32_t tb_nccl_join(uint64_t session, const int32_t *ranks, uint32_t count, const uint8_t id[128],
                            uint32_t epoch, uint64_t *communicator, tb_error *err);
/* *state is 0 while ranks are waited for, 1 once all have joined. A code if it was aborted, and why. */
TB_API int32_t tb_nccl_state(uint64_t session, uint64_t communicator, uint32_t *state, tb_error *err);
/* Aborts it, and what is under way on it: another is to take its place. */
TB_API int32_t tb_nccl_leave(uint64_t session, uint64_t communicator, tb_error *err);

/* ---- UCX ------------------------------------------------------------------------------------------------------- */

/*
 * What UCX can do here: that it is there, that it has devices which read other hosts' memory, and that it moves CUDA
 * memory: it was built for it, and is 1.16 or newer.
 */
enum tb_ucx_speaks { TB_UCX_SPOKEN = 1, TB_UCX_RDMA = 2, TB_UCX_CUDA = 4 };
/*
 * library: libucp's file, NULL or "" for $TENSOR_BUS_LIBUCP, else libucp.so.0. transports: those of UCX that may be
 * used, as in UCX_TLS; NULL or "": what that says, else all but TCP. *version: 10000 * major + 100 * minor + patch.
 * TB_ELIBRARY if the library is missing or too old, TB_EUNSUPPORTED if there is no context with these transports.
 */
TB_API int32_t tb_ucx_query(const char *library, const char *transports, uint32_t *version, uint32_t *speaks,
                            tb_error *err);
/* A session whose carriers have ucx is to use it, with a thread of its own. TB_EUNSUPPORTED once it has memory. */
TB_API int32_t tb_session_use_ucx(uint64_t session, const char *library, const char *transports, tb_error *err);

#ifdef __cplusplus
}
#endif

#include "tensorbus_bus.h"
#endif
