#include "host/object.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

#define STACK_BYTES (256 * 1024) /* room for the sanitizers' larger frames */

typedef struct tb_slot {
    void *object;
    void (*destroy)(void *);
    uint32_t generation; /* of the object in the slot; never 0 */
    uint32_t users;
    enum tb_bus_kind kind;
    bool open;
} tb_slot;

static pthread_mutex_t table_mutex = PTHREAD_MUTEX_INITIALIZER;
static tb_slot *table;
static uint32_t table_slots;

/* The slot of a handle, or NULL. The mutex is held. */
static tb_slot *slot_of(uint64_t handle) {
    uint32_t index = (uint32_t)handle;
    if (index >= table_slots || table[index].generation != (uint32_t)(handle >> 32)) {
        return NULL;
    }
    return &table[index];
}

/* Takes the object out of a slot that nobody needs any more; the caller destroys it outside of the mutex. */
static void *vacate(tb_slot *slot) {
    void *object = slot->object;
    slot->object = NULL;
    slot->generation = slot->generation == UINT32_MAX ? 1 : slot->generation + 1;
    return object;
}

static int grow_table(void) {
    uint32_t slots = table_slots == 0 ? 16 : table_slots * 2;
    if (slots < table_slots || (uint64_t)slots * sizeof *table > SIZE_MAX) {
        return ENOMEM;
    }
    tb_slot *larger = realloc(table, slots * sizeof *table);
    if (larger == NULL) {
        return ENOMEM;
    }
    for (uint32_t i = table_slots; i < slots; i++) {
        larger[i] = (tb_slot){.generation = 1};
    }
    table = larger;
    table_slots = slots;
    return 0;
}

int32_t tb_bus_add(enum tb_bus_kind kind, void *object, void (*destroy)(void *), uint64_t *handle,
                   tb_error *err) {
    pthread_mutex_lock(&table_mutex);
    uint32_t index = 0;
    while (index < table_slots && table[index].object != NULL) {
        index++;
    }
    if (index == table_slots && grow_table() != 0) {
        pthread_mutex_unlock(&table_mutex);
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no room for another handle of the bus");
    }
    tb_slot *slot = &table[index];
    slot->object = object;
    slot->destroy = destroy;
    slot->kind = kind;
    slot->users = 0;
    slot->open = true;
    *handle = (uint64_t)slot->generation << 32 | index;
    pthread_mutex_unlock(&table_mutex);
    return TB_OK;
}

void *tb_bus_use(uint64_t handle, enum tb_bus_kind kind, tb_error *err) {
    void *object = NULL;
    pthread_mutex_lock(&table_mutex);
    tb_slot *slot = slot_of(handle);
    if (slot != NULL && slot->open && slot->kind == kind) {
        slot->users++;
        object = slot->object;
    }
    pthread_mutex_unlock(&table_mutex);
    if (object == NULL) {
        tb_fail(err, TB_ECLOSED, -1, 0, "a handle of the bus was closed");
    }
    return object;
}

void tb_bus_end(uint64_t handle) {
    void *object = NULL;
    void (*destroy)(void *) = NULL;
    pthread_mutex_lock(&table_mutex);
    tb_slot *slot = slot_of(handle);
    if (slot != NULL && --slot->users == 0 && !slot->open) {
        destroy = slot->destroy;
        object = vacate(slot);
    }
    pthread_mutex_unlock(&table_mutex);
    if (object != NULL) {
        destroy(object);
    }
}

int32_t tb_bus_close(uint64_t handle, enum tb_bus_kind kind, tb_error *err) {
    void *object = NULL;
    void (*destroy)(void *) = NULL;
    pthread_mutex_lock(&table_mutex);
    tb_slot *slot = slot_of(handle);
    bool known = slot != NULL && slot->open && slot->kind == kind;
    if (known) {
        slot->open = false;
        if (slot->users == 0) {
            destroy = slot->destroy;
            object = vacate(slot);
        }
    }
    pthread_mutex_unlock(&table_mutex);
    if (!known) {
        return tb_fail(err, TB_ECLOSED, -1, 0, "a handle of the bus was closed before");
    }
    if (object != NULL) {
        destroy(object);
    }
    return TB_OK;
}

/* The signal that gets a thread of the bus out of the kernel, or 0 where the process has none to spare. */
static int interrupt_signal;
static pthread_once_t interrupt_once = PTHREAD_ONCE_INIT;

static void do_nothing(int signal_number) {
    (void)signal_number;
}

/* Takes a real-time signal that nobody else uses. Its handler does nothing: calls end, and do not restart. */
static void choose_signal(void) {
    for (int candidate = SIGRTMAX; candidate >= SIGRTMIN; candidate--) {
        struct sigaction current;
        if (sigaction(candidate, NULL, &current) != 0 || (current.sa_flags & SA_SIGINFO) != 0 ||
            current.sa_handler != SIG_DFL) {
            continue;
        }
        struct sigaction action = {.sa_handler = do_nothing};
        sigemptyset(&action.sa_mask);
        if (sigaction(candidate, &action, NULL) == 0) {
            interrupt_signal = candidate;
            return;
        }
    }
}

static void *run_thread(void *argument) {
    tb_bus_thread *thread = argument;
    thread->run(thread->argument);
    atomic_store_explicit(&thread->done, true, memory_order_release);
    return NULL;
}

int tb_bus_thread_start(tb_bus_thread *thread, void (*run)(void *argument), void *argument) {
    pthread_once(&interrupt_once, choose_signal);
    if (interrupt_signal == 0) {
        return EAGAIN;
    }
    thread->run = run;
    thread->argument = argument;
    atomic_init(&thread->stop, false);
    atomic_init(&thread->done, false);
    pthread_attr_t attributes;
    int rc = pthread_attr_init(&attributes);
    if (rc != 0) {
        return rc;
    }
    rc = pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t others, before;
    sigfillset(&others);
    sigdelset(&others, interrupt_signal);
    if (rc == 0) {
        rc = pthread_sigmask(SIG_SETMASK, &others, &before);
    }
    if (rc == 0) {
        rc = pthread_create(&thread->thread, &attributes, run_thread, thread);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attributes);
    return rc;
}

void tb_bus_thread_end(tb_bus_thread *thread) {
    atomic_store_explicit(&thread->stop, true, memory_order_release);
    const struct timespec pause = {.tv_nsec = 200000};
    /* A signal that comes right before the thread enters the kernel is lost: hence again and again. */
    while (!atomic_load_explicit(&thread->done, memory_order_acquire)) {
        pthread_kill(thread->thread, interrupt_signal);
        nanosleep(&pause, NULL);
    }
    pthread_join(thread->thread, NULL);
}

uint64_t tb_bus_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct timespec tb_bus_timespec(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

int32_t tb_bus_check_owner(int fd, const char *what, const char *name, tb_error *err) {
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s %s cannot be examined", what, name);
    }
    if (!S_ISREG(status.st_mode)) {
        return tb_fail(err, TB_EFOREIGN, -1, 0, "%s %s is not a plain file", what, name);
    }
    if (status.st_uid != geteuid()) {
        return tb_fail(err, TB_EFOREIGN, -1, 0, "%s %s belongs to user %u", what, name,
                       (unsigned)status.st_uid);
    }
    if ((status.st_mode & 077) != 0) {
        return tb_fail(err, TB_EFOREIGN, -1, 0, "%s %s is open to others: mode %03o", what, name,
                       (unsigned)status.st_mode & 0777);
    }
    return TB_OK;
}

int32_t tb_bus_open_lock_file(const char *path, int *fd, tb_error *err) {
    int file = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (file < 0) {
        return tb_fail(err, errno == ENOSPC ? TB_ENO_SPACE : TB_ESYSTEM, -1, errno,
                       "lock file %s cannot be opened", path);
    }
    int32_t rc = tb_bus_check_owner(file, "lock file", path, err);
    if (rc != TB_OK) {
        close(file);
        return rc;
    }
    *fd = file;
    return TB_OK;
}

int tb_bus_byte_lock(int fd, int command, short type, uint64_t offset) {
    if (offset > (uint64_t)INT64_MAX - 1) {
        return EINVAL;
    }
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    for (;;) {
        if (fcntl(fd, command, &lock) == 0) {
            return command == F_OFD_GETLK && lock.l_type != F_UNLCK ? EAGAIN : 0;
        }
        if (errno != EINTR || command == F_OFD_SETLKW) {
            return errno == EACCES ? EAGAIN : errno;
        }
    }
}
