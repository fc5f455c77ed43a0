/* Addresses that come again within microseconds, in another thread.
 *
 *   swap   Pairs of threads throw a block to and fro without a lock. Each frees what it gets and allocates
 *          the same size at once: malloc gives it the very block back.
 *   crowd  Four threads in one arena, above the sizes that malloc keeps per thread, allocate, resize and
 *          free: what one gives up inside a realloc, another may get before that realloc returns.
 *   meet   Two threads come to a stack that neither has had before, at the same moment, again and again.
 *
 * Each answers "done <allocations> <bytes> <times>": how often malloc gave back the address that was just
 * freed, or realloc moved the block. All blocks are freed.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "handshake.h"

enum {
    THREADS = 4,
    THROWS = 50000,  /* by each thread of a pair */
    BYTES = 64,
    ROUNDS = 20000,  /* by each thread of the crowd */
    HELD = 8,
    MEETINGS = 2000,
    TURNS = 11,      /* on the way to a meeting: 2^11 ways */
};

struct pair {
    _Atomic(void *) court[2]; /* the block on its way to this side */
};

struct side {
    pthread_t thread;
    struct pair *pair;
    int number;
    uint64_t random, allocations, bytes, times;
};

static struct pair pairs[THREADS / 2];
static struct side sides[THREADS];
static pthread_barrier_t run_begins, run_ends;
static atomic_uint arrivals;   /* at meetings */
static void (*plan)(struct side *);

NAMED void *allocate_block(struct side *self, size_t bytes) {
    unsigned char *block = malloc(bytes);
    ESCAPE(block);
    self->allocations++;
    self->bytes += bytes;
    block[0] = block[bytes - 1] = (unsigned char)bytes;
    return block;
}

NAMED void free_block(void *block) {
    free(block);
}

static void *catch_block(struct side *self) {
    void *block;
    while ((block = atomic_exchange(&self->pair->court[self->number], NULL)) == NULL) {
        sched_yield();
    }
    return block;
}

NAMED void swap(struct side *self) {
    if (self->number == 0) {
        atomic_store(&self->pair->court[1], allocate_block(self, BYTES));
    }
    for (int i = 0; i < THROWS; i++) {
        void *caught = catch_block(self);
        uintptr_t address = (uintptr_t)caught;
        free_block(caught);
        if (self->number == 0 && i == THROWS - 1) {
            break;
        }
        void *next = allocate_block(self, BYTES);
        self->times += (uintptr_t)next == address;
        atomic_store(&self->pair->court[1 - self->number], next);
    }
}

static uint64_t next_random(struct side *self) {
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    return self->random;
}

NAMED void *resize_block(struct side *self, void *block, size_t bytes) {
    uintptr_t before = (uintptr_t)block;
    void *moved = realloc(block, bytes);
    ESCAPE(moved);
    if (moved == NULL) {
        _exit(112);
    }
    self->allocations++;
    self->bytes += bytes;
    self->times += (uintptr_t)moved != before;
    return moved;
}

NAMED void crowd(struct side *self) {
    void *held[HELD] = {0};
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t chance = next_random(self);
        size_t bytes = 1100 + (chance >> 16) % 3000;
        void **block = &held[chance % HELD];
        if (*block == NULL) {
            *block = allocate_block(self, bytes);
        } else if (chance & 0x700) {
            *block = resize_block(self, *block, bytes);
        } else {
            free_block(*block);
            *block = NULL;
        }
    }
    for (int i = 0; i < HELD; i++) {
        free_block(held[i]);
    }
}

NAMED void *work(void *argument) {
    for (;;) {
        pthread_barrier_wait(&run_begins);
        plan(argument);
        pthread_barrier_wait(&run_ends);
    }
    return NULL;
}

NAMED void turn_left(struct side *self, unsigned way, int turns);

/* Each way has a stack of its own. */
NAMED void turn_right(struct side *self, unsigned way, int turns) {
    if (turns == 0) {
        free_block(allocate_block(self, BYTES));
    } else if (way & 1) {
        turn_right(self, way >> 1, turns - 1);
    } else {
        turn_left(self, way >> 1, turns - 1);
    }
    NO_TAIL_CALL();
}

NAMED void turn_left(struct side *self, unsigned way, int turns) {
    turn_right(self, way, turns);
    NO_TAIL_CALL();
}

NAMED void meet(struct side *self) {
    if (self->pair != &pairs[0]) {
        return;
    }
    for (unsigned i = 0; i < MEETINGS; i++) {
        atomic_fetch_add(&arrivals, 1);
        while (atomic_load(&arrivals) < 2 * (i + 1)) {
            sched_yield();
        }
        turn_right(self, i, TURNS);
    }
}

static void report_sums(void) {
    uint64_t allocations = 0, bytes = 0, times = 0;
    for (int i = 0; i < THREADS; i++) {
        allocations += sides[i].allocations;
        bytes += sides[i].bytes;
        times += sides[i].times;
    }
    char line[128];
    snprintf(line, sizeof line, "done %llu %llu %llu\n", (unsigned long long)allocations,
             (unsigned long long)bytes, (unsigned long long)times);
    answer(line);
}

/* The threads live as long as the process: the allocator's own frees at the end of a thread are not in the
 * way of the figures. */
int main(void) {
    char command[COMMAND_BYTES];
    mallopt(M_ARENA_MAX, 1);
    pthread_barrier_init(&run_begins, NULL, THREADS + 1);
    pthread_barrier_init(&run_ends, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) {
        sides[i].pair = &pairs[i / 2];
        sides[i].number = i % 2;
        sides[i].random = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
        if (pthread_create(&sides[i].thread, NULL, work, &sides[i]) != 0) {
            _exit(112);
        }
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        plan = strcmp(command, "crowd") == 0 ? crowd : strcmp(command, "meet") == 0 ? meet : swap;
        for (int i = 0; i < THREADS; i++) {
            sides[i].allocations = sides[i].bytes = sides[i].times = 0;
        }
        atomic_store(&arrivals, 0);
        pthread_barrier_wait(&run_begins);
        pthread_barrier_wait(&run_ends);
        report_sums();
    }
}
