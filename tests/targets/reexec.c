/* Leaks, executes itself, and leaks again in the new image: nothing of the old one is left.
 *
 *   exec   3 blocks of 5,000 bytes by leak_before_exec, then the new image, which answers
 *   go     10 blocks of 7,000 bytes by leak_after_exec
 */
#include <stdlib.h>

#include "handshake.h"

NAMED void leak_before_exec(void) {
    for (int i = 0; i < 3; i++) {
        void *block = malloc(5000);
        ESCAPE(block);
    }
}

NAMED void leak_after_exec(void) {
    for (int i = 0; i < 10; i++) {
        void *block = malloc(7000);
        ESCAPE(block);
    }
}

int main(int count, char **arguments) {
    char command[COMMAND_BYTES];
    answer(count > 1 ? "executed\n" : "ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "exec") == 0) {
            leak_before_exec();
            execl("/proc/self/exe", arguments[0], "again", (char *)0);
            return 111;
        } else if (strcmp(command, "go") == 0) {
            leak_after_exec();
            answer("done\n");
        } else if (strcmp(command, "quit") == 0) {
            return 0;
        } else {
            return 111;
        }
    }
}
