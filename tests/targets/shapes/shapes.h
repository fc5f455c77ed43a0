/* Stacks of every shape. A shape is a function with a peculiar frame, or with a peculiar way to call: it
 * follows the path, whose next letter names the shape that it calls. Where the path ends, a block is planted:
 * path "an" plants under shape n, called by shape a. So a few shapes make thousands of stacks.
 */
#ifndef SHAPES_H
#define SHAPES_H

#include <stddef.h>
#include <stdlib.h>

#include "../handshake.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is left of the path; NULL once the block is planted. Never two threads follow at a time. */
extern const char *path;

/* By letter, less `FIRST_SHAPE`. */
extern void (*const shapes[])(void);
enum { FIRST_SHAPE = '!' };

/* Plants a block of the next size. The planted sizes are known by this range, and no two are equal. */
enum { FIRST_BYTES = 700000, LAST_BYTES = 799999 };
extern size_t next_bytes;

/* Goes on along the path, without a frame of its own. A callback that is called again does nothing. */
#define FOLLOW()                                                                                         \
    do {                                                                                                 \
        const char *here = path;                                                                         \
        if (here != NULL && *here != 0) {                                                                \
            path = here + 1;                                                                             \
            shapes[*here - FIRST_SHAPE]();                                                               \
        } else if (here != NULL) {                                                                       \
            path = NULL;                                                                                 \
            void *block = malloc(next_bytes++);                                                          \
            ESCAPE(block);                                                                               \
        }                                                                                                \
        NO_TAIL_CALL();                                                                                  \
    } while (0)

/* The same as a function, for callers that are not C. */
void follow(void);

#ifdef __cplusplus
}
#endif

#endif
