/* Takes small blocks as fast as it can, on a thread of its own, and a large one now and then, when told to.
 *
 *   "large"  takes 2 MiB and keeps them.  "done <pairs so far>", the malloc/free pairs of the thread
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "handshake.h"

enum { LARGE_BYTES = 2 << 20, BATCH = 1000 };

static volatile uint64_t pairs;

NAMED void churn(void) {
    for (unsigned i = 0; i < BATCH; i++) {
        void *block = malloc(16 + i % 64 * 16);
        ESCAPE(block);
        free(block);
    }
}

NAMED void *work(void *argument) {
    for (;;) {
        churn();
        pairs += BATCH;
    }
    return argument;
}

NAMED void leak_large(void) {
    void *block = malloc(LARGE_BYTES);
    ESCAPE(block);
}

int main(void) {
    char command[COMMAND_BYTES];
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL) != 0) {
        return 1;
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        leak_large();
        char line[COMMAND_BYTES];
        snprintf(line, sizeof line, "done %llu\n", (unsigned long long)pairs);
        answer(line);
    }
}
