/* The library that is loaded while it is traced. It is linked with no immediate binding. */
#include "../handshake.h"

extern void (*library_hook)(void);

void plugin_call_back(void (*function)(void)) {
    char room[72];
    char *first = room;
    ESCAPE(first);
    function();
    NO_TAIL_CALL();
}

__attribute__((constructor, noipa)) static void call_at_start(void) {
    if (library_hook != NULL) {
        library_hook();
    }
    NO_TAIL_CALL();
}

__attribute__((destructor, noipa)) static void call_at_end(void) {
    if (library_hook != NULL) {
        library_hook();
    }
    NO_TAIL_CALL();
}

static void (*first)(void);

static int add_one(int number) {
    return number + 1;
}

/* Runs inside the dynamic linker, which saves every register that may hold an argument. */
static int (*choose(void))(int) {
    if (first != NULL) {
        first();
    }
    return add_one;
}

int plugin_add(int number) __attribute__((ifunc("choose")));

void plugin_first_call(void (*function)(void)) {
    first = function;
    if (plugin_add(6) != 7) {
        _exit(113);
    }
    first = NULL;
}
