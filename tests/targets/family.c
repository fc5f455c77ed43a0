/* Makes processes, with a plan for each.
 *
 * "go"     makes 40 blocks of 100 bytes, then forks three children. Child number i frees ten of the inherited
 *          blocks, leaves 10 * i blocks of 1,000 * i bytes, forks a grandchild that leaves 3 blocks of 7,777
 *          bytes, waits for it, and exits with i. Then the parent leaves 5 blocks of
 *          10,000 bytes and frees ten of the 40. The answer "done <pid> <pid> <pid> <grandchild> ..." has the
 *          three children, then their children.
 * "spawn"  starts this program by posix_spawn with the argument "leave", which leaves 4 blocks of 5,000 bytes;
 *          "done <pid>".
 * "speed"  forks a child that makes malloc/free pairs in short loops for up to five seconds, until the best of
 *          ten loops in a row takes less than 200 ns per pair; "done <best ns per pair> <milliseconds>".
 */
#define _GNU_SOURCE
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

#include "handshake.h"

extern char **environ;

enum { CHILDREN = 3, INHERITED = 40, FAST_NS = 200 };

static void *inherited[INHERITED];
static int answers[2];

NAMED void leave(int count, size_t bytes) {
    for (int i = 0; i < count; i++) {
        void *block = malloc(bytes);
        ESCAPE(block);
    }
}

NAMED void grandchild(void) {
    leave(3, 7777);
    _exit(0);
}

static int exit_code(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) {
        _exit(114);
    }
    return WEXITSTATUS(status);
}

NAMED void child(int number) {
    for (int i = 0; i < 10; i++) {
        free(inherited[i]);
    }
    leave(10 * number, 1000 * (size_t)number);
    pid_t pid = fork();
    if (pid == 0) {
        grandchild();
    }
    if (exit_code(pid) != 0 || write(answers[1], &pid, sizeof pid) != sizeof pid) {
        _exit(115);
    }
    _exit(number);
}

static void go(void) {
    char line[COMMAND_BYTES * 2];
    pid_t children[CHILDREN], grandchildren[CHILDREN];
    for (int i = 0; i < INHERITED; i++) {
        inherited[i] = malloc(100);
    }
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            child(i + 1);
        }
        if (exit_code(children[i]) != i + 1
            || read(answers[0], &grandchildren[i], sizeof(pid_t)) != sizeof(pid_t)) {
            _exit(116);
        }
    }
    leave(5, 10000);
    for (int i = 0; i < 10; i++) {
        free(inherited[i]);
    }
    snprintf(line, sizeof line, "done %d %d %d %d %d %d\n", children[0], children[1], children[2],
             grandchildren[0], grandchildren[1], grandchildren[2]);
    answer(line);
}

static void spawn(void) {
    char line[COMMAND_BYTES];
    char *arguments[] = {"family", "leave", NULL};
    pid_t pid;
    if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environ) != 0 || exit_code(pid) != 0) {
        _exit(117);
    }
    snprintf(line, sizeof line, "done %d\n", pid);
    answer(line);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* The best of ten loops of a hundred pairs, ns per pair. */
static uint64_t pair_ns(void) {
    uint64_t best = UINT64_MAX;
    for (int loop = 0; loop < 10; loop++) {
        uint64_t start = now_ns();
        for (int i = 0; i < 100; i++) {
            void *block = malloc(100);
            ESCAPE(block);
            free(block);
        }
        uint64_t each = (now_ns() - start) / 100;
        best = each < best ? each : best;
    }
    return best;
}

static void speed(void) {
    char line[COMMAND_BYTES];
    uint64_t result[2];
    pid_t pid = fork();
    if (pid == 0) {
        uint64_t start = now_ns();
        do {
            result[0] = pair_ns();
            result[1] = (now_ns() - start) / 1000000;
        } while (result[0] >= FAST_NS && result[1] < 5000);
        _exit(write(answers[1], result, sizeof result) == sizeof result ? 0 : 1);
    }
    if (exit_code(pid) != 0 || read(answers[0], result, sizeof result) != sizeof result) {
        _exit(118);
    }
    snprintf(line, sizeof line, "done %llu %llu\n", (unsigned long long)result[0],
             (unsigned long long)result[1]);
    answer(line);
}

int main(int argc, char **argv) {
    char command[COMMAND_BYTES];
    if (argc > 1 && strcmp(argv[1], "leave") == 0) {
        leave(4, 5000);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "alone") == 0) {
        /* Without a hand-shake: two children in turn, each with its plan. */
        for (int i = 1; i <= 2; i++) {
            pid_t pid = fork();
            if (pid == 0) {
                leave(i, 2000);
                _exit(i);
            }
            if (exit_code(pid) != i) {
                return 1;
            }
        }
        leave(1, 3000);
        return 9;
    }
    if (pipe(answers) != 0) {
        return 1;
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "go") == 0) {
            go();
        } else if (strcmp(command, "spawn") == 0) {
            spawn();
        } else if (strcmp(command, "speed") == 0) {
            speed();
        } else {
            return strcmp(command, "quit") == 0 ? 0 : 2;
        }
    }
}
