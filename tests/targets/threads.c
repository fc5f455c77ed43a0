/* Four threads that allocate, and free their own blocks and each other's.
 *
 * "go" runs the plan; the answer "done <count> <bytes> <allocations>" says what is live after it, from the
 * program's own books.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "handshake.h"

enum {
    THREADS = 4,
    SLOTS = 512,          /* blocks that a thread holds at most */
    INBOX = 256,          /* blocks on their way from one thread to the next */
    ROUNDS = 1000,        /* of one millisecond each */
    OPERATIONS = 20,      /* per thread and round: 80,000 allocations per second in all */
};

struct block {
    void *address;
    size_t bytes;
};

struct worker {
    struct block held[SLOTS];
    _Atomic(struct block *) inbox[INBOX];
    struct block parcels[INBOX];
    uint64_t random;
    uint64_t allocations;
    int64_t live_count;   /* may be below zero: a thread frees more of others' blocks than it makes */
    int64_t live_bytes;
    pthread_t thread;
};

static struct worker workers[THREADS];
static pthread_barrier_t rounds_begin, rounds_end;

static uint64_t next_random(struct worker *self) {
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    return self->random;
}

NAMED void *allocate_block(struct worker *self, size_t bytes) {
    void *address = malloc(bytes);
    ESCAPE(address);
    memset(address, 0x5a, bytes);
    self->allocations++;
    self->live_count++;
    self->live_bytes += (int64_t)bytes;
    return address;
}

NAMED void free_block(struct worker *self, struct block *block) {
    self->live_count--;
    self->live_bytes -= (int64_t)block->bytes;
    free(block->address);
    block->address = NULL;
}

/* Frees what the neighbour left here. */
NAMED void empty_inbox(struct worker *self) {
    for (int i = 0; i < INBOX; i++) {
        struct block *parcel = atomic_load_explicit(&self->inbox[i], memory_order_acquire);
        if (parcel != NULL) {
            free_block(self, parcel);
            atomic_store_explicit(&self->inbox[i], NULL, memory_order_release);
        }
    }
}

/* Leaves a block with the neighbour, who frees it; false when there is no room. */
static int hand_over(struct worker *self, struct worker *neighbour, struct block *block) {
    int i = (int)(next_random(self) % INBOX);
    if (atomic_load_explicit(&neighbour->inbox[i], memory_order_acquire) != NULL) {
        return 0;
    }
    neighbour->parcels[i] = *block;
    atomic_store_explicit(&neighbour->inbox[i], &neighbour->parcels[i], memory_order_release);
    block->address = NULL;
    return 1;
}

NAMED void run_rounds(struct worker *self, struct worker *neighbour) {
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < OPERATIONS; i++) {
            struct block *block = &self->held[next_random(self) % SLOTS];
            if (block->address != NULL && (next_random(self) % 4 != 0 || !hand_over(self, neighbour, block))) {
                free_block(self, block);
            }
            block->bytes = 16 + next_random(self) % 2000;
            block->address = allocate_block(self, block->bytes);
        }
        empty_inbox(self);
        due.tv_nsec += 1000000;
        if (due.tv_nsec >= 1000000000) {
            due.tv_nsec -= 1000000000;
            due.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    }
}

NAMED void *work(void *argument) {
    struct worker *self = argument;
    struct worker *neighbour = &workers[(self - workers + 1) % THREADS];
    for (;;) {
        pthread_barrier_wait(&rounds_begin);
        run_rounds(self, neighbour);
        pthread_barrier_wait(&rounds_end);
    }
    return NULL;
}

int main(void) {
    char command[COMMAND_BYTES];
    pthread_barrier_init(&rounds_begin, NULL, THREADS + 1);
    pthread_barrier_init(&rounds_end, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) {
        workers[i].random = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
            _exit(112);
        }
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        pthread_barrier_wait(&rounds_begin);
        pthread_barrier_wait(&rounds_end);
        int64_t live_count = 0, live_bytes = 0;
        uint64_t allocations = 0;
        for (int i = 0; i < THREADS; i++) {
            live_count += workers[i].live_count;
            live_bytes += workers[i].live_bytes;
            allocations += workers[i].allocations;
        }
        char line[COMMAND_BYTES];
        snprintf(line, sizeof line, "done %lld %lld %llu\n", (long long)live_count, (long long)live_bytes,
                 (unsigned long long)allocations);
        answer(line);
    }
}
