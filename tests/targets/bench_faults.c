/* Touches fresh pages as fast as it can: the target of `cargo xtask bench` for page faults.
 *
 *   "run <ms>"  touches the pages of 16 MiB and gives them back, again and again for that time.
 *               "done <faults> <nanoseconds>", the time without that of giving back
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "handshake.h"

enum { PAGE_BYTES = 4096, PAGES = 4096, FRAMES = 8 };

static char *start;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Calls itself until the stack is as deep as that of a program, and touches at the bottom. */
NAMED void touch(int frames_to_go) {
    if (frames_to_go > 0) {
        touch(frames_to_go - 1);
        NO_TAIL_CALL();
        return;
    }
    for (long page = 0; page < PAGES; page++) {
        *(volatile char *)(start + page * PAGE_BYTES) = 1;
    }
}

int main(void) {
    char command[COMMAND_BYTES], line[COMMAND_BYTES];
    unsigned ms;
    int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    start = mmap(NULL, PAGES * PAGE_BYTES, protection, flags, -1, 0);
    if (start == MAP_FAILED || madvise(start, PAGES * PAGE_BYTES, MADV_NOHUGEPAGE) != 0) {
        return 1;
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        if (sscanf(command, "run %u", &ms) != 1) {
            return 2;
        }
        uint64_t until_ns = now_ns() + (uint64_t)ms * 1000000, faults = 0, taken_ns = 0;
        do {
            uint64_t began_ns = now_ns();
            touch(FRAMES);
            taken_ns += now_ns() - began_ns;
            faults += PAGES;
            madvise(start, PAGES * PAGE_BYTES, MADV_DONTNEED);
        } while (now_ns() < until_ns);
        snprintf(line, sizeof line, "done %llu %llu\n", (unsigned long long)faults,
                 (unsigned long long)taken_ns);
        answer(line);
    }
}
