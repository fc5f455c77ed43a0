/* A library that leaks by the function that the macro FUNCTION names: `host.c` loads and unloads it. */
#include <stdlib.h>

#include "handshake.h"

NAMED void FUNCTION(void) {
    for (int i = 0; i < 10; i++) {
        void *block = malloc(3000);
        ESCAPE(block);
    }
}

void run(void) {
    FUNCTION();
    __asm__ volatile("");
}
