/* Blocks of malloc in every state, each noted: a table says of every address that malloc ever gave whether it is
 * still handed out.
 *
 * It is built to run on every glibc since 2.26, whatever it was linked with: it needs no start-up code, and nothing
 * newer than 2.2.5.
 *
 *   target    ready <address of the table> <its slots> <threads>
 *   test      plan                 blocks in each state that malloc knows
 *   test      foreign              somebody else moves the program break, and writes there what malloc never would
 *   test      blocked              the program break cannot be moved any more
 *   test      many                 6,000 blocks of 4 KiB in the first thread, and 27,000 in another, of which a third is freed
 *   test      churn <n>            n calls by each of the threads, at random
 *   test      run                  the threads go on by themselves, until told to
 *   test      rest
 *   test      info                 mallinfo(): arena, hblks, hblkhd, fsmblks, uordblks, fordblks, keepcost
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "handshake.h"

__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5");

#define SLOTS (1u << 20)
#define LIVE 1
#define FREE 0
#define THREADS 4
/* Blocks that each thread has at once. */
#define HELD 3000

struct slot {
    uintptr_t block;
    /* Whether it is handed out, and above that how often this has changed. */
    uintptr_t state;
};

static struct slot table[SLOTS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static volatile int running;

static void lock(void) {
    pthread_mutex_lock(&mutex);
}

static void unlock(void) {
    pthread_mutex_unlock(&mutex);
}

static void note(uintptr_t addr, uintptr_t state) {
    if (!addr) {
        _exit(112);
    }
    uint32_t at = (uint32_t)((addr >> 4) * 2654435761u) % SLOTS;
    while (table[at].block && table[at].block != addr) {
        at = (at + 1) % SLOTS;
    }
    table[at].state = (((table[at].state >> 1) + 1) << 1) | state;
    table[at].block = addr;
}

/* The table is changed with the heap: nobody else gets the address in between. */
static void *allocate(size_t bytes, size_t alignment) {
    lock();
    void *block = alignment ? memalign(alignment, bytes) : malloc(bytes);
    note((uintptr_t)block, LIVE);
    unlock();
    memset(block, 0x5a, bytes);
    return block;
}

static void release(void *block) {
    uintptr_t addr = (uintptr_t)block;
    lock();
    free(block);
    note(addr, FREE);
    unlock();
}

static void *resize(void *block, size_t bytes) {
    uintptr_t addr = (uintptr_t)block;
    lock();
    void *moved = realloc(block, bytes);
    note(addr, FREE);
    note((uintptr_t)moved, LIVE);
    unlock();
    memset(moved, 0x7e, bytes);
    return moved;
}

/* Some of each size stay, and the rest is freed in an order that fills caches, fast bins and bins. */
static void sizes(void) {
    static void *blocks[64];
    for (size_t bytes = 1; bytes < 3000; bytes += 41) {
        for (int i = 0; i < 64; i++) {
            blocks[i] = allocate(bytes, 0);
        }
        for (int i = 0; i < 64; i++) {
            if (i % 3) {
                release(blocks[i]);
            }
        }
    }
}

static void plan(void) {
    sizes();
    /* Merged with their neighbours, and handed out again as a part of another block. */
    void *a = allocate(5000, 0), *b = allocate(5000, 0), *c = allocate(5000, 0), *guard = allocate(64, 0);
    release(b);
    release(a);
    release(c);
    void *merged = allocate(14000, 0);
    (void)merged;
    (void)guard;
    /* Larger ones; the last of them borders on the top. */
    void *large[10];
    for (int i = 0; i < 10; i++) {
        large[i] = allocate(30000 + 5000 * (size_t)i, 0);
    }
    for (int i = 1; i < 10; i += 2) {
        release(large[i]);
    }
    for (size_t alignment = 32; alignment <= 65536; alignment *= 2) {
        release(allocate(100, alignment));
        allocate(1000, alignment);
        release(allocate(3000, alignment));
    }
    /* Moved, grown in place, shrunk. */
    void *grown = allocate(1000, 0);
    allocate(16, 0);
    grown = resize(grown, 20000);
    grown = resize(grown, 40000);
    resize(grown, 300);
    /* Mapped alone, aligned or not; resized by mremap; gone again. */
    allocate(1 << 20, 0);
    allocate((1 << 20) + 5000, 4096);
    allocate((1 << 20) + 5000, 1 << 16);
    void *mapped = allocate(3 << 20, 0);
    resize(mapped, 5 << 20);
    release(allocate(2 << 20, 0));
}

static void many(size_t count) {
    for (size_t i = 0; i < count; i++) {
        void *block = allocate(4000 + i % 64, 0);
        if (i % 3 == 0) {
            release(block);
        }
    }
}

static void foreign(void) {
    uintptr_t *mine = sbrk(3 * 4096 + 104);
    if (mine == (void *)-1) {
        _exit(118);
    }
    for (size_t i = 0; i < (3 * 4096 + 104) / sizeof *mine; i++) {
        mine[i] = i % 5 ? (uintptr_t)&mine[i] : 0x31;
    }
}

static void blocked(void) {
    uintptr_t end = ((uintptr_t)sbrk(0) + 4095) & ~4095ul;
    if (mmap((void *)end, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED) {
        _exit(119);
    }
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void *held[THREADS][HELD];
static uint64_t seeds[THREADS];

static void step(int thread) {
    uint64_t dice = next(&seeds[thread]);
    void **place = &held[thread][dice % HELD];
    size_t bytes = 1 + next(&seeds[thread]) % ((dice >> 20) % 50 ? 700 : 30000);
    /* Now and then a block that another thread has got. */
    if ((dice >> 32) % 64 == 0) {
        void **other = &held[(thread + 1) % THREADS][dice % HELD];
        void *taken = __atomic_exchange_n(other, NULL, __ATOMIC_ACQ_REL);
        if (taken) {
            release(taken);
        }
    }
    void *mine = __atomic_exchange_n(place, NULL, __ATOMIC_ACQ_REL);
    void *block = NULL;
    if (!mine) {
        block = allocate(bytes, (dice >> 40) % 32 ? 0 : (size_t)16 << (dice >> 48) % 8);
    } else if ((dice >> 40) % 4) {
        release(mine);
    } else {
        block = resize(mine, bytes);
    }
    if (block) {
        void *mean = __atomic_exchange_n(place, block, __ATOMIC_ACQ_REL);
        if (mean) {
            release(mean);
        }
    }
}

static struct {
    pthread_t thread;
    int go[2];
    int done[2];
} threads[THREADS];

static void *work(void *argument) {
    int thread = (int)(intptr_t)argument;
    long steps;
    while (read(threads[thread].go[0], &steps, sizeof steps) == sizeof steps) {
        if (steps == 0 && thread == 0) {
            many(27000);
        }
        while (steps < 0 ? running : steps-- > 0) {
            step(thread);
        }
        if (write(threads[thread].done[1], "", 1) != 1) {
            _exit(113);
        }
    }
    return NULL;
}

static void tell_threads(long steps) {
    for (int i = 0; i < THREADS; i++) {
        if (write(threads[i].go[1], &steps, sizeof steps) != sizeof steps) {
            _exit(114);
        }
    }
}

static void await_threads(void) {
    for (int i = 0; i < THREADS; i++) {
        char byte;
        if (read(threads[i].done[0], &byte, 1) != 1) {
            _exit(115);
        }
    }
}

static void serve(void) {
    char command[COMMAND_BYTES];
    char line[200];
    for (int i = 0; i < THREADS; i++) {
        seeds[i] = 88172645463325252u + (unsigned)i * 7919;
        if (pipe(threads[i].go) || pipe(threads[i].done) ||
            pthread_create(&threads[i].thread, NULL, work, (void *)(intptr_t)i)) {
            _exit(116);
        }
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            _exit(0);
        } else if (strcmp(command, "table") == 0) {
            snprintf(line, sizeof line, "%lu %u %u\n", (unsigned long)(uintptr_t)table, SLOTS, THREADS);
        } else if (strcmp(command, "plan") == 0) {
            plan();
            strcpy(line, "done\n");
        } else if (strcmp(command, "foreign") == 0) {
            foreign();
            many(1000);
            strcpy(line, "done\n");
        } else if (strcmp(command, "blocked") == 0) {
            blocked();
            strcpy(line, "done\n");
        } else if (strcmp(command, "many") == 0) {
            many(6000);
            tell_threads(0);
            await_threads();
            strcpy(line, "done\n");
        } else if (strncmp(command, "churn ", 6) == 0) {
            tell_threads(atol(command + 6));
            await_threads();
            strcpy(line, "done\n");
        } else if (strcmp(command, "run") == 0) {
            running = 1;
            tell_threads(-1);
            strcpy(line, "done\n");
        } else if (strcmp(command, "rest") == 0) {
            running = 0;
            await_threads();
            strcpy(line, "done\n");
        } else if (strcmp(command, "info") == 0) {
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
            struct mallinfo info = mallinfo();
            snprintf(line, sizeof line, "%u %u %u %u %u %u %u\n", info.arena, info.hblks, info.hblkhd,
                     info.fsmblks, info.uordblks, info.fordblks, info.keepcost);
        } else {
            _exit(117);
        }
        answer(line);
    }
}

/* The loader has initialised the C library; only its start-up code, whose version changes, is left out. */
__attribute__((force_align_arg_pointer, noreturn)) void _start(void) {
    serve();
    _exit(0);
}
