// Plants blocks before main and after it: for a command that is traced from its first instruction to its end.
#include <cstdlib>
#include <functional>
#include <map>
#include <pthread.h>
#include <string>

#include "shapes.h"

const char *path = nullptr;
size_t next_bytes = FIRST_BYTES;
void (*const shapes[1])(void) = {nullptr};
extern "C" void (*library_hook)(void);
extern "C" void library_call_back(void (*call)(void));

#define PLANT()                                                                                          \
    do {                                                                                                 \
        void *block = malloc(next_bytes++);                                                              \
        ESCAPE(block);                                                                                   \
        NO_TAIL_CALL();                                                                                  \
    } while (0)

// Before the constructors of any library.
static void plant_first(int, char **, char **) { PLANT(); }
__attribute__((section(".preinit_array"), used)) static void (*const first)(int, char **, char **) = plant_first;

__attribute__((constructor(101), noipa)) static void construct_first() { PLANT(); }
__attribute__((constructor, noipa)) static void construct() { PLANT(); }
__attribute__((destructor, noipa)) static void destroy() { PLANT(); }
__attribute__((destructor(101), noipa)) static void destroy_last() { PLANT(); }

struct Static {
    explicit Static(size_t count) {
        for (size_t i = 0; i < count; i++) {
            names["number " + std::to_string(i)] = i;
        }
        PLANT();
    }
    ~Static() { PLANT(); }
    std::map<std::string, size_t> names;
};

static Static object(3);
static std::string text = [] {
    PLANT();
    return std::string(next_bytes++, 'a');
}();

__attribute__((noipa)) static Static &in_function() {
    static Static inner(2);
    return inner;
}

struct PerThread {
    PerThread() { PLANT(); }
    ~PerThread() { PLANT(); }
};
static thread_local PerThread per_thread;

static void *run_thread(void *argument) {
    ESCAPE(argument);
    auto *mine = &per_thread;
    ESCAPE(mine);
    PLANT();
    return argument;
}

static void at_exit() { PLANT(); }
static void at_exit_nested() {
    PLANT();
    atexit(at_exit);
}
static void on_exit_too(int, void *) { PLANT(); }

static void from_library() { PLANT(); }

static void forked() { PLANT(); }

int main() {
    auto *mine = &per_thread;
    ESCAPE(mine);
    PLANT();
    auto *inner = &in_function();
    ESCAPE(inner);
    library_call_back(from_library);
    pthread_t thread;
    pthread_create(&thread, nullptr, run_thread, nullptr);
    pthread_join(thread, nullptr);
    std::function<void()> later = from_library;
    later();
    atexit(at_exit_nested);
    on_exit(on_exit_too, nullptr);
    pthread_atfork(forked, nullptr, nullptr);
    // A thread that goes on while the process exits would not be the same each time.
    return 7;
}
