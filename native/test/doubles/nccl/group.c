/* Groups: sends and receives that take effect together, and the kernel that makes them. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "double.h"

typedef struct operation {
    struct operation *next;
    bool sends, done;
    uint8_t type;
    int peer;
    tb_cu_pointer at;
    uint64_t bytes;
    tb_cu_stream stream;
    uint64_t moved; /* of its header, then of its bytes */
} operation;

typedef struct header {
    uint64_t magic, bytes, type;
} header;
#define MESSAGE 0x6567617373656d6eull

/* What an outermost end puts into one stream. */
typedef struct launch {
    tb_nccl_comm comm;
    operation *operations;
    tb_cu_stream stream;
    uint64_t turn;
} launch;

static _Thread_local int depth;
static _Thread_local tb_nccl_comm group_comm;
static _Thread_local operation *group_first, **group_end;
static _Thread_local tb_nccl_result group_failure;

bool in_group(void) {
    return depth > 0;
}

/* ---- in the stream ------------------------------------------------------------------------------------- */

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Between the line and memory, as much as there is; the operation's next bytes are its header first. */
static uint64_t move_part(tb_cu_context context, wire *line, operation *one, header *expected) {
    uint64_t whole = sizeof *expected + one->bytes;
    uint64_t at = one->sends ? line->written : line->read;
    uint64_t room = one->sends ? RING_BYTES - (at - line->read) : line->written - at;
    uint64_t in_header = one->moved < sizeof *expected ? sizeof *expected - one->moved : 0;
    uint64_t count = least(least(room, whole - one->moved), RING_BYTES - at % RING_BYTES);
    count = in_header > 0 ? least(count, in_header) : count;
    if (count == 0) {
        return 0;
    }
    uint8_t *memory = (uint8_t *)expected + one->moved;
    if (in_header == 0) {
        char why[160];
        memory = double_reach(one->at + (one->moved - sizeof *expected), count, why, sizeof why);
        if (memory == NULL) {
            double_fail(context, ILLEGAL_ADDRESS, "%s: %s", one->sends ? "ncclSend" : "ncclRecv", why);
            return 0;
        }
    }
    uint8_t *ring = line->ring + at % RING_BYTES;
    if (one->sends) {
        memcpy(ring, memory, count);
        atomic_store(&line->written, at + count);
    } else {
        memcpy(memory, ring, count);
        atomic_store(&line->read, at + count);
    }
    one->moved += count;
    return count;
}

typedef struct progress {
    operation *one;
    header head; /* what is sent, or what came */
} progress;

static bool advance(const launch *what, progress *at) {
    tb_nccl_comm comm = what->comm;
    operation *one = at->one;
    segment *shared = comm->shared;
    wire *line = one->sends ? &shared->wires[comm->rank][one->peer] : &shared->wires[one->peer][comm->rank];
    uint64_t moved = move_part(comm->context, line, one, &at->head);
    bool whole = one->moved == sizeof at->head + one->bytes;
    if (!one->sends && one->moved >= sizeof at->head
        && (at->head.magic != MESSAGE || at->head.bytes != one->bytes || at->head.type != one->type)) {
        die("rank %d receives %llu bytes of type %d from rank %d, which sends %llu of type %d", comm->rank,
            (unsigned long long)one->bytes, one->type, one->peer, (unsigned long long)at->head.bytes,
            (int)at->head.type);
    }
    /* A send is over when it was received. */
    one->done = whole && (!one->sends || line->read == line->written);
    return moved > 0 || one->done;
}

/* Between two with the same peer and direction, the later one waits for the earlier one. */
static bool is_first(const operation *list, const operation *one) {
    for (; list != one; list = list->next) {
        if (!list->done && list->peer == one->peer && list->sends == one->sends) {
            return false;
        }
    }
    return true;
}

static bool somebody_died(tb_nccl_comm comm) {
    for (int rank = 0; rank < comm->ranks; rank++) {
        int pid = comm->shared->members[rank].pid;
        if (kill(pid, 0) != 0 && errno == ESRCH) {
            return true;
        }
    }
    return false;
}

static void run_operations(tb_cu_context context, const launch *what) {
    tb_nccl_comm comm = what->comm;
    bool remote_errors = double_number("NCCL_DOUBLE_REMOTE_ERRORS", 0) == 1;
    uint32_t count = 0;
    for (operation *one = what->operations; one != NULL; one = one->next) {
        count++;
    }
    progress *all = calloc(count, sizeof *all);
    uint32_t index = 0;
    for (operation *one = what->operations; one != NULL; one = one->next) {
        all[index++] = (progress){one, one->sends ? (header){MESSAGE, one->bytes, one->type} : (header){0}};
    }
    uint32_t left = count;
    uint32_t idle = 0;
    while (left > 0 && !comm->abort && context->failure == TB_CU_SUCCESS) {
        bool moved = false;
        for (uint32_t i = 0; i < count; i++) {
            if (!all[i].one->done && is_first(what->operations, all[i].one) && advance(what, &all[i])) {
                moved = true;
                left -= all[i].one->done;
            }
        }
        idle = moved ? 0 : idle + 1;
        if (idle > 20) {
            pause_briefly(50);
        }
        if (idle > 0 && idle % 100 == 0 && remote_errors && somebody_died(comm)) {
            comm->state = TB_NCCL_REMOTE_ERROR;
            break;
        }
    }
    free(all);
}

static void run_launch(tb_cu_context context, void *argument) {
    launch *what = *(launch **)argument;
    tb_nccl_comm comm = what->comm;
    while (comm->finished != what->turn && !comm->abort) {
        pause_briefly(50);
    }
    run_operations(context, what);
    while (what->operations != NULL) {
        operation *one = what->operations;
        what->operations = one->next;
        free(one);
    }
    free(what);
    comm->finished++;
}

/* ---- the end of a group -------------------------------------------------------------------------------- */

/* Says that there will be something on its wires, and waits until the other ends have said it too. */
static bool connect_peers(tb_nccl_comm comm, const operation *list) {
    segment *shared = comm->shared;
    for (const operation *one = list; one != NULL; one = one->next) {
        atomic_store(one->sends ? &shared->wires[comm->rank][one->peer].sends
                                : &shared->wires[one->peer][comm->rank].receives,
                     true);
    }
    for (const operation *one = list; one != NULL; one = one->next) {
        atomic_bool *other = one->sends ? &shared->wires[comm->rank][one->peer].receives
                                        : &shared->wires[one->peer][comm->rank].sends;
        while (!*other && !comm->abort) {
            pause_briefly(200);
        }
    }
    return !comm->abort;
}

static void *put_into_stream(void *argument) {
    launch *what = argument;
    tb_nccl_comm comm = what->comm;
    pause_briefly(delay_us());
    tb_nccl_result result = TB_NCCL_SUCCESS;
    tb_cu_stream stream = what->stream;
    bool go_on = connect_peers(comm, what->operations);
    if (go_on) {
        cuCtxSetCurrent(comm->context);
        what->turn = comm->launched++;
        if (double_enqueue(stream, run_launch, &what, sizeof what) != TB_CU_SUCCESS) {
            comm->launched--;
            go_on = false;
            result = fail_with(TB_NCCL_CUDA_ERROR, "Cuda failure: the stream takes nothing");
        }
    }
    if (!go_on) {
        for (operation *one = what->operations; one != NULL;) {
            operation *next = one->next;
            free(one);
            one = next;
        }
        free(what);
    }
    comm->state = result;
    return NULL;
}

/* A send to itself without its receive, or the other way, would never end. */
static bool meets_itself(tb_nccl_comm comm, const operation *list) {
    int balance = 0;
    for (; list != NULL; list = list->next) {
        balance += list->peer != comm->rank ? 0 : list->sends ? 1 : -1;
    }
    return balance == 0;
}

static tb_nccl_result end_group(void) {
    tb_nccl_comm comm = group_comm;
    operation *list = group_first;
    tb_nccl_result failure = group_failure;
    group_comm = NULL;
    group_first = NULL;
    group_failure = TB_NCCL_SUCCESS;
    if (failure == TB_NCCL_SUCCESS && comm != NULL && !meets_itself(comm, list)) {
        failure = fail_with(TB_NCCL_INVALID_USAGE, "Trying to send to self without a matching recv");
    }
    if (failure != TB_NCCL_SUCCESS || comm == NULL) {
        while (list != NULL) {
            operation *one = list;
            list = list->next;
            free(one);
        }
        return failure;
    }
    launch *what = malloc(sizeof *what);
    *what = (launch){.comm = comm, .operations = list, .stream = list->stream};
    return help(comm, put_into_stream, what);
}

tb_nccl_result ncclGroupStart(void) {
    if (depth++ == 0) {
        group_first = NULL;
        group_end = &group_first;
        group_comm = NULL;
        group_failure = TB_NCCL_SUCCESS;
    }
    return TB_NCCL_SUCCESS;
}

tb_nccl_result ncclGroupEnd(void) {
    if (depth == 0) {
        return fail_with(TB_NCCL_INVALID_USAGE, "ncclGroupEnd: not in a group call.");
    }
    return --depth > 0 ? TB_NCCL_SUCCESS : end_group();
}

static tb_nccl_result check_operation(tb_nccl_comm comm, tb_nccl_type type, int peer, const char *call) {
    if (comm == NULL) {
        return fail_with(TB_NCCL_INVALID_ARGUMENT, "%s : comm argument is NULL", call);
    }
    check_comm(comm, call);
    tb_nccl_result result = check_ready(comm, call);
    if (result != TB_NCCL_SUCCESS) {
        return result;
    }
    if (comm->finalized || (group_comm != NULL && group_comm != comm)) {
        die("%s on a communicator that was finalized, or another one than the group's", call);
    }
    if (peer < 0 || peer >= comm->ranks || type < 0 || type > 11) {
        return fail_with(TB_NCCL_INVALID_ARGUMENT, "%s : invalid peer %d or type %d", call, peer, type);
    }
    return TB_NCCL_SUCCESS;
}

static tb_nccl_result add(operation one, tb_nccl_comm comm, size_t count, const char *call) {
    static const uint8_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    ncclGroupStart();
    tb_nccl_result result = check_operation(comm, one.type, one.peer, call);
    if (result == TB_NCCL_SUCCESS && group_first != NULL && group_first->stream != one.stream) {
        die("%s to another stream than the rest of its group: NCCL does it, this double does not", call);
    }
    operation *kept = result == TB_NCCL_SUCCESS ? malloc(sizeof *kept) : NULL;
    if (kept == NULL) {
        group_failure = result == TB_NCCL_SUCCESS ? TB_NCCL_SYSTEM_ERROR : result;
    } else {
        *kept = one;
        kept->bytes = count * sizes[one.type];
        *group_end = kept;
        group_end = &kept->next;
        group_comm = comm;
    }
    tb_nccl_result ended = ncclGroupEnd();
    return result != TB_NCCL_SUCCESS ? result : ended;
}

tb_nccl_result ncclSend(const void *from, size_t count, tb_nccl_type type, int peer, tb_nccl_comm comm,
                        tb_cu_stream stream) {
    operation one = {
        .sends = true, .type = (uint8_t)type, .peer = peer, .at = (uintptr_t)from, .stream = stream};
    return add(one, comm, count, "ncclSend");
}

tb_nccl_result ncclRecv(void *to, size_t count, tb_nccl_type type, int peer, tb_nccl_comm comm,
                        tb_cu_stream stream) {
    operation one = {.type = (uint8_t)type, .peer = peer, .at = (uintptr_t)to, .stream = stream};
    return add(one, comm, count, "ncclRecv");
}
