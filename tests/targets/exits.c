/* Ends a moment after its last allocation.
 *
 * usage: exits           allocate in a constructor and in main, exit with 7
 *        exits attach    the same after a hand-shake, by _exit
 *        exits signal    allocate, then die of SIGTERM
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include "handshake.h"

__attribute__((constructor, noipa)) static void allocate_in_constructor(void) {
    void *block = malloc(1111);
    ESCAPE(block);
}

NAMED void leak_at_the_end(void) {
    for (int i = 0; i < 3; i++) {
        void *block = malloc(10000);
        ESCAPE(block);
    }
}

NAMED void leak_and_exit(void) {
    leak_at_the_end();
    syscall(SYS_exit_group, 7);
}

int main(int argc, char **argv) {
    char command[COMMAND_BYTES];
    if (argc > 1 && strcmp(argv[1], "attach") == 0) {
        answer("ready\n");
        next_command(command);
        leak_and_exit();
    }
    if (argc > 1 && strcmp(argv[1], "signal") == 0) {
        leak_at_the_end();
        kill(getpid(), SIGTERM);
    }
    leak_and_exit();
}
