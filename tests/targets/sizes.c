/* Leaks ten blocks of each of several sizes, for the options that select by size or domain. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "handshake.h"

enum { BLOCKS = 10 };

#define LEAK(name, bytes)                   \
    NAMED void leak_##name(void) {          \
        for (int i = 0; i < BLOCKS; i++) {  \
            void *block = malloc(bytes);    \
            ESCAPE(block);                  \
        }                                   \
    }

LEAK(small, 100)
LEAK(below_min, 999)
LEAK(at_min, 1000)
LEAK(medium, 5000)
LEAK(at_max, 20000)
LEAK(above_max, 20001)
LEAK(large, 100000)
LEAK(huge, 1048576) /* malloc maps each of these; they are its own affair */

/* Two callers of the same function, for --include and --exclude. */
NAMED void build_index(void) { leak_medium(); __asm__ volatile(""); }
NAMED void build_cache(void) { leak_medium(); __asm__ volatile(""); }

NAMED void leak_mapping(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *mapping = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ESCAPE(mapping);
    }
}

/* Allocated outside the bounds, then brought inside, and the other way round. */
NAMED void resize_across(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *grows = malloc(500);
        ESCAPE(grows);
        grows = realloc(grows, 1500);
        ESCAPE(grows);
        void *shrinks = malloc(2500);
        ESCAPE(shrinks);
        shrinks = realloc(shrinks, 400);
        ESCAPE(shrinks);
    }
}

NAMED void run_plan(void) {
    leak_small();
    leak_below_min();
    leak_at_min();
    build_index();
    build_cache();
    leak_at_max();
    leak_above_max();
    leak_large();
    leak_huge();
    leak_mapping();
    resize_across();
}

MAIN(run_plan)
