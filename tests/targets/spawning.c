/* 5,000 threads, at most 50 at a time. Each allocates, frees some of it, leaves the rest where any other
 * thread takes and frees it, and ends.
 *
 *   go     runs them; "done <allocations> <bytes> <frees> <bytes> <live> <bytes>", from the program's own books
 *   free   20 threads that do nothing but free one block each, which the main thread allocated; "done"
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "handshake.h"

enum {
    THREADS = 5000,
    AT_A_TIME = 50,
    BLOCKS = 20,      /* that a thread allocates */
    FREED_AT_ONCE = 8,
    PLACES = 64,      /* where blocks wait for somebody to free them */
    FREERS = 20,
};

struct block {
    size_t bytes;     /* the block tells its own size */
};

static _Atomic(struct block *) places[PLACES];
static atomic_ullong allocations, allocated_bytes, frees, freed_bytes;

NAMED struct block *allocate_block(size_t bytes) {
    struct block *block = malloc(bytes);
    ESCAPE(block);
    block->bytes = bytes;
    atomic_fetch_add(&allocations, 1);
    atomic_fetch_add(&allocated_bytes, bytes);
    return block;
}

NAMED void free_block(struct block *block) {
    atomic_fetch_add(&frees, 1);
    atomic_fetch_add(&freed_bytes, block->bytes);
    free(block);
}

NAMED void *live_briefly(void *argument) {
    uintptr_t number = (uintptr_t)argument;
    struct block *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = allocate_block(sizeof(struct block) + (number * 31 + (uintptr_t)i * 97) % 1500);
    }
    for (int i = 0; i < BLOCKS; i++) {
        if (i < FREED_AT_ONCE) {
            free_block(blocks[i]);
            continue;
        }
        /* Whoever left a block here before has ended, or is about to. */
        struct block *other = atomic_exchange(&places[(number + (uintptr_t)i * 5) % PLACES], blocks[i]);
        if (other != NULL) {
            free_block(other);
        }
    }
    return NULL;
}

NAMED void *free_one(void *block) {
    free(block);
    return NULL;
}

NAMED void run_threads(int count, void *(*body)(void *), void *(*argument)(int)) {
    pthread_t running[AT_A_TIME];
    for (int i = 0; i < count + AT_A_TIME; i++) {
        if (i >= AT_A_TIME && i - AT_A_TIME < count && pthread_join(running[i % AT_A_TIME], NULL) != 0) {
            _exit(112);
        }
        if (i < count && pthread_create(&running[i % AT_A_TIME], NULL, body, argument(i)) != 0) {
            _exit(112);
        }
    }
}

static void *number(int i) {
    return (void *)(uintptr_t)i;
}

NAMED void *block_to_free(int i) {
    void *block = malloc(3000 + (size_t)i);
    ESCAPE(block);
    return block;
}

static void report_books(void) {
    unsigned long long live = 0, live_bytes = 0;
    for (int i = 0; i < PLACES; i++) {
        struct block *block = places[i];
        if (block != NULL) {
            live++;
            live_bytes += block->bytes;
        }
    }
    char line[256];
    snprintf(line, sizeof line, "done %llu %llu %llu %llu %llu %llu\n", allocations, allocated_bytes, frees,
             freed_bytes, live, live_bytes);
    answer(line);
}

int main(void) {
    char command[COMMAND_BYTES];
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        if (strcmp(command, "free") == 0) {
            run_threads(FREERS, free_one, block_to_free);
            answer("done\n");
        } else {
            run_threads(THREADS, live_briefly, number);
            report_books();
        }
    }
}
