/* Eight threads that call every allocation function, resize, and free their own blocks and each other's.
 *
 * "go" runs 50,000 calls in each thread and stops them all at a barrier. The answer is "done" and, from the
 * program's own books, for what was allocated in this run:
 *
 *   malloc: <allocations> <bytes> <frees> <bytes> <live> <bytes>   mmap: the same six
 *   <frees of blocks of earlier runs> <calls in all>
 *
 * A realloc counts as a free and an allocation. The live ones are counted by walking the tables, not by
 * subtraction. Every block is marked, and its mark is looked at before it is resized or freed.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "handshake.h"

enum {
    THREADS = 8,
    SLOTS = 256,     /* blocks that a thread holds at most */
    INBOX = 16,      /* blocks on their way from one thread to one other */
    CALLS = 50000,   /* per thread and run: 400,000 in all */
    MAPPINGS = 8,    /* that a thread holds at most */
};

struct block {
    unsigned char *address;
    size_t bytes;
    unsigned run;    /* in which it was allocated */
};

struct books {
    uint64_t allocations, allocated_bytes, frees, freed_bytes, live, live_bytes;
};

struct parcel {
    struct block block;
    atomic_int there;
};

struct worker {
    struct block held[SLOTS];
    struct block mapped[MAPPINGS];
    struct parcel inbox[THREADS][INBOX];  /* by sender */
    struct books heap, mappings;
    uint64_t unmatched, calls;
    uint64_t random;
    pthread_t thread;
};

static struct worker workers[THREADS];
static pthread_barrier_t run_begins, run_ends;
static unsigned run;

static uint64_t next_random(struct worker *self) {
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    return self->random;
}

NAMED void require(int condition) {
    if (!condition) {
        _exit(112);
    }
}

static unsigned char mark_of(const struct block *block) {
    return (unsigned char)(block->bytes * 7 + 1);
}

static void mark(struct block *block) {
    block->address[0] = block->address[block->bytes - 1] = mark_of(block);
}

static void enter(struct block *block, struct books *books, void *address, size_t bytes) {
    require(address != NULL);
    block->address = address;
    block->bytes = bytes;
    block->run = run;
    books->allocations++;
    books->allocated_bytes += bytes;
    mark(block);
}

static void strike(const struct block *block, struct books *books) {
    require(block->address[0] == mark_of(block) && block->address[block->bytes - 1] == mark_of(block));
    books->frees++;
    books->freed_bytes += block->bytes;
}

static void strike_heap(struct worker *self, const struct block *block) {
    if (block->run == run) {
        strike(block, &self->heap);
    } else {
        struct books elsewhere = {0};
        strike(block, &elsewhere);
        self->unmatched++;
    }
}

NAMED void allocate_block(struct worker *self, struct block *block) {
    uint64_t chance = next_random(self);
    size_t bytes = 16 + chance % 2000;
    if (chance >> 32 & 1) {
        bytes = 16 + chance % 64;  /* small ones come and go at the same addresses */
    } else if ((chance >> 33) % 512 == 0) {
        bytes += 200000;           /* malloc maps it */
    }
    void *address = NULL;
    size_t align = (size_t)32 << (chance >> 40) % 4;
    self->calls++;
    switch ((chance >> 44) % 16) {
    case 0:
        bytes = bytes / 8 * 8;
        address = calloc(bytes / 8, 8);
        break;
    case 1:
        require(posix_memalign(&address, align, bytes) == 0);
        break;
    case 2:
        bytes = (bytes + align - 1) / align * align;
        address = aligned_alloc(align, bytes);
        break;
    case 3:
        address = memalign(align, bytes);
        break;
    case 4:
        address = realloc(NULL, bytes);
        break;
    case 5:
        bytes = bytes / 4 * 4;
        address = reallocarray(NULL, bytes / 4, 4);
        break;
    default:
        address = malloc(bytes);
    }
    ESCAPE(address);
    enter(block, &self->heap, address, bytes);
}

NAMED void resize_block(struct worker *self, struct block *block) {
    uint64_t chance = next_random(self);
    size_t bytes = chance & 1 ? block->bytes + 1 + chance % 1500 : 1 + block->bytes / 2;
    strike_heap(self, block);
    unsigned char first = block->address[0];
    void *address;
    self->calls++;
    if (chance & 6) {
        address = realloc(block->address, bytes);
    } else {
        bytes = bytes / 2 * 2 + 2;
        address = reallocarray(block->address, bytes / 2, 2);
    }
    ESCAPE(address);
    require(address != NULL && *(unsigned char *)address == first);
    enter(block, &self->heap, address, bytes);
}

NAMED void free_block(struct worker *self, struct block *block) {
    strike_heap(self, block);
    self->calls++;
    free(block->address);
    block->address = NULL;
}

NAMED void map_or_unmap(struct worker *self) {
    uint64_t chance = next_random(self);
    struct block *block = &self->mapped[chance % MAPPINGS];
    self->calls++;
    if (block->address != NULL) {
        /* That of an earlier run is no business of this one's. */
        struct books elsewhere = {0};
        strike(block, block->run == run ? &self->mappings : &elsewhere);
        require(munmap(block->address, block->bytes) == 0);
        block->address = NULL;
        return;
    }
    size_t bytes = 1 + (chance >> 8) % 40000;
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ESCAPE(address);
    require(address != MAP_FAILED);
    enter(block, &self->mappings, address, bytes);
}

/* Leaves a block with another thread, who frees or resizes it; false when there is no room. */
static int hand_over(struct worker *self, struct block *block) {
    uint64_t chance = next_random(self);
    struct parcel *parcel = &workers[chance % THREADS].inbox[self - workers][chance / THREADS % INBOX];
    if (atomic_load_explicit(&parcel->there, memory_order_acquire)) {
        return 0;
    }
    parcel->block = *block;
    atomic_store_explicit(&parcel->there, 1, memory_order_release);
    block->address = NULL;
    return 1;
}

/* Takes a block that another thread left: frees it, or resizes it and keeps it in `empty`. */
static void take_over(struct worker *self, struct block *empty) {
    uint64_t chance = next_random(self);
    struct parcel *parcel = &self->inbox[chance % THREADS][chance / THREADS % INBOX];
    if (!atomic_load_explicit(&parcel->there, memory_order_acquire)) {
        return;
    }
    struct block block = parcel->block;
    atomic_store_explicit(&parcel->there, 0, memory_order_release);
    if (empty->address == NULL && chance >> 32 & 1) {
        resize_block(self, &block);
        *empty = block;
    } else {
        free_block(self, &block);
    }
}

NAMED void make_calls(struct worker *self) {
    while (self->calls < CALLS) {
        uint64_t chance = next_random(self);
        struct block *block = &self->held[chance % SLOTS];
        take_over(self, block);
        if (self->calls == CALLS) {
            return;
        }
        if (chance >> 32 & 127) {
            if (block->address == NULL) {
                allocate_block(self, block);
            } else if ((chance >> 40) % 4 == 0) {
                resize_block(self, block);
            } else if ((chance >> 40) % 4 == 1 && hand_over(self, block)) {
                continue;
            } else {
                free_block(self, block);
            }
        } else {
            map_or_unmap(self);
        }
    }
}

NAMED void *work(void *argument) {
    struct worker *self = argument;
    /* malloc makes the thread's arena now, not in the first run. */
    void *first = malloc(1);
    ESCAPE(first);
    free(first);
    pthread_barrier_wait(&run_ends);
    for (;;) {
        pthread_barrier_wait(&run_begins);
        make_calls(self);
        pthread_barrier_wait(&run_ends);
    }
    return NULL;
}

static void count_live(const struct block *block, struct books *books) {
    if (block->address != NULL && block->run == run) {
        books->live++;
        books->live_bytes += block->bytes;
    }
}

static void add(struct books *sum, const struct books *part) {
    sum->allocations += part->allocations;
    sum->allocated_bytes += part->allocated_bytes;
    sum->frees += part->frees;
    sum->freed_bytes += part->freed_bytes;
}

static size_t print_books(char *line, size_t room, const struct books *books) {
    return (size_t)snprintf(line, room, " %llu %llu %llu %llu %llu %llu",
                            (unsigned long long)books->allocations,
                            (unsigned long long)books->allocated_bytes, (unsigned long long)books->frees,
                            (unsigned long long)books->freed_bytes, (unsigned long long)books->live,
                            (unsigned long long)books->live_bytes);
}

/* The threads are at the barrier: nobody changes what is read here. */
static void report_books(void) {
    struct books heap = {0}, mappings = {0};
    uint64_t unmatched = 0, calls = 0;
    for (int i = 0; i < THREADS; i++) {
        struct worker *worker = &workers[i];
        add(&heap, &worker->heap);
        add(&mappings, &worker->mappings);
        unmatched += worker->unmatched;
        calls += worker->calls;
        for (int slot = 0; slot < SLOTS; slot++) {
            count_live(&worker->held[slot], &heap);
        }
        for (int slot = 0; slot < MAPPINGS; slot++) {
            count_live(&worker->mapped[slot], &mappings);
        }
        for (int parcel = 0; parcel < THREADS * INBOX; parcel++) {
            struct parcel *left = &worker->inbox[parcel / INBOX][parcel % INBOX];
            if (left->there) {
                count_live(&left->block, &heap);
            }
        }
    }
    char line[512] = "done";
    size_t length = strlen(line);
    length += print_books(line + length, sizeof line - length, &heap);
    length += print_books(line + length, sizeof line - length, &mappings);
    snprintf(line + length, sizeof line - length, " %llu %llu\n", (unsigned long long)unmatched,
             (unsigned long long)calls);
    answer(line);
}

int main(void) {
    char command[COMMAND_BYTES];
    pthread_barrier_init(&run_begins, NULL, THREADS + 1);
    pthread_barrier_init(&run_ends, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) {
        workers[i].random = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
            _exit(112);
        }
    }
    pthread_barrier_wait(&run_ends);
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        run++;
        for (int i = 0; i < THREADS; i++) {
            memset(&workers[i].heap, 0, sizeof workers[i].heap);
            memset(&workers[i].mappings, 0, sizeof workers[i].mappings);
            workers[i].unmatched = workers[i].calls = 0;
        }
        pthread_barrier_wait(&run_begins);
        pthread_barrier_wait(&run_ends);
        report_books();
    }
}
