/* Walks a path for every shape and for pairs of shapes. Each plants one block.
 *
 * usage: shapes <step>: of the pairs, every <step>th
 *   walk ...    the path of these shapes, by name
 *   go          shapes that compilers and libraries make, and what C++'s library allocates for itself
 *   deep        paths of many shapes: up to 200, and more frames
 *   rare        shapes that assembly makes, and code without a file
 *   unwalkable  frames that nothing tells how to leave
 *   step        a signal at every instruction of some functions
 *   probed      shapes whose frames are left by returning alone, and on the stack of their thread
 *   keep        loads the plugin and keeps it, which takes the way of `fresh` from it
 *   plugin      shapes of the plugin, while it is kept
 *   fresh       the same, loading and unloading the plugin each time
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "shapes.h"

/* In the order of their letters: C, C++. */
#define FRAMES(X)                                                                                        \
    X(plain) X(alloca) X(vla) X(large) X(aligned) X(aligned_page) X(drap) X(drap_variable) X(avx)        \
    X(avx_alloca) X(registers) X(pushed) X(tail) X(cold) X(no_return) X(jumped) X(foreign)               \
    X(shrink_wrapped) X(recursive)
#define COMMON(X)                                                                                        \
    FRAMES(X)                                                                                            \
    X(qsort) X(qsort_r) X(bsearch) X(tsearch) X(twalk) X(objects) X(once) X(thread) X(thread_exit)       \
    X(thread_clean_up) X(thread_key) X(printf) X(scandir) X(file_tree) X(sqlite) X(xml) X(zlib)          \
    X(library) X(library_sort)                                                                           \
    X(raise) X(raise_elsewhere) X(unblocked) X(first_instruction) X(prologue) X(body) X(epilogue)        \
    X(return) X(red_zone) X(divide) X(loop) X(clock) X(processor) X(coroutine)                           \
    X(coroutine_with_arguments)                                                                          \
    X(catch) X(catch_in_catch) X(unwinding) X(constructor_throws) X(filter_by_type) X(virtual) X(thunk)  \
    X(virtual_thunk) X(member_pointer) X(function) X(lambda) X(sort) X(map) X(cxx_thread) X(call_once)   \
    X(shared_pointer) X(temporaries) X(templates) X(no_exceptions)
#define RARE(X)                                                                                          \
    X(frame_in_rbx) X(rbp_in_r12) X(frame_in_memory) X(rbp_by_expression) X(return_moved)                \
    X(without_cfi) X(fault_without_cfi) X(code) X(code_nested)
#define UNWALKABLE(X) X(without_anything) X(code_without_pointer)
#define PLUGIN(X) X(plugin) X(first_call) X(constructor) X(destructor)
#define SHAPES(X) COMMON(X) RARE(X) UNWALKABLE(X) PLUGIN(X)

#define DECLARE(name) void shape_##name(void);
SHAPES(DECLARE)

#define POINT(name) shape_##name,
void (*const shapes[])(void) = {SHAPES(POINT)};

#define NAME(name) #name,
static const char *const names[] = {SHAPES(NAME)};

#define ONE(name) +1
enum {
    FRAMES_COUNT = 0 FRAMES(ONE),
    COMMON_COUNT = 0 COMMON(ONE),
    RARE_END = COMMON_COUNT RARE(ONE),
    UNWALKABLE_END = RARE_END UNWALKABLE(ONE),
    SHAPE_COUNT = UNWALKABLE_END PLUGIN(ONE),
    DEEPEST = 200,
};

const char *path;
size_t next_bytes = FIRST_BYTES;

void keep_plugin(void);
void make_code(void);
void plant_in_cxx(void);
void set_handlers(void);
void find_instructions(size_t frames);
void interrupt_instructions(size_t frames);

/* Where the path is walked from; the same for each, so that stacks differ by their shapes alone. */
NAMED void walk_path(const char *letters) {
    size_t bytes = next_bytes;
    path = letters;
    FOLLOW();
    if (path != NULL || next_bytes != bytes + 1) {
        fprintf(stderr, "path %s was left\n", letters);
        _exit(112);
    }
}

static char letter(size_t shape) {
    return (char)(FIRST_SHAPE + shape);
}

static size_t shape_of(const char *name) {
    for (size_t shape = 0; shape < SHAPE_COUNT; shape++) {
        if (strcmp(names[shape], name) == 0) {
            return shape;
        }
    }
    _exit(112);
}

/* Each of the shapes, and each `step`th of its pairs with all shapes before `end`, in both orders. */
NAMED void walk_pairs(size_t first, size_t last, size_t end, size_t step) {
    char letters[3] = {0};
    for (size_t one = first; one < last; one++) {
        letters[0] = letter(one);
        letters[1] = 0;
        walk_path(letters);
        for (size_t other = one % step; other < end; other += step) {
            letters[0] = letter(one);
            letters[1] = letter(other);
            walk_path(letters);
            if (other < first || other >= last) {
                letters[0] = letter(other);
                letters[1] = letter(one);
                walk_path(letters);
            }
        }
    }
}

/* Shapes that a return probe allows: the kernel counts on returns, and exceptions do not find their way through
 * its trampoline. */
NAMED void walk_probed(void) {
    static const char *const probed[] = {"plain",  "alloca", "vla",   "large",         "aligned", "drap",
                                         "avx",    "tail",   "qsort", "qsort_r",       "bsearch", "registers",
                                         "pushed", "printf", "library", "library_sort", "twalk",   "sqlite"};
    enum { COUNT = sizeof probed / sizeof probed[0] };
    char letters[3] = {0};
    for (size_t one = 0; one < COUNT; one++) {
        for (size_t other = 0; other < COUNT; other++) {
            letters[0] = letter(shape_of(probed[one]));
            letters[1] = letter(shape_of(probed[other]));
            walk_path(letters);
        }
    }
}

/* Those that take little room on the stack and no thread, in turn. */
NAMED void walk_deep(void) {
    static const char *const small[] = {"plain",         "alloca", "recursive", "aligned", "qsort", "catch",
                                        "frame_in_memory", "raise", "drap",    "lambda",  "library"};
    char letters[DEEPEST + 1];
    for (size_t depth = 5; depth <= DEEPEST; depth += depth < 60 ? 55 : depth < 120 ? 60 : 5) {
        memset(letters, letter(shape_of("plain")), depth);
        letters[depth] = 0;
        walk_path(letters);
        for (size_t i = 0; i < depth; i++) {
            letters[i] = letter(shape_of(small[i % (sizeof small / sizeof small[0])]));
        }
        walk_path(letters);
    }
}

/* The path of the shapes whose names stand in the rest of a command. */
NAMED void walk_names(char *list) {
    char letters[COMMAND_BYTES], *rest = list;
    size_t count = 0;
    for (char *name; (name = strsep(&rest, " ")) != NULL;) {
        letters[count++] = letter(shape_of(name));
    }
    letters[count] = 0;
    walk_path(letters);
}

int main(int count, char **arguments) {
    char command[COMMAND_BYTES];
    size_t step = count > 1 ? strtoul(arguments[1], NULL, 10) : 1;
    make_code();
    set_handlers();
    find_instructions(FRAMES_COUNT);
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strncmp(command, "walk ", 5) == 0) {
            walk_names(command + 5);
        } else if (strcmp(command, "go") == 0) {
            walk_path("");
            walk_pairs(0, COMMON_COUNT, COMMON_COUNT, step);
            plant_in_cxx();
        } else if (strcmp(command, "deep") == 0) {
            walk_deep();
        } else if (strcmp(command, "rare") == 0) {
            walk_pairs(COMMON_COUNT, RARE_END, RARE_END, step);
        } else if (strcmp(command, "unwalkable") == 0) {
            walk_pairs(RARE_END, UNWALKABLE_END, UNWALKABLE_END, step);
        } else if (strcmp(command, "step") == 0) {
            interrupt_instructions(FRAMES_COUNT);
        } else if (strcmp(command, "probed") == 0) {
            walk_probed();
        } else if (strcmp(command, "keep") == 0) {
            keep_plugin();
        } else if (strcmp(command, "plugin") == 0 || strcmp(command, "fresh") == 0) {
            walk_pairs(UNWALKABLE_END, SHAPE_COUNT, COMMON_COUNT, step);
        } else if (strcmp(command, "quit") == 0) {
            return 0;
        } else {
            return 111;
        }
        answer("done\n");
    }
}
