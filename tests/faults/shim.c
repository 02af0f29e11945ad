// Preloaded into a test's process: the n-th change of a file below a folder fails as a bad disk would let it fail.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { ERROR = 1, FULL = 2, SHORT = 3, KILL = 4 }; // fails once; from then on no space; half a write and then no space; dies

static char root[4096];
static long target, seen;
static int mode, code;

void fault_arm(const char *folder, long n, int how, int error) {
    seen = 0; target = n; mode = how; code = error;
    snprintf(root, sizeof root, "%s", folder);
}
long fault_seen(void) { return seen; }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int below(const char *path) {
    if (!root[0] || !path) return 0;
    if (path[0] == '/') return !strncmp(path, root, strlen(root));
    char cwd[4096];
    return getcwd(cwd, sizeof cwd) && !strncmp(cwd, root, strlen(root));
}
static int below_fd(int fd) {
    if (!root[0]) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}
// 0: go on; 1: fail with errno; 2: write half of it
static int strikes(int writes) {
    seen++;
    if (!target || seen < target) return 0;
    if (seen == target) {
        if (mode == KILL) { if (writes) return 2; raise(SIGKILL); }
        if (mode == SHORT && writes) return 2;
        errno = code;
        return 1;
    }
    if (mode == ERROR) return 0;
    errno = ENOSPC;
    return 1;
}
static ssize_t half(int fd, const void *data, size_t size, ssize_t (*real)(int, const void *, size_t)) {
    ssize_t n = real(fd, data, size / 2);
    if (mode == KILL) raise(SIGKILL);
    if (n == 0) { errno = ENOSPC; return -1; }
    return n;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!below_fd(fd)) return real(fd, data, size);
    switch (strikes(1)) { case 1: return -1; case 2: return half(fd, data, size, real); }
    return real(fd, data, size);
}
#define SIMPLE(type, name, declared, passed, where) \
    type name declared { REAL(name); if (where && strikes(0)) return -1; return real passed; }
SIMPLE(int, fsync, (int fd), (fd), below_fd(fd))
SIMPLE(int, fdatasync, (int fd), (fd), below_fd(fd))
SIMPLE(int, ftruncate, (int fd, off_t size), (fd, size), below_fd(fd))
SIMPLE(int, ftruncate64, (int fd, off64_t size), (fd, size), below_fd(fd))
SIMPLE(int, rename, (const char *a, const char *b), (a, b), below(b))
SIMPLE(int, renameat, (int x, const char *a, int y, const char *b), (x, a, y, b), below(b))
SIMPLE(int, link, (const char *a, const char *b), (a, b), below(b))
SIMPLE(int, linkat, (int x, const char *a, int y, const char *b, int f), (x, a, y, b, f), below(b))
SIMPLE(int, mkdir, (const char *path, mode_t m), (path, m), below(path))
SIMPLE(ssize_t, pwrite, (int fd, const void *d, size_t n, off_t o), (fd, d, n, o), below_fd(fd))
SIMPLE(ssize_t, pwrite64, (int fd, const void *d, size_t n, off64_t o), (fd, d, n, o), below_fd(fd))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); va_list list; va_start(list, flags); mode_t m = va_arg(list, mode_t); va_end(list); \
        if ((flags & O_CREAT) && below(path) && strikes(0)) return -1; \
        return real(path, flags, m); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); va_list list; va_start(list, flags); mode_t m = va_arg(list, mode_t); va_end(list); \
        if ((flags & O_CREAT) && below(path) && strikes(0)) return -1; \
        return real(at, path, flags, m); }
OPENAT(openat)
OPENAT(openat64)
