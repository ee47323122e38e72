/* What a machine does to a node, for one process: a wall clock that is set, a disk that takes its time. Loaded with
 * LD_PRELOAD; UPSET_FILE names a file of two 64-bit numbers, which may change at any time: nanoseconds that the wall clock is
 * off, and microseconds that each sync takes longer. The monotonic clock is left alone, as it is when somebody sets a clock. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const int64_t calm[2];
static const volatile int64_t *upset = calm;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("UPSET_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(NULL, sizeof calm, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED)
        upset = page;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) {
        int64_t ns = time->tv_sec * INT64_C(1000000000) + time->tv_nsec + upset[0];
        time->tv_sec = ns / 1000000000;
        time->tv_nsec = ns % 1000000000;
    }
    return result;
}

static void hesitate(void) {
    if (upset[1] > 0)
        usleep(upset[1]);
}

int fsync(int file) {
    hesitate();
    return syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    hesitate();
    return syscall(SYS_fdatasync, file);
}
