/* The hand-shake between a target and its test, over the target's standard input and output.
 *
 *   target  "ready\n"          its warm-up is over; it does nothing until told to
 *   test    "<command>\n"
 *   target  "<answer>\n"       the command is done; it does nothing until told to
 *   test    "quit\n"           the target exits with 0
 *
 * Plain read and write: buffered streams would allocate, and the plan counts every allocation.
 */
#ifndef HANDSHAKE_H
#define HANDSHAKE_H

#include <string.h>
#include <unistd.h>

/* A function that keeps its name, its frame and its place in the stack. */
#define NAMED __attribute__((noipa)) static

/* Keeps the compiler from seeing what becomes of a block, and the call before it from being a tail call. */
#define ESCAPE(pointer) __asm__ volatile("" : "+r"(pointer) : : "memory")

/* The same for a call without a result. */
#define NO_TAIL_CALL() __asm__ volatile("" : : : "memory")

#define COMMAND_BYTES 64

/* Writes one answer; a test that is gone ends the target. */
static inline void answer(const char *line) {
    size_t length = strlen(line);
    if (write(STDOUT_FILENO, line, length) != (ssize_t)length) {
        _exit(111);
    }
}

/* Waits for one line and stores it without its end. A test that is gone ends the target. */
static inline void next_command(char command[COMMAND_BYTES]) {
    size_t length = 0;
    for (;;) {
        char byte;
        if (read(STDIN_FILENO, &byte, 1) != 1 || length + 1 == COMMAND_BYTES) {
            _exit(111);
        }
        if (byte == '\n') {
            command[length] = 0;
            return;
        }
        command[length++] = byte;
    }
}

/* The whole of main where every command runs the same plan. A macro: no frame may come between the two. */
#define MAIN(plan)                                                                                       \
    int main(void) {                                                                                     \
        char command[COMMAND_BYTES];                                                                     \
        answer("ready\n");                                                                               \
        for (;;) {                                                                                       \
            next_command(command);                                                                       \
            if (strcmp(command, "quit") == 0) {                                                          \
                return 0;                                                                                \
            }                                                                                            \
            plan();                                                                                      \
            answer("done\n");                                                                            \
        }                                                                                                \
    }

#endif
