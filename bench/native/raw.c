#include "raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { RAW_IOVECS = 1024 };

void raw_die(const char *what) {
    perror(what);
    exit(1);
}

void *raw_touched(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        raw_die("mmap");
    }
    memset(memory, 1, bytes);
    return memory;
}

static void connect_pair(int *one, int *other) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1)
        || getsockname(listener, (struct sockaddr *)&address, &length)) {
        raw_die("listen");
    }
    *one = socket(AF_INET, SOCK_STREAM, 0);
    if (*one < 0 || connect(*one, (struct sockaddr *)&address, length)) {
        raw_die("connect");
    }
    *other = accept(listener, NULL, NULL);
    if (*other < 0) {
        raw_die("accept");
    }
    close(listener);
    int yes = 1;
    int ends[] = {*one, *other};
    for (int end = 0; end < 2; end++) {
        if (setsockopt(ends[end], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes)
            || fcntl(ends[end], F_SETFL, O_NONBLOCK)) {
            raw_die("socket options");
        }
    }
}

void raw_mesh_connect(raw_mesh *mesh, int ranks, uint8_t wanted[RAW_RANKS][RAW_RANKS]) {
    mesh->ranks = ranks;
    for (int one = 0; one < ranks; one++) {
        for (int other = 0; other < one; other++) {
            mesh->fd[one][other] = mesh->fd[other][one] = -1;
            if (wanted[one][other] || wanted[other][one]) {
                connect_pair(&mesh->fd[one][other], &mesh->fd[other][one]);
            }
        }
    }
}

/* A rank's pipes to and from its leader. */
typedef struct raw_reins {
    int command[2], answer[2];
} raw_reins;

static void read_whole(int fd, void *to, size_t bytes) {
    if (read(fd, to, bytes) != (ssize_t)bytes) {
        exit(1); /* the leader is gone */
    }
}

static noreturn void be_rank(const raw_mesh *mesh, const raw_program *program, int rank, const raw_reins *reins) {
    void *state = program->setup(mesh, rank);
    for (int checked = 0;;) {
        if (write(reins->answer[1], "r", 1) != 1) {
            exit(1);
        }
        size_t command[2] = {0};
        read_whole(reins->command[0], command, sizeof command);
        program->round(state, command[0], command[1]);
        if (!checked && command[1] == 0) {
            program->check(state);
            checked = 1;
        }
    }
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void await_all(const raw_reins *reins, int ranks) {
    char ready;
    for (int rank = 0; rank < ranks; rank++) {
        if (read(reins[rank].answer[0], &ready, 1) != 1) {
            fprintf(stderr, "rank %d ended\n", rank);
            exit(1);
        }
    }
}

void raw_lead(raw_mesh *mesh, const raw_program *program) {
    raw_reins reins[RAW_RANKS];
    signal(SIGPIPE, SIG_IGN);
    for (int rank = 0; rank < mesh->ranks; rank++) {
        if (pipe(reins[rank].command) || pipe(reins[rank].answer)) {
            raw_die("pipe");
        }
        pid_t child = fork();
        if (child < 0) {
            raw_die("fork");
        }
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            be_rank(mesh, program, rank, &reins[rank]);
        }
        close(reins[rank].answer[1]);
    }
    await_all(reins, mesh->ranks);
    puts("ready");
    fflush(stdout);
    size_t command[2];
    while (scanf(" run %zu %zu", &command[0], &command[1]) == 2) {
        uint64_t start = now_ns();
        for (int rank = 0; rank < mesh->ranks; rank++) {
            if (write(reins[rank].command[1], command, sizeof command) != sizeof command) {
                raw_die("write");
            }
        }
        await_all(reins, mesh->ranks);
        printf("%lu\n", now_ns() - start);
        fflush(stdout);
    }
}

/* The next runs of a flow, up to call_bytes. */
static int next_runs(const raw_flow *flow, size_t call_bytes, struct iovec *runs) {
    const raw_box *box = &flow->box;
    size_t per_tensor = box->rows * box->run, at = flow->done, left = raw_box_bytes(box) - at;
    int count = 0;
    if (left > call_bytes) {
        left = call_bytes;
    }
    while (left > 0 && count < RAW_IOVECS) {
        size_t in_tensor = at % per_tensor, in_run = in_tensor % box->run;
        uint8_t *from = box->first + at / per_tensor * box->tensor_bytes + in_tensor / box->run * box->stride + in_run;
        size_t bytes = box->stride == box->run ? per_tensor - in_tensor : box->run - in_run;
        if (bytes > left) {
            bytes = left;
        }
        runs[count++] = (struct iovec){from, bytes};
        at += bytes;
        left -= bytes;
    }
    return count;
}

static void account(raw_flow *flow, ssize_t moved, const char *what) {
    if (moved > 0) {
        flow->done += (size_t)moved;
    } else if (moved == 0 || (errno != EAGAIN && errno != EINTR)) {
        raw_die(what);
    }
}

void raw_flow_send(raw_flow *flow, size_t call_bytes) {
    struct iovec runs[RAW_IOVECS];
    struct msghdr message = {.msg_iov = runs, .msg_iovlen = (size_t)next_runs(flow, call_bytes, runs)};
    account(flow, sendmsg(flow->fd, &message, MSG_NOSIGNAL), "sendmsg");
}

void raw_flow_receive(raw_flow *flow, size_t call_bytes) {
    struct iovec runs[RAW_IOVECS];
    account(flow, readv(flow->fd, runs, next_runs(flow, call_bytes, runs)), "readv");
}

void raw_read_sizes(int argc, char **argv, const raw_sizes *sizes) {
    if (argc != 6) {
        fprintf(stderr, "%s SOURCES TARGETS TENSORS ROWS COLUMNS\n", argv[0]);
        exit(2);
    }
    size_t *numbers[] = {sizes->sources, sizes->targets, sizes->tensors, sizes->rows, sizes->columns};
    for (int index = 0; index < 5; index++) {
        *numbers[index] = strtoul(argv[index + 1], NULL, 10);
    }
    size_t sources = *sizes->sources;
    size_t targets = *sizes->targets;
    if (sources == 0 || targets == 0 || sources + targets > RAW_RANKS || *sizes->rows % sources != 0
        || *sizes->columns % targets != 0) {
        fprintf(stderr, "%s: sizes that do not divide\n", argv[0]);
        exit(2);
    }
}

void raw_lead_sides(size_t sources, size_t targets, const raw_program *program) {
    static uint8_t wanted[RAW_RANKS][RAW_RANKS];
    for (size_t source = 0; source < sources; source++) {
        for (size_t target = 0; target < targets; target++) {
            wanted[source][sources + target] = 1;
        }
    }
    static raw_mesh mesh;
    raw_mesh_connect(&mesh, (int)(sources + targets), wanted);
    raw_lead(&mesh, program);
}
