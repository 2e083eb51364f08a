/* Direct input or output on a block device, one request at a time: guestio DEVICE read|write seq|rand BLOCK COUNT
   Prints the seconds that it took. What is written cannot be compressed and is flushed at the end. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>

static uint64_t state = 88172645463325252ull;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    int write_it = !strcmp(argv[2], "write"), random = !strcmp(argv[3], "rand");
    size_t block = strtoul(argv[4], NULL, 10), count = strtoul(argv[5], NULL, 10);
    int disk = open(argv[1], (write_it ? O_RDWR : O_RDONLY) | O_DIRECT);
    uint64_t size;
    void *buffer;
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size)) fail(argv[1]);
    if (posix_memalign(&buffer, 4096, block)) fail("memory");
    for (size_t i = 0; i < block / 8; i++) ((uint64_t *)buffer)[i] = next();
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (size_t i = 0; i < count; i++) {
        /* Random requests stay within the first GiB, which is written by then. */
        uint64_t blocks = (size < 1ull << 30 ? size : 1ull << 30) / block;
        off_t at = (random ? next() % blocks : i % (size / block)) * block;
        ((uint64_t *)buffer)[0] = next();
        if ((write_it ? pwrite(disk, buffer, block, at) : pread(disk, buffer, block, at)) != (ssize_t)block) fail("transfer");
    }
    if (write_it && fsync(disk)) fail("fsync");
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.6f\n", end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9);
    return 0;
}
