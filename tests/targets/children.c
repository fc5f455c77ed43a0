/* A process whose children allocate and free, which is no business of a trace of the parent.
 *
 *   fork    20 children, made while a thread allocates; each allocates, and frees blocks that it has from the
 *           parent, at the addresses that they have there too
 *   exec    20 children by vfork and exec, 20 by posix_spawn, of this program
 *   keep    a child that allocates and frees without end
 *   end     ends that child; the answer tells how many nanoseconds a pair took it at the best
 *
 * The parent itself allocates in leak_in_parent and make_pairs only; the figures stand there.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "handshake.h"

enum { CHILDREN = 20, PAIRS = 100000, BLOCKS = 10, CHILD_CODE = 42, TIMED_PAIRS = 1000 };

static void *of_parent[BLOCKS];
static char *own_name;

NAMED void require(int condition) {
    if (!condition) {
        _exit(112);
    }
}

/* 10 blocks of 1,000 bytes, outstanding. */
NAMED void leak_in_parent(void) {
    for (int i = 0; i < BLOCKS; i++) {
        of_parent[i] = malloc(1000);
        ESCAPE(of_parent[i]);
        memset(of_parent[i], i, 1000);
    }
}

/* 100,000 blocks of 48 bytes, freed. */
NAMED void *make_pairs(void *argument) {
    for (int i = 0; i < PAIRS; i++) {
        void *block = malloc(48);
        ESCAPE(block);
        free(block);
    }
    return argument;
}

NAMED int allocate_in_child(void) {
    for (int i = 0; i < 100; i++) {
        unsigned char *block = malloc(5000);
        ESCAPE(block);
        memset(block, i, 5000);
        block = realloc(block, 6000);
        ESCAPE(block);
        if (block[4999] != i) {
            return 1;
        }
        if (i % 2) {
            free(block);
        }
    }
    void *mapping = mmap(NULL, 9000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mapping == MAP_FAILED;
}

NAMED int free_what_is_inherited(void) {
    for (int i = 0; i < BLOCKS; i++) {
        unsigned char *block = of_parent[i];
        if (block[0] != i || block[999] != i) {
            return 1;
        }
        if (i % 2) {
            free(block);
        } else {
            block = realloc(block, 50000);
            ESCAPE(block);
        }
    }
    return 0;
}

NAMED void wait_for(pid_t child) {
    int status;
    require(child > 0 && waitpid(child, &status, 0) == child);
    require(WIFEXITED(status) && WEXITSTATUS(status) == CHILD_CODE);
}

NAMED void fork_children(void) {
    pthread_t thread;
    leak_in_parent();
    require(pthread_create(&thread, NULL, make_pairs, NULL) == 0);
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = fork();
        if (child == 0) {
            _exit(allocate_in_child() == 0 && free_what_is_inherited() == 0 ? CHILD_CODE : 1);
        }
        wait_for(child);
    }
    require(pthread_join(thread, NULL) == 0);
    for (int i = 0; i < BLOCKS; i++) {
        require(((unsigned char *)of_parent[i])[999] == i);
    }
}

NAMED void execute_children(void) {
    char *arguments[] = {own_name, "child", NULL};
    leak_in_parent();
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = vfork();
        if (child == 0) {
            execv("/proc/self/exe", arguments);
            _exit(1);
        }
        wait_for(child);
    }
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child;
        require(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) == 0);
        wait_for(child);
    }
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

struct shared {
    atomic_int end;
    atomic_ullong best_ns;
};

static struct shared *shared;
static pid_t kept;

/* Until told to end. The best time is of the last second: `end` is told when the parent asks. */
NAMED void allocate_without_end(void) {
    while (!shared->end) {
        uint64_t begin = now_ns();
        for (int i = 0; i < TIMED_PAIRS; i++) {
            unsigned char *block = malloc(64);
            ESCAPE(block);
            block[63] = 1;
            free(block);
        }
        uint64_t pair_ns = (now_ns() - begin) / TIMED_PAIRS;
        if (pair_ns < shared->best_ns) {
            shared->best_ns = pair_ns;
        }
    }
    _exit(allocate_in_child() == 0 && free_what_is_inherited() == 0 ? CHILD_CODE : 1);
}

NAMED void keep_child(void) {
    shared->end = 0;
    leak_in_parent();
    kept = fork();
    if (kept == 0) {
        allocate_without_end();
    }
}

/* What the child did so far does not count for its best time. */
NAMED void end_child(void) {
    struct timespec half_a_second = {0, 500000000};
    shared->best_ns = UINT64_MAX;
    nanosleep(&half_a_second, NULL);
    shared->end = 1;
    wait_for(kept);
}

int main(int count, char **arguments) {
    own_name = arguments[0];
    if (count > 1) {
        return allocate_in_child() == 0 ? CHILD_CODE : 1;
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(shared != MAP_FAILED);
    /* Its stack and its arena are made before the trace. */
    pthread_t thread;
    require(pthread_create(&thread, NULL, make_pairs, NULL) == 0 && pthread_join(thread, NULL) == 0);
    char command[COMMAND_BYTES], line[COMMAND_BYTES] = "done\n";
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        } else if (strcmp(command, "fork") == 0) {
            fork_children();
        } else if (strcmp(command, "exec") == 0) {
            execute_children();
        } else if (strcmp(command, "keep") == 0) {
            keep_child();
        } else if (strcmp(command, "end") == 0) {
            end_child();
            snprintf(line, sizeof line, "done %llu\n", (unsigned long long)shared->best_ns);
        }
        answer(line);
    }
}
