/* Makes malloc/free pairs as fast as it can, or live blocks: the C target of `cargo xtask bench`.
 *
 * usage: bench_pairs <threads> <frames>
 * Each thread calls malloc with <frames> frames on its stack, the C library's two below `main`'s threads
 * included.
 *
 *   "run <ms> <pairs per second>"  pairs of malloc(100) and free by each thread, for that time; the rate is of
 *                                  each thread, 0 is as fast as it can.  "done <pairs> <nanoseconds>"
 *   "keep <count> <bytes>"         allocates that many blocks and keeps them.  "done <count> <nanoseconds>"
 *   "hold"                         allocates the one block that tells whether malloc is probed.  "held <address>"
 *   "release"                      frees it.  "released"
 *
 * The block of "hold" is the only one of its size, and the allocator's cache of a thread gives back what the
 * thread freed last: so it has the same address every time, and a tracer can be told beforehand where it is.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "handshake.h"

enum {
    MAX_THREADS = 16,
    FRAMES_OF_LIBC = 2,     /* clone3, start_thread */
    PAIR_BYTES = 100,
    HOLD_BYTES = 1000,
    BATCH = 256,            /* pairs between two looks at the clock */
    SLOTS_PER_SECOND = 1000 /* of a thread that keeps a rate */
};

struct worker {
    pthread_t thread;
    unsigned frames_to_go;
    uint64_t pairs;
};

static struct worker workers[MAX_THREADS];
static unsigned run_ms, pairs_per_second;
static pthread_barrier_t begin, end;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Part of work's own frame: one more would be one more to walk. */
static inline __attribute__((always_inline)) void make_pairs(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        void *block = malloc(PAIR_BYTES);
        ESCAPE(block);
        free(block);
    }
}

static inline __attribute__((always_inline)) uint64_t run_flat_out(uint64_t until_ns) {
    uint64_t pairs = 0;
    do {
        make_pairs(BATCH);
        pairs += BATCH;
    } while (now_ns() < until_ns);
    return pairs;
}

static inline __attribute__((always_inline)) uint64_t run_at_rate(uint64_t until_ns) {
    uint64_t pairs = 0, due_ns = now_ns();
    while (due_ns < until_ns) {
        make_pairs(pairs_per_second / SLOTS_PER_SECOND);
        pairs += pairs_per_second / SLOTS_PER_SECOND;
        due_ns += 1000000000 / SLOTS_PER_SECOND;
        struct timespec due = {(time_t)(due_ns / 1000000000), (long)(due_ns % 1000000000)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    }
    return pairs;
}

/* Calls itself until the stack is as deep as was asked, and works at the bottom. */
NAMED void *work(void *argument) {
    struct worker *self = argument;
    if (--self->frames_to_go > 0) {
        void *result = work(self);
        ESCAPE(result);
        return result;
    }
    while (self->frames_to_go == 0) {
        pthread_barrier_wait(&begin);
        uint64_t until_ns = now_ns() + (uint64_t)run_ms * 1000000;
        self->pairs = pairs_per_second == 0 ? run_flat_out(until_ns) : run_at_rate(until_ns);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

NAMED void keep_blocks(unsigned count, unsigned bytes) {
    for (unsigned i = 0; i < count; i++) {
        void *block = malloc(bytes);
        ESCAPE(block);
        if (block == NULL) {
            _exit(112);
        }
    }
}

int main(int argc, char **argv) {
    char command[COMMAND_BYTES], line[COMMAND_BYTES];
    void *held = NULL;
    unsigned count, bytes;
    if (argc != 3) {
        return 2;
    }
    unsigned threads = (unsigned)atoi(argv[1]), frames = (unsigned)atoi(argv[2]);
    if (threads < 1 || threads > MAX_THREADS || frames <= FRAMES_OF_LIBC) {
        return 2;
    }
    pthread_barrier_init(&begin, NULL, threads + 1);
    pthread_barrier_init(&end, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++) {
        workers[i].frames_to_go = frames - FRAMES_OF_LIBC;
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
            return 1;
        }
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        if (sscanf(command, "run %u %u", &run_ms, &pairs_per_second) == 2) {
            uint64_t started_ns = now_ns(), pairs = 0;
            pthread_barrier_wait(&begin);
            pthread_barrier_wait(&end);
            uint64_t taken_ns = now_ns() - started_ns;
            for (unsigned i = 0; i < threads; i++) {
                pairs += workers[i].pairs;
            }
            snprintf(line, sizeof line, "done %llu %llu\n", (unsigned long long)pairs,
                     (unsigned long long)taken_ns);
        } else if (sscanf(command, "keep %u %u", &count, &bytes) == 2) {
            uint64_t started_ns = now_ns();
            keep_blocks(count, bytes);
            snprintf(line, sizeof line, "done %u %llu\n", count,
                     (unsigned long long)(now_ns() - started_ns));
        } else if (strcmp(command, "hold") == 0 && held == NULL) {
            held = malloc(HOLD_BYTES);
            snprintf(line, sizeof line, "held %llu\n", (unsigned long long)(uintptr_t)held);
        } else if (strcmp(command, "release") == 0) {
            free(held);
            held = NULL;
            snprintf(line, sizeof line, "released\n");
        } else {
            return 2;
        }
        answer(line);
    }
}
