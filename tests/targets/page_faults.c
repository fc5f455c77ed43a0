/* Touches memory by a plan: who brought which page is known, and which are still there.
 *
 * Commands, each answered by "done":
 *   go      the plan below
 *   storm   the same by another 32 MiB that stay, after 120 times 16 MiB that do not
 *   child   a forked child touches pages of its own and exits
 *   again   touches what `keep` has kept, which is there
 *
 * In "done N": N is what the kernel has counted of its faults, minor and major, in that command.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "handshake.h"

enum {
    PAGE_BYTES = 4096,
    KEPT = 1000,
    DROPPED = 700,
    TAKEN_OVER = 300,
    READ = 200,
    OF_THREAD = 150,
    POPULATED = 120,
    HUGE_PAGES = 512,
    HUGE_BYTES = HUGE_PAGES * PAGE_BYTES,
    STORM_KEPT = 8192,
    STORM_DROPPED = 4096,
    STORM_ROUNDS = 120,
};

static char *kept;

NAMED char *map(long pages, int flags, int advice) {
    int all = MAP_PRIVATE | MAP_ANONYMOUS | flags;
    char *start = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, all, -1, 0);
    if (start == MAP_FAILED || madvise(start, pages * PAGE_BYTES, advice) != 0) {
        _exit(112);
    }
    return start;
}

NAMED void touch(char *start, long pages) {
    for (long page = 0; page < pages; page++) {
        *(volatile char *)(start + page * PAGE_BYTES) = 1;
    }
}

NAMED void keep(void) {
    kept = map(KEPT, 0, MADV_NOHUGEPAGE);
    touch(kept, KEPT);
    NO_TAIL_CALL();
}

NAMED void drop(void) {
    char *start = map(DROPPED, 0, MADV_NOHUGEPAGE);
    touch(start, DROPPED);
    munmap(start, DROPPED * PAGE_BYTES);
    NO_TAIL_CALL();
}

/* Brings pages that another brings again once they are gone. */
NAMED char *touch_first(void) {
    char *start = map(TAKEN_OVER, 0, MADV_NOHUGEPAGE);
    touch(start, TAKEN_OVER);
    madvise(start, TAKEN_OVER * PAGE_BYTES, MADV_DONTNEED);
    NO_TAIL_CALL();
    return start;
}

NAMED void touch_again(char *start) {
    touch(start, TAKEN_OVER);
    NO_TAIL_CALL();
}

/* It is the kernel that touches these. */
NAMED void read_into(void) {
    char *start = map(READ, 0, MADV_NOHUGEPAGE);
    int zeroes = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (read(zeroes, start, READ * PAGE_BYTES) != READ * PAGE_BYTES) {
        _exit(112);
    }
    close(zeroes);
    NO_TAIL_CALL();
}

NAMED void *touch_in_thread(void *start) {
    touch(start, OF_THREAD);
    NO_TAIL_CALL();
    return NULL;
}

/* Nobody touches these: they are there before the call returns. */
NAMED void populate(void) {
    char *start = map(POPULATED, MAP_POPULATE, MADV_NORMAL);
    touch(start, POPULATED);
    NO_TAIL_CALL();
}

/* Read, and never written: the page of zeroes takes no memory. */
NAMED long read_only(void) {
    char *start = map(KEPT, 0, MADV_NOHUGEPAGE);
    long sum = 0;
    for (long page = 0; page < KEPT; page++) {
        sum += *(volatile char *)(start + page * PAGE_BYTES);
    }
    return sum;
}

/* One fault where the kernel has a huge page for it, one for each page where not. */
NAMED void touch_huge(void) {
    char *start = map(2 * HUGE_PAGES, 0, MADV_HUGEPAGE);
    char *aligned = (char *)(((unsigned long)start + HUGE_BYTES - 1) & -(unsigned long)HUGE_BYTES);
    touch(aligned, HUGE_PAGES);
    NO_TAIL_CALL();
}

/* Pages that malloc touches for itself, and the program after it. */
NAMED void allocate(void) {
    for (int i = 0; i < 500; i++) {
        char *block = malloc(10000);
        memset(block, 1, 10000);
        ESCAPE(block);
    }
}

NAMED void run_plan(void) {
    pthread_t thread;
    keep();
    drop();
    touch_again(touch_first());
    read_into();
    pthread_create(&thread, NULL, touch_in_thread, map(OF_THREAD, 0, MADV_NOHUGEPAGE));
    pthread_join(thread, NULL);
    populate();
    if (read_only() != 0) {
        _exit(112);
    }
    touch_huge();
    allocate();
    NO_TAIL_CALL();
}

NAMED void storm_keep(void) {
    touch(map(STORM_KEPT, 0, MADV_NOHUGEPAGE), STORM_KEPT);
    NO_TAIL_CALL();
}

NAMED void storm_drop(void) {
    char *start = map(STORM_DROPPED, 0, MADV_NOHUGEPAGE);
    for (int round = 0; round < STORM_ROUNDS; round++) {
        touch(start, STORM_DROPPED);
        madvise(start, STORM_DROPPED * PAGE_BYTES, MADV_DONTNEED);
    }
    munmap(start, STORM_DROPPED * PAGE_BYTES);
    NO_TAIL_CALL();
}

NAMED void touch_in_child(void) {
    touch(map(KEPT, 0, MADV_NOHUGEPAGE), KEPT);
    NO_TAIL_CALL();
}

NAMED void fork_child(void) {
    pid_t child = fork();
    if (child == 0) {
        touch_in_child();
        _exit(0);
    }
    waitpid(child, NULL, 0);
    NO_TAIL_CALL();
}

static long faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt + usage.ru_majflt;
}

int main(void) {
    char command[COMMAND_BYTES], line[COMMAND_BYTES];
    answer("ready\n");
    for (;;) {
        next_command(command);
        long before = faults();
        if (strcmp(command, "quit") == 0) {
            return 0;
        } else if (strcmp(command, "go") == 0) {
            run_plan();
        } else if (strcmp(command, "storm") == 0) {
            storm_drop();
            storm_keep();
        } else if (strcmp(command, "child") == 0) {
            fork_child();
        } else if (strcmp(command, "again") == 0) {
            touch(kept, KEPT);
        }
        snprintf(line, sizeof line, "done %ld\n", faults() - before);
        answer(line);
    }
}
