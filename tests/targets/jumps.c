/* Control that leaves its usual path: signal handlers that allocate, handlers and callers that jump.
 * What each command allocates and frees stands beside it; tests/live/jumps.rs holds the same figures.
 *
 * No handler interrupts an allocator: that would be no correct program.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "handshake.h"

enum {
    SIGNALS = 1000,
    JUMPS = 10000,
    ALT_STACK_BYTES = 64 << 10,
    DEPTH = 5,
};

static volatile sig_atomic_t handled;
static void *passed;
static sigjmp_buf escape;

NAMED void require(int condition) {
    if (!condition) {
        _exit(112);
    }
}

/* Three blocks of 111 bytes, one of them freed, and one of 400 bytes that was 111. */
NAMED void allocate_in_handler(void) {
    void *blocks[3];
    for (int i = 0; i < 3; i++) {
        blocks[i] = malloc(111);
        ESCAPE(blocks[i]);
    }
    free(blocks[0]);
    blocks[2] = realloc(blocks[2], 400);
    ESCAPE(blocks[2]);
}

static void handle(int number) {
    (void)number;
    allocate_in_handler();
    handled++;
}

/* Frees the block that the interrupted code made, makes one of 222 bytes, and does not return. */
NAMED void replace_and_jump(void) {
    free(passed);
    passed = malloc(222);
    ESCAPE(passed);
    siglongjmp(escape, 1);
}

static void handle_and_jump(int number) {
    (void)number;
    replace_and_jump();
}

static void on_signal(int number, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    require(sigaction(number, &action, NULL) == 0);
}

NAMED void raise_signals(int number) {
    for (int i = 0; i < SIGNALS; i++) {
        raise(number);
    }
}

/* Another thread's signals, at any moment of a loop that does not allocate. */
static pthread_t interrupted;

NAMED void *send_signals(void *number) {
    for (int i = 1; i <= SIGNALS; i++) {
        require(pthread_kill(interrupted, (int)(intptr_t)number) == 0);
        while (handled < i) {
            __asm__ volatile("pause");
        }
    }
    return NULL;
}

NAMED void be_interrupted(int number) {
    pthread_t sender;
    handled = 0;
    interrupted = pthread_self();
    require(pthread_create(&sender, NULL, send_signals, (void *)(intptr_t)number) == 0);
    volatile uint64_t sum = 0;
    while (handled < SIGNALS) {
        sum += sum * 3 + 1;
    }
    require(pthread_join(sender, NULL) == 0);
}

/* Each time a block of 333 bytes, which the handler frees; one of the handler's is left. */
NAMED void jump_from_handler(int number) {
    for (volatile int i = 0; i < JUMPS; i++) {
        if (sigsetjmp(escape, 1) == 0) {
            free(passed);
            passed = malloc(333);
            ESCAPE(passed);
            raise(number);
            _exit(112);
        }
    }
    free(passed);
    passed = NULL;
}

/* 10,000 blocks of 444 bytes and as many of 555 further in, all freed after the jump. */
static void *inner, *outer;

NAMED void allocate_and_jump(int depth) {
    if (depth > 0) {
        allocate_and_jump(depth - 1);
        __asm__ volatile("");
    }
    inner = malloc(555);
    ESCAPE(inner);
    siglongjmp(escape, 1);
}

NAMED void jump_from_callers(void) {
    for (volatile int i = 0; i < JUMPS; i++) {
        if (sigsetjmp(escape, 0) == 0) {
            outer = malloc(444);
            ESCAPE(outer);
            allocate_and_jump(i % DEPTH);
            _exit(112);
        }
        free(inner);
        free(outer);
    }
}

int main(void) {
    static char below_everything[ALT_STACK_BYTES];
    stack_t alternate = {.ss_sp = below_everything, .ss_size = sizeof below_everything};
    require(sigaltstack(&alternate, NULL) == 0);
    on_signal(SIGUSR1, handle, 0);
    on_signal(SIGUSR2, handle, SA_ONSTACK);
    on_signal(SIGALRM, handle_and_jump, 0);
    on_signal(SIGURG, handle_and_jump, SA_ONSTACK);
    char command[COMMAND_BYTES];
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        } else if (strcmp(command, "signals") == 0) {
            raise_signals(SIGUSR1);
            raise_signals(SIGUSR2);
            be_interrupted(SIGUSR1);
            be_interrupted(SIGUSR2);
        } else if (strcmp(command, "escapes") == 0) {
            jump_from_handler(SIGALRM);
            jump_from_handler(SIGURG);
        } else {
            jump_from_callers();
        }
        answer("done\n");
    }
}
