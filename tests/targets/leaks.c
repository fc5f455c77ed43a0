/* Leaks exactly 30,000 bytes by each allocation function, each in a function of its own.
 *
 * Commands: "go" runs the plan and leaks; "clean" runs the same plan and frees everything.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "handshake.h"

enum { BLOCKS = 3, BLOCK_BYTES = 10000, LEAK_BYTES = 30000 };

static bool frees;

/* The end of every block of the plan. */
NAMED void dispose(void *block) {
    if (block == NULL) {
        _exit(112);
    }
    if (frees) {
        free(block);
    }
    ESCAPE(block);
}

NAMED void dispose_mapping(void *mapping, size_t length) {
    if (mapping == MAP_FAILED) {
        _exit(112);
    }
    if (frees) {
        munmap(mapping, length);
    }
    ESCAPE(mapping);
}

NAMED void leak_malloc(void) {
    for (int i = 0; i < BLOCKS; i++) {
        dispose(malloc(BLOCK_BYTES));
    }
}

NAMED void leak_calloc(void) {
    for (int i = 0; i < BLOCKS; i++) {
        dispose(calloc(100, BLOCK_BYTES / 100));
    }
}

/* Each block starts with 1,000 bytes and is grown. */
NAMED void leak_realloc(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *small = malloc(1000);
        ESCAPE(small);
        dispose(realloc(small, BLOCK_BYTES));
    }
}

NAMED void leak_realloc_null(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *none = NULL;
        ESCAPE(none);
        dispose(realloc(none, BLOCK_BYTES));
    }
}

NAMED void leak_reallocarray(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *small = reallocarray(NULL, 10, 100);
        ESCAPE(small);
        dispose(reallocarray(small, 100, BLOCK_BYTES / 100));
    }
}

NAMED void leak_posix_memalign(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *block = NULL;
        if (posix_memalign(&block, 64, BLOCK_BYTES) != 0) {
            _exit(112);
        }
        dispose(block);
    }
}

NAMED void leak_aligned_alloc(void) {
    for (int i = 0; i < BLOCKS; i++) {
        dispose(aligned_alloc(16, BLOCK_BYTES));
    }
}

NAMED void leak_memalign(void) {
    for (int i = 0; i < BLOCKS; i++) {
        dispose(memalign(256, BLOCK_BYTES));
    }
}

NAMED void leak_valloc(void) {
    for (int i = 0; i < BLOCKS; i++) {
        dispose(valloc(BLOCK_BYTES));
    }
}

/* pvalloc gives whole pages; asked for are 10,000 bytes each. */
NAMED void leak_pvalloc(void) {
    for (int i = 0; i < BLOCKS; i++) {
        dispose(pvalloc(BLOCK_BYTES));
    }
}

static char text[BLOCK_BYTES];

NAMED void leak_strdup(void) {
    for (int i = 0; i < BLOCKS; i++) {
        dispose(strdup(text));
    }
}

NAMED void *map(size_t length) {
    void *mapping = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ESCAPE(mapping);
    return mapping;
}

NAMED void leak_mmap(void) {
    for (int i = 0; i < BLOCKS; i++) {
        void *mapping = mmap(NULL, BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        dispose_mapping(mapping, BLOCK_BYTES);
    }
}

NAMED void leak_mremap(void) {
    void *mapping = mmap(NULL, BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ESCAPE(mapping);
    mapping = mremap(mapping, BLOCK_BYTES, LEAK_BYTES, MREMAP_MAYMOVE);
    dispose_mapping(mapping, LEAK_BYTES);
}

/* An mremap that fails: the old mapping stays as it was. */
NAMED void leak_failed_mremap(void) {
    void *mapping = mmap(NULL, LEAK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ESCAPE(mapping);
    if (mremap(mapping, LEAK_BYTES, SIZE_MAX / 2, MREMAP_MAYMOVE) != MAP_FAILED) {
        _exit(112);
    }
    dispose_mapping(mapping, LEAK_BYTES);
}

/* Mapped and given back: never outstanding. */
NAMED void unmap_all(void) {
    void *mapping = mmap(NULL, LEAK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ESCAPE(mapping);
    munmap(mapping, LEAK_BYTES);
}

/* A mapping of a file is no allocation. It stays mapped. */
NAMED void map_file(void) {
    int file = open("/proc/self/exe", O_RDONLY);
    void *mapping = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
    if (mapping == MAP_FAILED) {
        _exit(112);
    }
    ESCAPE(mapping);
    close(file);
}

/* A call that fails is no allocation. */
NAMED void map_too_much(void) {
    if (map(SIZE_MAX / 2) != MAP_FAILED) {
        _exit(112);
    }
}

NAMED void run_plan(void) {
    leak_malloc();
    leak_calloc();
    leak_realloc();
    leak_realloc_null();
    leak_reallocarray();
    leak_posix_memalign();
    leak_aligned_alloc();
    leak_memalign();
    leak_valloc();
    leak_pvalloc();
    leak_strdup();
    leak_mmap();
    leak_mremap();
    leak_failed_mremap();
    unmap_all();
    map_file();
    map_too_much();
}

int main(void) {
    char command[COMMAND_BYTES];
    memset(text, 'x', sizeof text - 1);
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        frees = strcmp(command, "clean") == 0;
        run_plan();
        answer("done\n");
    }
}
