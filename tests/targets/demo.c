/* The program that `cargo xtask demo` traces: a small order server with one forgotten free.
 *
 * It is what one meets in practice, cut down to a page: a loop that serves requests, most of which clean up
 * after themselves, caches that grow to a bound and then stay, and one request kind in which an early
 * return forgets to free the buffer of its session. There is no network: the requests are made up here,
 * 2,000 a second. It runs until SIGTERM or SIGINT and prints nothing but a line at its start.
 *
 * memtrace names the leak: `open_session`, called by `handle_refund`. Every other stack of this program
 * balances, or holds a small and steady number of blocks.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    REQUESTS_PER_SECOND = 2000,
    REQUESTS_PER_TICK = 20, /* a tick is 10 ms */
    CACHE_ENTRIES = 256,
    SESSION_BYTES = 2048,
};

/* Functions keep their own frames, so that the report shows the program as it is written here. */
#define FRAME __attribute__((noinline, noclone)) static

struct session {
    uint64_t user;
    char buffer[SESSION_BYTES];
};

struct order {
    uint64_t id;
    char *note;
    size_t lines;
    struct line {
        uint32_t article, amount;
    } *items;
};

/* The last answers, by order number: grows to its bound in the first moments, then stays. */
static char *cache[CACHE_ENTRIES];

static volatile sig_atomic_t stopping;

static void stop(int signal) {
    (void)signal;
    stopping = 1;
}

static uint64_t random_state = 88172645463325252u;

/* Good enough to vary sizes; the same at every run. */
static uint64_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* Stops the server when there is no memory, as servers do. */
static void *must(void *block) {
    if (block == NULL) {
        fputs("demo: out of memory\n", stderr);
        exit(1);
    }
    return block;
}

FRAME struct session *open_session(uint64_t user) {
    struct session *session = must(malloc(sizeof *session));
    session->user = user;
    snprintf(session->buffer, sizeof session->buffer, "session of user %llu", (unsigned long long)user);
    return session;
}

FRAME void close_session(struct session *session) {
    free(session);
}

FRAME struct order *parse_order(uint64_t id) {
    struct order *order = must(calloc(1, sizeof *order));
    order->id = id;
    order->lines = 1 + next_random() % 20;
    order->items = must(calloc(order->lines, sizeof *order->items));
    order->note = must(strdup("leave at the door"));
    return order;
}

FRAME void free_order(struct order *order) {
    free(order->note);
    free(order->items);
    free(order);
}

/* Keeps the answer for the next one who asks, in place of an older one. */
FRAME void remember_answer(uint64_t id, const char *answer) {
    char **entry = &cache[id % CACHE_ENTRIES];
    free(*entry);
    *entry = must(strdup(answer));
}

FRAME void handle_order(uint64_t id) {
    struct session *session = open_session(id % 1000);
    struct order *order = parse_order(id);
    char answer[64];
    snprintf(answer, sizeof answer, "order %llu: %zu lines", (unsigned long long)order->id, order->lines);
    remember_answer(id, answer);
    free_order(order);
    close_session(session);
}

FRAME void handle_status(uint64_t id) {
    struct session *session = open_session(id % 1000);
    const char *answer = cache[id % CACHE_ENTRIES];
    snprintf(session->buffer, sizeof session->buffer, "%s", answer ? answer : "unknown");
    close_session(session);
}

/* The leak. A refund of an order that is no longer in the cache is turned down early, and this way out
 * forgets the session: 2 KiB and a bit, each time. */
FRAME void handle_refund(uint64_t id) {
    struct session *session = open_session(id % 1000);
    char expected[64];
    snprintf(expected, sizeof expected, "order %llu:", (unsigned long long)id);
    const char *answer = cache[id % CACHE_ENTRIES];
    if (answer == NULL || strncmp(answer, expected, strlen(expected)) != 0) {
        return; /* should be: close_session(session); return; */
    }
    remember_answer(id, "refunded");
    close_session(session);
}

/* Of a hundred requests 60 are orders, 35 ask for a status, 5 want their money back. */
FRAME void serve_request(uint64_t id) {
    uint64_t kind = next_random() % 100;
    if (kind < 60) {
        handle_order(id);
    } else if (kind < 95) {
        handle_status(id - next_random() % 100);
    } else {
        handle_refund(id - next_random() % 1000);
    }
    __asm__ volatile(""); /* no tail call: this frame stays in the stack */
}

FRAME void serve(void) {
    const long tick_ns = 1000000000L / REQUESTS_PER_SECOND * REQUESTS_PER_TICK;
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (uint64_t id = 10000; !stopping; id++) {
        serve_request(id);
        if (id % REQUESTS_PER_TICK == 0) {
            due.tv_nsec += tick_ns;
            if (due.tv_nsec >= 1000000000L) {
                due.tv_nsec -= 1000000000L;
                due.tv_sec++;
            }
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        }
    }
}

int main(void) {
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    fprintf(stderr, "demo: serving orders as process %d\n", (int)getpid());
    serve();
    return 0;
}
