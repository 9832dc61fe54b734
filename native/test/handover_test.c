/* The socket for descriptors: who is met, what is received and when, and that nothing is left open. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "tensorbus.h"

#define OK(call) CHECK((call) == TB_OK, "%s", err.message)

static tb_error err;
static char folder[] = "/tmp/tensorbus-handover-test-XXXXXX";
static char path[128];
static uint64_t handover;
static const uint8_t secret[16] = "0123456789abcde";
static const uint8_t other[16] = "another secret!";
static int32_t fds[TB_HANDOVER_MAX];
static uint32_t count;

static int open_descriptors(void) {
    int open = 0;
    for (int fd = 0; fd < 1024; fd++) {
        open += fcntl(fd, F_GETFD) >= 0;
    }
    return open;
}

static int visit(const void *bytes, size_t length) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "%s", strerror(errno));
    CHECK(send(fd, bytes, length, 0) == (ssize_t)length, "%s", strerror(errno));
    return fd;
}

static void hand_over(int fd, uint64_t number, int descriptor, uint32_t times) {
    struct iovec body = {.iov_base = &number, .iov_len = sizeof number};
    char control[CMSG_SPACE(TB_HANDOVER_MAX * sizeof(int))] __attribute__((aligned(8))) = {0};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = CMSG_SPACE(times * sizeof(int));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(times * sizeof(int));
    for (uint32_t i = 0; i < times; i++) {
        memcpy(CMSG_DATA(header) + i * sizeof(int), &descriptor, sizeof(int));
    }
    CHECK(sendmsg(fd, &message, 0) == sizeof number, "%s", strerror(errno));
}

static void close_taken(void) {
    for (uint32_t i = 0; i < count; i++) {
        close(fds[i]);
    }
}

static int32_t take(uint64_t number) {
    return tb_handover_take(handover, secret, number, fds, TB_HANDOVER_MAX, &count, &err);
}

/* Descriptors come with their number, whatever was sent before; those of commands that never came are closed. */
static void hand_overs(int memory) {
    CHECK(take(1) == TB_ETENSOR_MISSING, "nobody is there");
    int client = visit(secret, sizeof secret);
    CHECK(take(1) == TB_ETENSOR_MISSING, "nothing was handed over");
    hand_over(client, 1, memory, 1);
    OK(take(1));
    CHECK(count == 1 && (fcntl(fds[0], F_GETFD) & FD_CLOEXEC) != 0, "one, close-on-exec");
    struct stat mine, theirs;
    CHECK(fstat(memory, &mine) == 0 && fstat(fds[0], &theirs) == 0 && mine.st_ino == theirs.st_ino, "the same file");
    close_taken();
    hand_over(client, 2, memory, 3);
    hand_over(client, 5, memory, TB_HANDOVER_MAX);
    int before = open_descriptors();
    OK(take(5));
    CHECK(count == TB_HANDOVER_MAX && open_descriptors() == before + TB_HANDOVER_MAX, "only those of the fifth");
    close_taken();
    hand_over(client, 9, memory, 2);
    CHECK(take(8) == TB_EPROTOCOL && open_descriptors() == before, "a later one is not given for an earlier one");
    CHECK(send(client, "abc", 3, 0) == 3 && take(10) == TB_EPROTOCOL, "garbage");
    close(client);
    OK(tb_handover_forget(handover, secret, &err));
    CHECK(take(11) == TB_ETENSOR_MISSING, "forgotten");
}

/* A client that does not know a secret is refused; one that is slow is waited for, but keeps nobody out. */
static void strangers(int memory) {
    OK(tb_handover_expect(handover, secret, (uint32_t)geteuid(), &err));
    int wrong = visit(other, sizeof other);
    int slow = visit(secret, 7);
    CHECK(take(1) == TB_ETENSOR_MISSING, "neither is the client");
    char byte;
    CHECK(recv(wrong, &byte, 1, MSG_DONTWAIT) == 0, "a wrong secret ends the connection");
    CHECK(send(slow, secret + 7, 9, 0) == 9, "the rest");
    hand_over(slow, 1, memory, 1);
    OK(take(1));
    close_taken();
    int second = visit(secret, sizeof secret);
    CHECK(take(2) == TB_ETENSOR_MISSING && recv(second, &byte, 1, MSG_DONTWAIT) == 0, "a secret serves once");
    close(second);
    close(wrong);
    close(slow);
    OK(tb_handover_forget(handover, secret, &err));
    OK(tb_handover_expect(handover, secret, (uint32_t)geteuid() + 1, &err));
    int foreign = visit(secret, sizeof secret);
    CHECK(take(1) == TB_ETENSOR_MISSING && recv(foreign, &byte, 1, MSG_DONTWAIT) == 0, "another user's secret");
    close(foreign);
    OK(tb_handover_forget(handover, secret, &err));
}

static void crowd(int memory) {
    OK(tb_handover_expect(handover, secret, (uint32_t)geteuid(), &err));
    int idle[200];
    for (int i = 0; i < 200; i++) {
        idle[i] = visit(secret, 1);
    }
    int client = visit(secret, sizeof secret);
    hand_over(client, 1, memory, 1);
    OK(take(1));
    close_taken();
    close(client);
    for (int i = 0; i < 200; i++) {
        close(idle[i]);
    }
    OK(tb_handover_forget(handover, secret, &err));
}

static void lend(void) {
    char name[64];
    uint64_t heart;
    snprintf(name, sizeof name, "/tensorbus-%u-handover-%d", (unsigned)geteuid(), (int)getpid());
    OK(tb_heartbeat_start(name, 5, &heart, &err));
    OK(tb_handover_expect(handover, secret, (uint32_t)geteuid(), &err));
    CHECK(tb_handover_lend(handover, secret, name, &err) == TB_EPROTOCOL, "there is no connection");
    int client = visit(secret, sizeof secret);
    OK(tb_handover_lend(handover, secret, name, &err));
    char byte;
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec body = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK(recvmsg(client, &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message) != NULL, "a descriptor");
    int lent;
    memcpy(&lent, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof lent);
    uint64_t beat = 0;
    CHECK(pread(lent, &beat, sizeof beat, 0) == sizeof beat && beat != 0, "it beats");
    CHECK(pwrite(lent, &beat, sizeof beat, 0) < 0, "it cannot be written");
    close(lent);
    close(client);
    OK(tb_heartbeat_stop(heart, &err));
    CHECK(tb_handover_lend(handover, secret, name, &err) == TB_ESYSTEM, "the heart is gone");
}

static bool is_endless;
static int accepted;

/* In front of the C library's: on demand another stranger has come each time, and left. */
int accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags) {
    if (!is_endless) {
        return (int)syscall(SYS_accept4, fd, address, bytes, flags);
    }
    CHECK(++accepted <= 2 * SOMAXCONN, "who connects without end keeps the caller");
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | flags, 0, ends) == 0, "%s", strerror(errno));
    close(ends[1]);
    return ends[0];
}

static void flood(void) {
    is_endless = true;
    CHECK(take(1) == TB_ETENSOR_MISSING && accepted > 0, "no client has come");
    is_endless = false;
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL, "a folder");
    snprintf(path, sizeof path, "%s/client.fds", folder);
    int memory = memfd_create("test", MFD_CLOEXEC);
    uint64_t second;
    OK(tb_handover_open(path, 0600, &handover, &err));
    CHECK(tb_handover_open(path, 0600, &second, &err) == TB_ESYSTEM && err.os_errno == EADDRINUSE, "it is taken");
    struct stat status;
    CHECK(stat(path, &status) == 0 && (status.st_mode & 0777) == 0600, "nobody else's");
    int before = open_descriptors();
    OK(tb_handover_expect(handover, secret, (uint32_t)geteuid(), &err));
    hand_overs(memory);
    strangers(memory);
    crowd(memory);
    flood();
    lend();
    CHECK(open_descriptors() <= before + 64, "strangers are bounded: %d", open_descriptors() - before);
    OK(tb_handover_close(handover, &err));
    CHECK(open_descriptors() == before - 1, "nothing stays: %d", open_descriptors() - before);
    CHECK(take(1) == TB_ECLOSED, "it was closed");
    unlink(path);
    rmdir(folder);
    return 0;
}
