/* Linked into the prebuilt library alone: what glibc has had for less long than the systems that it is to run on, by system
 * calls. The engine calls these by their usual names. Whatever else is newer, the linker refuses: scripts/package/native.mjs. */
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Functions of glibc 2.33; before, its headers made them of __xstat. The struct is the kernel's on 64-bit machines. */
int stat(const char *path, struct stat *status) {
    return (int)syscall(SYS_newfstatat, AT_FDCWD, path, status, 0);
}

int fstat(int fd, struct stat *status) {
    return (int)syscall(SYS_fstat, fd, status);
}

ssize_t getrandom(void *bytes, size_t length, unsigned flags) {
    return syscall(SYS_getrandom, bytes, length, flags);
}

int memfd_create(const char *name, unsigned flags) {
    return (int)syscall(SYS_memfd_create, name, flags);
}

/* Part of what every program and library is linked with, not of libc.so.6: it names the library that it is called for. */
extern void *__dso_handle __attribute__((visibility("hidden")));
int __cxa_atexit(void (*function)(void *), void *argument, void *library);

int atexit(void (*function)(void)) {
    return __cxa_atexit((void (*)(void *))function, NULL, __dso_handle);
}
