/* The shared library of the shapes. */
#include <stdlib.h>

#include "../handshake.h"

/* Called by the plugin when it is loaded and unloaded. */
void (*library_hook)(void);

__attribute__((noipa)) static void call(void (*function)(void)) {
    function();
    NO_TAIL_CALL();
}

void library_call_back(void (*function)(void)) {
    char room[200];
    char *first = room;
    ESCAPE(first);
    call(function);
}

int library_sort(int *numbers, int count, int (*greater)(int, int)) {
    for (int end = count; end > 1; end--) {
        for (int i = 1; i < end; i++) {
            if (greater(numbers[i - 1], numbers[i])) {
                int larger = numbers[i - 1];
                numbers[i - 1] = numbers[i];
                numbers[i] = larger;
            }
        }
    }
    return count;
}

int library_answer(void) {
    return 42;
}
