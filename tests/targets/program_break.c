/* Leaks exactly 30,000 bytes by moving the program break up, in one step by each function.
 *
 * Commands: "go" runs the plan.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>

#include "handshake.h"

enum { LEAK_BYTES = 30000 };

NAMED void leak_sbrk(void) {
    void *old = sbrk(LEAK_BYTES);
    if (old == (void *)-1) {
        _exit(112);
    }
    ESCAPE(old);
}

NAMED void leak_brk(void) {
    char *old = sbrk(0);
    if (brk(old + LEAK_BYTES) != 0) {
        _exit(112);
    }
    ESCAPE(old);
}

/* Up and down again: nothing stays. */
NAMED void move_sbrk(void) {
    void *old = sbrk(LEAK_BYTES);
    ESCAPE(old);
    sbrk(-LEAK_BYTES);
}

NAMED void move_brk(void) {
    char *old = sbrk(0);
    if (brk(old + LEAK_BYTES) != 0 || brk(old) != 0) {
        _exit(112);
    }
    ESCAPE(old);
}

/* A call that fails moves nothing. */
NAMED void ask_too_much(void) {
    if (sbrk(INTPTR_MAX) != (void *)-1 || brk((void *)(INTPTR_MAX / 2)) == 0) {
        _exit(112);
    }
}

/* The allocator moves the break for blocks below 128 KiB; that is part of malloc. */
NAMED void leak_malloc(void) {
    for (int i = 0; i < 100; i++) {
        void *block = malloc(100000);
        ESCAPE(block);
    }
}

NAMED void run_plan(void) {
    leak_sbrk();
    leak_brk();
    move_sbrk();
    move_brk();
    ask_too_much();
    leak_malloc();
    NO_TAIL_CALL();
}

MAIN(run_plan)
