/* Leaks exactly 30,000 bytes by each function that only jemalloc has.
 *
 * Commands: "go" runs the plan.
 */
#include <stddef.h>

#include "handshake.h"

/* jemalloc/jemalloc.h, which the package of the library alone does not bring. */
void *mallocx(size_t size, int flags);
void *rallocx(void *block, size_t size, int flags);
size_t xallocx(void *block, size_t size, size_t extra, int flags);
void sdallocx(void *block, size_t size, int flags);
void dallocx(void *block, int flags);

enum { BLOCKS = 3, BLOCK_BYTES = 10000 };

/* MALLOCX_LG_ALIGN(6): 64 bytes. */
enum { ALIGNED = 6 };

NAMED void *need(void *block) {
    if (block == NULL) {
        _exit(112);
    }
    memset(block, 1, 8);
    return block;
}

NAMED void leak_mallocx(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *block = need(mallocx(BLOCK_BYTES, ALIGNED));
        ESCAPE(block);
    }
}

/* Each block starts with 1,000 bytes and is grown. */
NAMED void leak_rallocx(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *block = need(mallocx(1000, 0));
        block = need(rallocx(block, BLOCK_BYTES, 0));
        ESCAPE(block);
    }
}

/* Blocks of 14,337 to 16,384 bytes are of one size class of jemalloc: these stay where they are, and are
 * asked to have another size. The answer is the size of the class. */
NAMED void leak_xallocx(void) {
    for (int i = 0; i < 2; i++) {
        void *block = need(mallocx(14500, 0));
        if (xallocx(block, 15000, 0, 0) != 16384) {
            _exit(112);
        }
        ESCAPE(block);
    }
}

/* A block that cannot grow where it is stays as it was, and is given back as that. */
NAMED void fail_xallocx(void) {
    void *block = need(mallocx(1000, 0));
    if (xallocx(block, 5000, 0, 0) != 1024) {
        _exit(112);
    }
    dallocx(block, 0);
    ESCAPE(block);
}

NAMED void free_sdallocx(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *block = need(mallocx(BLOCK_BYTES, 0));
        sdallocx(block, BLOCK_BYTES, 0);
        ESCAPE(block);
    }
}

NAMED void free_dallocx(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *block = need(mallocx(BLOCK_BYTES, 0));
        dallocx(block, 0);
        ESCAPE(block);
    }
}

NAMED void run_plan(void) {
    leak_mallocx();
    leak_rallocx();
    leak_xallocx();
    fail_xallocx();
    free_sdallocx();
    free_dallocx();
    NO_TAIL_CALL();
}

MAIN(run_plan)
