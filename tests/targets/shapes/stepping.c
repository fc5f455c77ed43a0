/* A signal at every instruction of some functions. Which those are is found before the trace, by the processor's
 * trap flag: debuggers have a use of their own for it. Then each in turn is replaced by one that is illegal,
 * whose handler puts it back and plants a block.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "shapes.h"

enum { TRAP_FLAG = 0x100, ILLEGAL = 0x06, PAGE_BYTES = 4096, MOST_OF_ONE = 400, MOST = 4000 };

static void require(int holds) {
    if (!holds) {
        _exit(113);
    }
}

static void nothing(void) {}

static char text[300], copy[300];

static void strings(void) {
    size_t bytes = strlen(text);
    ESCAPE(bytes);
    char *end = stpcpy(copy, text);
    ESCAPE(end);
    memset(copy, 0, sizeof copy);
}

static int greater(const void *one, const void *other) {
    return *(const int *)one - *(const int *)other;
}

static void sort(void) {
    int numbers[] = {3, 1, 2};
    qsort(numbers, 3, sizeof numbers[0], greater);
    int *first = numbers;
    ESCAPE(first);
}

static void jump_back(void) {
    jmp_buf here;
    if (setjmp(here) == 0) {
        longjmp(here, 1);
    }
}

/* In `code.S`: calls `library_answer` by way of the procedure linkage table. */
void call_answer(void);
extern const unsigned char call_answer_distance[];

/* Has the next call bound anew: the table's second instruction asks the dynamic linker for it. */
static void unbind(void) {
    int32_t distance;
    memcpy(&distance, call_answer_distance, sizeof distance);
    const unsigned char *stub = call_answer_distance + sizeof distance + distance;
    /* jmp *slot(%rip) */
    require(stub[0] == 0xff && stub[1] == 0x25);
    memcpy(&distance, stub + 2, sizeof distance);
    *(const unsigned char **)(stub + 6 + distance) = stub + 6;
}

static ucontext_t back, there;

static void run_there(void) {
    NO_TAIL_CALL();
}

static void switch_stacks(void) {
    static char stack[1 << 16];
    require(getcontext(&there) == 0);
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = sizeof stack;
    there.uc_link = &back;
    makecontext(&there, run_there, 0);
    swapcontext(&back, &there);
}

static const struct {
    void (*prepare)(void);
    void (*run)(void);
} others[] = {
    {nothing, strings},   {nothing, sort}, {nothing, jump_back},
    {unbind, call_answer}, {nothing, switch_stacks},
};
enum { OTHERS = sizeof others / sizeof others[0] };

static struct {
    unsigned char *at;
    size_t function;
} instructions[MOST];
static size_t instruction_count, first_of_function, function_count;

/* In `code.S`: sets the flag, calls, takes the flag back. */
void step_through(void (*function)(void));
extern const unsigned char step_through_end[];

static void note(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    unsigned char *at = (unsigned char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (at >= (unsigned char *)step_through && at < step_through_end) {
        return;
    }
    for (size_t i = first_of_function; i < instruction_count; i++) {
        if (instructions[i].at == at) {
            return;
        }
    }
    if (instruction_count < MOST && instruction_count - first_of_function < MOST_OF_ONE) {
        instructions[instruction_count].function = function_count;
        instructions[instruction_count++].at = at;
    }
}

static unsigned char *armed, replaced;

static void plant(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    require(armed == (unsigned char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP]);
    *armed = replaced;
    armed = NULL;
    void *block = malloc(next_bytes++);
    ESCAPE(block);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), struct sigaction *before) {
    struct sigaction action = {.sa_flags = SA_SIGINFO};
    action.sa_sigaction = handler;
    require(sigaction(number, &action, before) == 0);
}

static void prepare(size_t function, size_t frames) {
    path = NULL;
    if (function >= frames) {
        others[function - frames].prepare();
    }
}

static void (*run_of(size_t function, size_t frames))(void) {
    return function < frames ? shapes[function] : others[function - frames].run;
}

/* The first `frames` shapes, whose paths are at an end, and what is above. */
void find_instructions(size_t frames) {
    struct sigaction before;
    handle(SIGTRAP, note, &before);
    memset(text, 'x', sizeof text - 1);
    for (size_t function = 0; function < frames + OTHERS; function++) {
        function_count = function;
        first_of_function = instruction_count;
        /* What is done once only is not to be found. */
        run_of(function, frames)();
        prepare(function, frames);
        step_through(run_of(function, frames));
    }
    require(instruction_count > 300 && instruction_count < MOST);
    require(sigaction(SIGTRAP, &before, NULL) == 0);
}

void interrupt_instructions(size_t frames) {
    struct sigaction before;
    handle(SIGILL, plant, &before);
    for (size_t i = 0; i < instruction_count; i++) {
        unsigned char *at = instructions[i].at;
        void *page = (void *)((uintptr_t)at & -(uintptr_t)PAGE_BYTES);
        require(mprotect(page, PAGE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
        prepare(instructions[i].function, frames);
        replaced = *at;
        armed = at;
        *(volatile unsigned char *)at = ILLEGAL;
        run_of(instructions[i].function, frames)();
        require(armed == NULL);
    }
    require(sigaction(SIGILL, &before, NULL) == 0);
}
