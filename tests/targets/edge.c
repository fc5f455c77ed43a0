/* The cases that other tracers get wrong: calls that fail, null, zero, and nesting inside the allocator.
 * The expected figures stand beside each function; tests/live/edge.rs holds the same table.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "handshake.h"

enum { MIB = 1 << 20 };

/* Hides a size from the compiler, which would warn about, or fold, what this program is about. */
NAMED size_t hidden(size_t size) {
    ESCAPE(size);
    return size;
}

NAMED void require(int condition) {
    if (!condition) {
        _exit(112);
    }
}

/* 1 allocation of 5,000 bytes, outstanding where malloc was called. */
NAMED void failed_realloc(void) {
    void *block = malloc(hidden(5000));
    ESCAPE(block);
    void *moved = realloc(block, hidden(PTRDIFF_MAX));
    require(moved == NULL);
}

/* 1 allocation of 7,000 bytes, outstanding where malloc was called. */
NAMED void reallocarray_overflow(void) {
    void *block = malloc(hidden(7000));
    ESCAPE(block);
    void *moved = reallocarray(block, hidden(SIZE_MAX / 2), 4);
    require(moved == NULL && errno == ENOMEM);
}

/* Nothing. */
NAMED void calloc_overflow(void) {
    void *block = calloc(hidden(SIZE_MAX / 2), hidden(4));
    require(block == NULL);
}

/* Nothing. */
NAMED void malloc_too_much(void) {
    void *block = malloc(hidden(SIZE_MAX));
    require(block == NULL);
    block = malloc(hidden(PTRDIFF_MAX - 4096));
    require(block == NULL);
    block = malloc(hidden(PTRDIFF_MAX));
    require(block == NULL && errno == ENOMEM);
}

/* Nothing. The kernel itself refuses: the size is no nonsense, but more than there is. */
NAMED void malloc_without_memory(void) {
    void *block = malloc(hidden((size_t)1 << 46));
    require(block == NULL && errno == ENOMEM);
    block = calloc(hidden((size_t)1 << 23), (size_t)1 << 23);
    require(block == NULL && errno == ENOMEM);
}

/* Nothing. */
NAMED void free_null(void) {
    for (int i = 0; i < 10; i++) {
        void *none = NULL;
        ESCAPE(none);
        free(none);
    }
}

/* 1 allocation of 4,000 bytes, freed. */
NAMED void realloc_to_zero(void) {
    void *block = malloc(hidden(4000));
    ESCAPE(block);
    void *moved = realloc(block, hidden(0));
    require(moved == NULL);
}

/* 1 allocation of 6,000 bytes, outstanding. */
NAMED void realloc_of_null(void) {
    void *none = NULL;
    ESCAPE(none);
    void *block = realloc(none, hidden(6000));
    require(block != NULL);
}

/* Nothing. What the out-parameter held before the call is no block. */
NAMED void posix_memalign_bad_alignment(void) {
    char not_a_block;
    void *block = &not_a_block;
    require(posix_memalign(&block, hidden(3), hidden(100)) == EINVAL);
    ESCAPE(block);
}

/* Nothing. */
NAMED void aligned_too_much(void) {
    char not_a_block;
    void *block = &not_a_block;
    require(posix_memalign(&block, hidden(64), hidden(PTRDIFF_MAX)) == ENOMEM);
    ESCAPE(block);
    require(aligned_alloc(hidden(64), hidden((size_t)1 << 62)) == NULL && errno == ENOMEM);
    require(memalign(hidden(64), hidden(PTRDIFF_MAX)) == NULL && errno == ENOMEM);
}

/* 1 allocation of 100,000 bytes, a thousand times asked to grow beyond what there is, outstanding where malloc
 * was called. */
NAMED void realloc_without_memory(void) {
    void *block = malloc(hidden(100000));
    ESCAPE(block);
    for (int i = 0; i < 1000; i++) {
        require(realloc(block, hidden((size_t)1 << 46)) == NULL && errno == ENOMEM);
    }
}

/* 1 allocation of 0 bytes, outstanding: glibc gives a block. */
NAMED void malloc_of_zero(void) {
    void *block = malloc(hidden(0));
    require(block != NULL);
}

/* 2 allocations of 2,000 and 1,000 bytes, the first freed by the realloc, in place. */
NAMED void realloc_shrinks(void) {
    void *block = malloc(hidden(2000));
    ESCAPE(block);
    void *same = realloc(block, hidden(1000));
    require(same != NULL);
}

/* 2 allocations of 1 MiB, one freed. malloc takes and gives back such blocks with mmap and munmap: these
 * belong to the malloc. */
NAMED void big_blocks(void) {
    void *kept = malloc(hidden(MIB));
    void *freed = malloc(hidden(MIB));
    ESCAPE(kept);
    ESCAPE(freed);
    free(freed);
}

/* 2 allocations of 1 MiB and 4 MiB, the first freed by the realloc, which calls mremap. */
NAMED void realloc_of_big_block(void) {
    void *block = malloc(hidden(MIB));
    ESCAPE(block);
    void *moved = realloc(block, hidden(4 * MIB));
    require(moved != NULL);
}

/* 100 allocations of 50 bytes, all freed, most of them at the same address. */
NAMED void reused_address(void) {
    for (int i = 0; i < 100; i++) {
        void *block = malloc(hidden(50));
        ESCAPE(block);
        free(block);
    }
}

/* 2 frees of blocks from before the trace, and 1 realloc of such a block (1 allocation of 300 bytes). */
static void *from_before[3];

NAMED void free_from_before(void) {
    free(from_before[0]);
    free(from_before[1]);
    void *moved = realloc(from_before[2], hidden(300));
    require(moved != NULL);
}

NAMED void *map(size_t bytes) {
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Nothing. */
NAMED void failed_mmap(void) {
    require(map(hidden((size_t)1 << 46)) == MAP_FAILED && errno == ENOMEM);
    require(map(hidden(0)) == MAP_FAILED && errno == EINVAL);
}

/* 1 mapping of 12,288 bytes, outstanding: no address that is not a page's, no length of none. */
NAMED void failed_munmap(void) {
    char *mapping = map(hidden(12288));
    require(mapping != MAP_FAILED);
    require(munmap(mapping + 1, 4096) == -1 && errno == EINVAL);
    require(munmap(mapping + 4097, 100000) == -1 && errno == EINVAL);
    require(munmap(mapping, hidden(0)) == -1 && errno == EINVAL);
}

/* 1 mapping of 16,384 bytes, outstanding where mmap was called. */
NAMED void failed_mremap(void) {
    char *mapping = map(hidden(16384));
    require(mapping != MAP_FAILED);
    require(mremap(mapping, 16384, hidden((size_t)1 << 46), MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM);
    require(mremap(mapping + 1, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    require(mremap(mapping, 16384, hidden(0), MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
}

NAMED void run_plan(void) {
    failed_realloc();
    reallocarray_overflow();
    calloc_overflow();
    malloc_too_much();
    malloc_without_memory();
    free_null();
    realloc_to_zero();
    realloc_of_null();
    posix_memalign_bad_alignment();
    aligned_too_much();
    realloc_without_memory();
    malloc_of_zero();
    realloc_shrinks();
    big_blocks();
    realloc_of_big_block();
    reused_address();
    free_from_before();
    failed_mmap();
    failed_munmap();
    failed_mremap();
}

int main(void) {
    char command[COMMAND_BYTES];
    for (int i = 0; i < 3; i++) {
        from_before[i] = malloc(hidden(200));
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        run_plan();
        answer("done\n");
    }
}
