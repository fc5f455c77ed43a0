/* Makes malloc/free pairs at a fixed rate.
 *
 * usage: rate <threads> <pairs per second> <seconds>
 * "go" runs it; the answer "done <pairs> <milliseconds>" says how many pairs were made, in what time. The
 * number of pairs is fixed: a thread that is behind catches up.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "handshake.h"

enum { MAX_THREADS = 16, SLOTS_PER_SECOND = 1000 };

static unsigned threads, pairs_per_slot, slots;
static pthread_barrier_t begin, end;

NAMED void make_pairs(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        void *block = malloc(16 + i % 64 * 16);
        ESCAPE(block);
        free(block);
    }
}

NAMED void *work(void *argument) {
    for (;;) {
        pthread_barrier_wait(&begin);
        struct timespec due;
        clock_gettime(CLOCK_MONOTONIC, &due);
        for (unsigned slot = 0; slot < slots; slot++) {
            make_pairs(pairs_per_slot);
            due.tv_nsec += 1000000000 / SLOTS_PER_SECOND;
            if (due.tv_nsec >= 1000000000) {
                due.tv_nsec -= 1000000000;
                due.tv_sec++;
            }
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        }
        pthread_barrier_wait(&end);
    }
    return argument;
}

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    char command[COMMAND_BYTES];
    if (argc != 4) {
        return 2;
    }
    threads = (unsigned)atoi(argv[1]);
    if (threads < 1 || threads > MAX_THREADS) {
        return 2;
    }
    pairs_per_slot = (unsigned)atoi(argv[2]) / threads / SLOTS_PER_SECOND;
    slots = (unsigned)atoi(argv[3]) * SLOTS_PER_SECOND;
    pthread_barrier_init(&begin, NULL, threads + 1);
    pthread_barrier_init(&end, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, NULL) != 0) {
            return 1;
        }
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        uint64_t started_ms = now_ms();
        pthread_barrier_wait(&begin);
        pthread_barrier_wait(&end);
        char line[COMMAND_BYTES];
        snprintf(line, sizeof line, "done %llu %llu\n",
                 (unsigned long long)threads * slots * pairs_per_slot,
                 (unsigned long long)(now_ms() - started_ms));
        answer(line);
    }
}
