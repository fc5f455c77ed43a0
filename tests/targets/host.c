/* Loads plugins, one at a time.
 *
 * usage: host <first library> <second library>
 * "ready" comes with the first one loaded.
 *   swap   unloads it and loads the second; answers 1 when that lies at the same address, else 0
 *   go     calls the plugin
 */
#include <dlfcn.h>

#include "handshake.h"

static void *load(const char *path, void (**run)(void)) {
    void *library = dlopen(path, RTLD_NOW);
    if (library == NULL) {
        _exit(111);
    }
    *(void **)run = dlsym(library, "run");
    return library;
}

int main(int count, char **arguments) {
    char command[COMMAND_BYTES];
    void (*run)(void);
    if (count != 3) {
        return 2;
    }
    void *library = load(arguments[1], &run);
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "swap") == 0) {
            void (*before)(void) = run;
            dlclose(library);
            library = load(arguments[2], &run);
            answer(run == before ? "1\n" : "0\n");
        } else if (strcmp(command, "go") == 0) {
            run();
            answer("done\n");
        } else if (strcmp(command, "quit") == 0) {
            return 0;
        } else {
            return 111;
        }
    }
}
