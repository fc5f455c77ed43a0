/* A leak for a program that has none: loaded by LD_PRELOAD, a thread of its own takes a block a hundred times a
 * second, in leak_one, and never frees it.
 *
 * The file that LEAK_BOOKS names gets how many blocks it took, as a 64-bit number. The calls go to the allocator of
 * the program, whichever that is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK_BYTES = 1024, PER_SECOND = 100 };

static volatile uint64_t *leaked;

__attribute__((noipa)) static void leak_one(void) {
    void *block = malloc(BLOCK_BYTES);
    __asm__ volatile("" : "+r"(block) : : "memory");
    *leaked += 1;
}

static void *leak(void *argument) {
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (;;) {
        leak_one();
        due.tv_nsec += 1000000000 / PER_SECOND;
        if (due.tv_nsec >= 1000000000) {
            due.tv_nsec -= 1000000000;
            due.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    }
    return argument;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LEAK_BOOKS");
    if (path == NULL) {
        return;
    }
    int books = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (books == -1 || ftruncate(books, sizeof *leaked) != 0) {
        abort();
    }
    void *mapped = mmap(NULL, sizeof *leaked, PROT_READ | PROT_WRITE, MAP_SHARED, books, 0);
    if (mapped == MAP_FAILED) {
        abort();
    }
    close(books);
    leaked = mapped;
    /* The program's signals are for its own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    if (pthread_create(&thread, NULL, leak, NULL) != 0) {
        abort();
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
