/* The frames of `frames.c` alone, for programs that have their C library in them.
 *
 *   go    every shape, and every pair
 */
#include "shapes.h"

#define SHAPES(X)                                                                                        \
    X(plain) X(alloca) X(vla) X(large) X(aligned) X(aligned_page) X(drap) X(drap_variable) X(avx)        \
    X(avx_alloca) X(registers) X(pushed) X(tail) X(cold) X(no_return) X(jumped) X(foreign)               \
    X(shrink_wrapped) X(recursive) X(sorted)

#define DECLARE(name) void shape_##name(void);
SHAPES(DECLARE)

#define POINT(name) shape_##name,
void (*const shapes[])(void) = {SHAPES(POINT)};
enum { SHAPE_COUNT = sizeof shapes / sizeof shapes[0] };

const char *path;
size_t next_bytes = FIRST_BYTES;

static int compare(const void *one, const void *other) {
    FOLLOW();
    return *(const int *)one - *(const int *)other;
}

void shape_sorted(void) {
    int numbers[] = {3, 1, 2};
    qsort(numbers, 3, sizeof numbers[0], compare);
    int *first = numbers;
    ESCAPE(first);
}

NAMED void walk_path(const char *letters) {
    path = letters;
    FOLLOW();
    if (path != NULL) {
        _exit(112);
    }
}

NAMED void plan(void) {
    char letters[3] = {0};
    for (size_t one = 0; one < SHAPE_COUNT; one++) {
        letters[0] = (char)(FIRST_SHAPE + one);
        letters[1] = 0;
        walk_path(letters);
        for (size_t other = 0; other < SHAPE_COUNT; other++) {
            letters[1] = (char)(FIRST_SHAPE + other);
            walk_path(letters);
        }
    }
}

MAIN(plan)
