/* Shapes of signals, and of stacks that the program makes itself. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#include "shapes.h"

static void require(int holds) {
    if (!holds) {
        _exit(113);
    }
}

static void handle(int number) {
    (void)number;
    FOLLOW();
}

static void handle_in_detail(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
    char room[100];
    char *first = room;
    ESCAPE(first);
    FOLLOW();
}

static jmp_buf *way_out;

/* Leaves by the way out, or goes on behind the instruction that was interrupted. In `code.S` each of these is two
 * bytes long. */
static void step_over(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    jmp_buf *out = way_out;
    way_out = NULL;
    FOLLOW();
    if (out != NULL) {
        longjmp(*out, 1);
    }
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static void set_handler(int number, void (*handler)(int, siginfo_t *, void *)) {
    struct sigaction action = {.sa_flags = SA_NODEFER | SA_SIGINFO | SA_ONSTACK};
    action.sa_sigaction = handler;
    require(sigaction(number, &action, NULL) == 0);
}

void set_handlers(void) {
    struct sigaction plain = {.sa_flags = SA_NODEFER};
    plain.sa_handler = handle;
    require(sigaction(SIGUSR1, &plain, NULL) == 0);
    set_handler(SIGUSR2, handle_in_detail);
    set_handler(SIGILL, step_over);
    set_handler(SIGSEGV, step_over);
    set_handler(SIGFPE, step_over);
}

enum { STACK_BYTES = 4 << 20 };

static void *new_stack(void) {
    void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(stack != MAP_FAILED);
    return stack;
}

/* Calls `act`, whose signal is handled on a stack of its own. */
static void elsewhere(void (*act)(void)) {
    void *memory = new_stack();
    stack_t stack = {.ss_sp = memory, .ss_size = STACK_BYTES}, before;
    int set = sigaltstack(&stack, &before) == 0;
    /* Where it cannot be set, a handler runs on such a stack already. */
    act();
    if (set) {
        require(sigaltstack(&before, NULL) == 0);
    }
    munmap(memory, STACK_BYTES);
}

/* Raised by the program itself, so that the C library is what is interrupted. */
void shape_raise(void) {
    require(raise(SIGUSR1) == 0);
}

static void raise_second(void) {
    require(raise(SIGUSR2) == 0);
}

void shape_raise_elsewhere(void) {
    elsewhere(raise_second);
}

/* Delivered when it is no longer blocked. */
void shape_unblocked(void) {
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    require(pthread_sigmask(SIG_BLOCK, &set, &before) == 0);
    require(raise(SIGUSR1) == 0);
    require(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
}

/* Functions of `code.S`, each interrupted at one instruction. */
void illegal_at_first(void);
void illegal_in_prologue(void);
void illegal_in_body(void);
void illegal_in_epilogue(void);
void illegal_at_return(void);
void fault_in_red_zone(void);
void divide_by_zero(void);
void spin(int *spins);
void library_fault_without_cfi(void);

/* The first instruction of a function: the byte before it is another's. */
void shape_first_instruction(void) {
    illegal_at_first();
    NO_TAIL_CALL();
}

void shape_prologue(void) {
    illegal_in_prologue();
    NO_TAIL_CALL();
}

void shape_body(void) {
    illegal_in_body();
    NO_TAIL_CALL();
}

void shape_epilogue(void) {
    illegal_in_epilogue();
    NO_TAIL_CALL();
}

void shape_return(void) {
    illegal_at_return();
    NO_TAIL_CALL();
}

void shape_red_zone(void) {
    fault_in_red_zone();
    NO_TAIL_CALL();
}

void shape_divide(void) {
    elsewhere(divide_by_zero);
    NO_TAIL_CALL();
}

void shape_fault_without_cfi(void) {
    library_fault_without_cfi();
    NO_TAIL_CALL();
}

/* The kernel's own code, which it maps into every process, is given an address that it cannot write to. */
static void fault_in_kernel_code(int (*call)(void)) {
    jmp_buf here;
    if (setjmp(here) == 0) {
        way_out = &here;
        call();
        way_out = NULL;
    }
    /* Where the kernel has no such code, it does not fault. */
    FOLLOW();
}

static void *volatile nowhere = (void *)8;

static int tell_time(void) {
    int result = clock_gettime(CLOCK_MONOTONIC, nowhere);
    ESCAPE(result);
    return result;
}

static int tell_processor(void) {
    int result = getcpu(nowhere, NULL);
    ESCAPE(result);
    return result;
}

void shape_clock(void) {
    fault_in_kernel_code(tell_time);
}

void shape_processor(void) {
    fault_in_kernel_code(tell_processor);
}

struct spinning {
    int spins;
    pthread_t thread;
};

static void *interrupt(void *argument) {
    struct spinning *spinning = argument;
    while (!__atomic_load_n(&spinning->spins, __ATOMIC_ACQUIRE)) {
        sched_yield();
    }
    require(pthread_kill(spinning->thread, SIGILL) == 0);
    return NULL;
}

/* A loop of one instruction, interrupted by another thread. */
void shape_loop(void) {
    struct spinning spinning = {.spins = 0, .thread = pthread_self()};
    pthread_t other;
    require(pthread_create(&other, NULL, interrupt, &spinning) == 0);
    spin(&spinning.spins);
    require(pthread_join(other, NULL) == 0);
}

/* A coroutine of the C library's, which has nothing below it. */
struct coroutine {
    ucontext_t back, there;
    struct coroutine *outer;
};

static struct coroutine *current;

static void run_coroutine(void) {
    FOLLOW();
}

void shape_coroutine(void) {
    struct coroutine self = {.outer = current};
    void *stack = new_stack();
    require(getcontext(&self.there) == 0);
    self.there.uc_stack.ss_sp = stack;
    self.there.uc_stack.ss_size = STACK_BYTES;
    self.there.uc_link = &self.back;
    current = &self;
    makecontext(&self.there, run_coroutine, 0);
    require(swapcontext(&self.back, &self.there) == 0);
    current = self.outer;
    munmap(stack, STACK_BYTES);
}

static void run_with_arguments(int a, int b, int c, int d, int e, int f, int g, int h) {
    FOLLOW();
    require(a + b + c + d + e + f + g + h == 36);
    swapcontext(&current->there, &current->back);
}

/* One whose function has arguments on the stack, and that is left without coming to its end. */
void shape_coroutine_with_arguments(void) {
    struct coroutine self = {.outer = current};
    void *stack = new_stack();
    require(getcontext(&self.there) == 0);
    self.there.uc_stack.ss_sp = stack;
    self.there.uc_stack.ss_size = STACK_BYTES;
    self.there.uc_link = NULL;
    current = &self;
    makecontext(&self.there, (void (*)(void))run_with_arguments, 8, 1, 2, 3, 4, 5, 6, 7, 8);
    require(swapcontext(&self.back, &self.there) == 0);
    current = self.outer;
    munmap(stack, STACK_BYTES);
}

/* Code that the program makes itself, always at the same address, so that two runs can be compared. It has
 * no file and no unwind information. */
#define CODE_ADDR 0x10000000000
enum { KEEPS_POINTER = 0, NO_POINTER = 4096, CALLS_CODE = 8192, CODE_BYTES = 12288 };

static const unsigned char with_pointer[] = {
    0x55,             /* push %rbp */
    0x48, 0x89, 0xe5, /* mov %rsp, %rbp */
    0x48, 0xb8,       /* movabs $.., %rax */
};
static const unsigned char with_pointer_end[] = {
    0xff, 0xd0, /* call *%rax */
    0x5d,       /* pop %rbp */
    0xc3,       /* ret */
};
static const unsigned char without_pointer[] = {
    0x48, 0x83, 0xec, 0x18, /* sub $24, %rsp */
    0x48, 0xb8,             /* movabs $.., %rax */
};
static const unsigned char without_pointer_end[] = {
    0xff, 0xd0,             /* call *%rax */
    0x48, 0x83, 0xc4, 0x18, /* add $24, %rsp */
    0xc3,                   /* ret */
};

static char *put(char *at, const void *bytes, size_t count) {
    memcpy(at, bytes, count);
    return at + count;
}

void make_code(void) {
    char *code = mmap((void *)CODE_ADDR, CODE_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    require(code == (void *)CODE_ADDR);
    void (*callee)(void) = follow;
    void *nested = code + KEEPS_POINTER;
    char *at = put(code + KEEPS_POINTER, with_pointer, sizeof with_pointer);
    put(put(at, &callee, sizeof callee), with_pointer_end, sizeof with_pointer_end);
    at = put(code + NO_POINTER, without_pointer, sizeof without_pointer);
    put(put(at, &callee, sizeof callee), without_pointer_end, sizeof without_pointer_end);
    at = put(code + CALLS_CODE, with_pointer, sizeof with_pointer);
    put(put(at, &nested, sizeof nested), with_pointer_end, sizeof with_pointer_end);
    require(mprotect(code, CODE_BYTES, PROT_READ | PROT_EXEC) == 0);
}

static void call_code(size_t offset) {
    ((void (*)(void))(CODE_ADDR + offset))();
    NO_TAIL_CALL();
}

void shape_code(void) {
    call_code(KEEPS_POINTER);
}

void shape_code_without_pointer(void) {
    call_code(NO_POINTER);
}

void shape_code_nested(void) {
    call_code(CALLS_CODE);
}
