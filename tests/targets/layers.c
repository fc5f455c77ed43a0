/* Memory of every kind, as much of each as is asked for.
 *
 *   test      blocks <n>       n blocks of 1 KiB by malloc, written
 *   test      halve            gives every other of them back
 *   test      large <n>        n blocks of 1 MiB by malloc, written; the last of four times as much, a quarter written
 *   test      map <n>          n mappings of 1 MiB, written, between pages that cannot be touched
 *   test      read             a mapping of 16 MiB, each page of it read, none written
 *   test      share            a mapping of 8 MiB, shared, written
 *   test      thread           a thread that goes 2 MiB deep into its stack, and has an arena with 1 MiB
 *   test      variables        writes 4 MiB of variables
 *   test      fork             a process that shares all of this, and waits for its end
 *   test      info             mallinfo2(): arena, hblkhd, uordblks, fordblks
 */
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "handshake.h"

#define MIB (1u << 20)

static char **blocks;
static size_t count;
static char variables[4 * MIB];
static int ready[2];

static void *written(void *memory, size_t bytes) {
    if (memory == NULL || memory == MAP_FAILED) {
        _exit(112);
    }
    memset(memory, 1, bytes);
    return memory;
}

static void *map(size_t bytes, int flags) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    /* Pages come one by one, whatever the machine's huge pages are set to. */
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    return memory;
}

static void *deep(void *unused) {
    char local[2 * MIB];
    written(local, sizeof local);
    for (int i = 0; i < 1024; i++) {
        ESCAPE(local[0]);
        written(malloc(1008), 1008);
    }
    if (write(ready[1], "", 1) != 1) {
        _exit(113);
    }
    pause();
    return unused;
}

int main(void) {
    char command[COMMAND_BYTES], line[128];
    answer("ready\n");
    for (;;) {
        next_command(command);
        size_t number = 0;
        char *space = strchr(command, ' ');
        if (space) {
            *space = 0;
            number = strtoul(space + 1, NULL, 10);
        }
        strcpy(line, "done\n");
        if (strcmp(command, "quit") == 0) {
            return 0;
        } else if (strcmp(command, "blocks") == 0) {
            count = number;
            blocks = map(count * sizeof *blocks, MAP_PRIVATE);
            for (size_t i = 0; i < count; i++) {
                blocks[i] = written(malloc(1024), 1024);
            }
        } else if (strcmp(command, "halve") == 0) {
            for (size_t i = 0; i < count; i += 2) {
                free(blocks[i]);
            }
        } else if (strcmp(command, "large") == 0) {
            /* The limit would grow with what is freed. */
            mallopt(M_MMAP_THRESHOLD, 128 * 1024);
            for (size_t i = 1; i < number; i++) {
                written(malloc(MIB), MIB);
            }
            void *last = malloc(4 * MIB);
            madvise((char *)last + 4080, 3 * MIB, MADV_NOHUGEPAGE);
            written(last, MIB);
        } else if (strcmp(command, "map") == 0) {
            for (size_t i = 0; i < number; i++) {
                char *memory = map(MIB + 8192, MAP_PRIVATE);
                mprotect(memory, 4096, PROT_NONE);
                mprotect(memory + MIB + 4096, 4096, PROT_NONE);
                written(memory + 4096, MIB);
            }
        } else if (strcmp(command, "read") == 0) {
            volatile char *memory = map(16 * MIB, MAP_PRIVATE);
            for (size_t i = 0; i < 16 * MIB; i += 4096) {
                (void)memory[i];
            }
        } else if (strcmp(command, "share") == 0) {
            written(map(8 * MIB, MAP_SHARED), 8 * MIB);
        } else if (strcmp(command, "thread") == 0) {
            pthread_t thread;
            char byte;
            if (pipe(ready) || pthread_create(&thread, NULL, deep, NULL) || read(ready[0], &byte, 1) != 1) {
                _exit(114);
            }
        } else if (strcmp(command, "variables") == 0) {
            written(variables, sizeof variables);
        } else if (strcmp(command, "fork") == 0) {
            if (fork() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                for (;;) {
                    pause();
                }
            }
        } else if (strcmp(command, "info") == 0) {
            struct mallinfo2 info = mallinfo2();
            snprintf(line, sizeof line, "%zu %zu %zu %zu\n", info.arena, info.hblkhd, info.uordblks, info.fordblks);
        } else {
            _exit(115);
        }
        answer(line);
    }
}
