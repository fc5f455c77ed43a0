/* Leaks exactly 30,000 bytes by each allocation function that every C library and allocator has, each in a
 * function of its own, which also allocates and frees as many blocks.
 *
 * Commands: "go" runs the plan.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdlib.h>

#include "handshake.h"

enum { BLOCKS = 3, BLOCK_BYTES = 10000, SMALL_BYTES = 100 };

/* Keeps the odd blocks and frees the even ones. */
NAMED void dispose(int number, void *block) {
    if (block == NULL) {
        _exit(112);
    }
    memset(block, number, SMALL_BYTES);
    if (number % 2 == 0) {
        free(block);
    }
    ESCAPE(block);
}

NAMED void leak_malloc(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        dispose(i, malloc(BLOCK_BYTES));
    }
}

/* Blocks that allocators keep in other places than large ones. */
NAMED void leak_small(void) {
    for (int i = 0; i < 600; i++) {
        dispose(i, malloc(SMALL_BYTES));
    }
}

NAMED void leak_calloc(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        dispose(i, calloc(100, BLOCK_BYTES / 100));
    }
}

/* Each block starts with 1,000 bytes and is grown. */
NAMED void leak_realloc(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        void *small = malloc(1000);
        ESCAPE(small);
        dispose(i, realloc(small, BLOCK_BYTES));
    }
}

NAMED void leak_realloc_null(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        void *none = NULL;
        ESCAPE(none);
        dispose(i, realloc(none, BLOCK_BYTES));
    }
}

NAMED void leak_posix_memalign(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        void *block = NULL;
        if (posix_memalign(&block, 64, BLOCK_BYTES) != 0) {
            _exit(112);
        }
        dispose(i, block);
    }
}

NAMED void leak_aligned_alloc(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        dispose(i, aligned_alloc(16, BLOCK_BYTES));
    }
}

NAMED void leak_memalign(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        dispose(i, memalign(256, BLOCK_BYTES));
    }
}

NAMED void leak_valloc(void) {
    for (int i = 0; i < 2 * BLOCKS; i++) {
        dispose(i, valloc(BLOCK_BYTES));
    }
}

/* Calls that fail are no allocations. */
NAMED void ask_too_much(void) {
    size_t size = (size_t)-1 / 4;
    ESCAPE(size);
    if (malloc(size) != NULL || calloc(size, 8) != NULL) {
        _exit(112);
    }
}

NAMED void run_plan(void) {
    leak_malloc();
    leak_small();
    leak_calloc();
    leak_realloc();
    leak_realloc_null();
    leak_posix_memalign();
    leak_aligned_alloc();
    leak_memalign();
    leak_valloc();
    ask_too_much();
    NO_TAIL_CALL();
}

MAIN(run_plan)
