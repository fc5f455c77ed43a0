/* A program whose allocator samples its own allocations, and tells of them by the probes otel_memory:alloc and
 * otel_memory:free, as design-docs/00003-memory-profiling of the OpenTelemetry eBPF profiler proposes. The notes are
 * written here by hand.
 *
 *   where                  answers with the addresses of the two semaphores
 *   go                     runs the plan; answers how many calls the allocator had, how many it told of, and how many
 *                          frees of these
 *
 * Every sixteenth block of a size is a sample, and stands for sixteen. A sample is so far behind the block of malloc
 * that it lies in: what it is handed out as is no block of malloc's.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "handshake.h"

enum { EACH = 16, SIZES = 4 };

/* What a tracer raises as long as it listens. */
#define SEMAPHORE(name) __attribute__((section(".probes"), used)) volatile unsigned short name

SEMAPHORE(otel_memory_alloc_semaphore);
SEMAPHORE(otel_memory_free_semaphore);

/* A nop and its note: sys/sdt.h has the same. */
#define PROBE(name, operands, ...)                                      \
    __asm__ volatile(                                                   \
        "990: nop\n"                                                    \
        ".pushsection .note.stapsdt,\"?\",\"note\"\n"                   \
        ".balign 4\n"                                                   \
        ".4byte 992f-991f, 994f-993f, 3\n"                              \
        "991: .asciz \"stapsdt\"\n"                                     \
        "992: .balign 4\n"                                              \
        "993: .8byte 990b\n"                                            \
        ".8byte _.stapsdt.base\n"                                       \
        ".8byte otel_memory_" #name "_semaphore\n"                      \
        ".asciz \"otel_memory\"\n"                                      \
        ".asciz \"" #name "\"\n"                                        \
        ".asciz \"" operands "\"\n"                                     \
        "994: .balign 4\n"                                              \
        ".popsection\n"                                                 \
        ".ifndef _.stapsdt.base\n"                                      \
        ".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n" \
        ".weak _.stapsdt.base\n"                                        \
        ".hidden _.stapsdt.base\n"                                      \
        "_.stapsdt.base: .space 1\n"                                    \
        ".size _.stapsdt.base, 1\n"                                     \
        ".popsection\n"                                                 \
        ".endif\n"                                                      \
        :                                                               \
        : __VA_ARGS__                                                   \
        : "memory")

/* In front of each block. */
struct head {
    uint64_t is_sample;
    uint64_t unused;
};

static unsigned long calls, told, told_frees;

static int is_sample(int kind) {
    static unsigned counts[SIZES];
    return otel_memory_alloc_semaphore && ++counts[kind] % EACH == 0;
}

NAMED void *sampling_alloc(size_t size, int kind) {
    struct head *head = malloc(sizeof *head + size);
    void *block = head + 1;
    calls++;
    head->is_sample = is_sample(kind);
    if (head->is_sample) {
        uint64_t weight = EACH * size;
        told++;
        PROBE(alloc, "8@%0 8@%1 8@%2", "r"(block), "r"(size), "r"(weight));
    }
    ESCAPE(block);
    return block;
}

/* The same with operands of other kinds: in memory, signed and of four bytes, and a constant. */
NAMED void *sampling_alloc_large(int kind) {
    enum { SIZE = 5000 };
    struct head *head = malloc(sizeof *head + SIZE);
    void *volatile block = head + 1;
    int size = SIZE;
    calls++;
    head->is_sample = is_sample(kind);
    if (head->is_sample) {
        told++;
        PROBE(alloc, "8@%0 -4@%k1 8@%2", "m"(block), "r"(size), "i"(EACH * SIZE));
    }
    return block;
}

NAMED void sampling_free(void *block) {
    struct head *head = (struct head *)block - 1;
    if (head->is_sample) {
        told_frees++;
        PROBE(free, "8@%0", "r"(block));
    }
    free(head);
}

NAMED void grow_cache(void) {
    for (int i = 0; i < 1600; i++) {
        void *block = sampling_alloc(100, 0);
        ESCAPE(block);
    }
}

NAMED void churn(void) {
    for (int i = 0; i < 800; i++) {
        sampling_free(sampling_alloc(64, 1));
    }
}

NAMED void keep_half(void) {
    static void *blocks[1600];
    for (int i = 0; i < 1600; i++) {
        blocks[i] = sampling_alloc(48, 2);
    }
    for (int i = 0; i < 800; i++) {
        sampling_free(blocks[i]);
    }
}

NAMED void keep_large(void) {
    for (int i = 0; i < 64; i++) {
        void *block = sampling_alloc_large(3);
        ESCAPE(block);
    }
}

/* Who asks malloc itself is seen by nobody who listens to samples. */
NAMED void leak_past_sampler(void) {
    for (int i = 0; i < 10; i++) {
        void *block = malloc(777);
        ESCAPE(block);
    }
}

int main(void) {
    char command[COMMAND_BYTES], line[128];
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        }
        if (strcmp(command, "where") == 0) {
            snprintf(line, sizeof line, "%lu %lu\n", (unsigned long)&otel_memory_alloc_semaphore,
                     (unsigned long)&otel_memory_free_semaphore);
        } else {
            calls = told = told_frees = 0;
            grow_cache();
            churn();
            keep_half();
            keep_large();
            leak_past_sampler();
            snprintf(line, sizeof line, "done %lu %lu %lu\n", calls, told, told_frees);
        }
        answer(line);
    }
}
