/* A process under a seccomp filter that lets through what an allocator needs, and nothing else.
 *
 * usage: confined kill     anything else ends the process
 *        confined errno    anything else fails with EPERM
 *
 *   go         1,000 rounds in each of two threads; figures beside run_rounds
 *   forbidden  a system call that the filter does not name; "EPERM" where the process survives it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "handshake.h"

enum { ROUNDS = 1000 };

#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define LET(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), ALLOW

static void require(int condition) {
    if (!condition) {
        _exit(112);
    }
}

static void confine(uint32_t otherwise) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        LET(read), LET(write), LET(futex), LET(mmap), LET(munmap), LET(mremap), LET(brk), LET(mprotect),
        LET(madvise), LET(exit), LET(exit_group),
        BPF_STMT(BPF_RET | BPF_K, otherwise),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    require(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    require(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
}

/* Per round and thread: 1 block of 700 bytes that is left, after 1 of 100, 1 of 300 and 1 of 500 that are
 * freed; 1 of 200,000 that is freed and that malloc maps; 1 mapping of 5,000 bytes that is unmapped. */
NAMED void run_rounds(void) {
    for (int i = 0; i < ROUNDS; i++) {
        void *block = malloc(100);
        ESCAPE(block);
        block = realloc(block, 700);
        ESCAPE(block);
        block = calloc(3, 100);
        ESCAPE(block);
        free(block);
        require(posix_memalign(&block, 64, 500) == 0);
        ESCAPE(block);
        free(block);
        block = malloc(200000);
        ESCAPE(block);
        free(block);
        void *mapping = mmap(NULL, 5000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        require(mapping != MAP_FAILED && munmap(mapping, 5000) == 0);
    }
}

static pthread_barrier_t begin, end;

static void *work(void *argument) {
    /* The thread and its arena are set up before the filter. */
    void *block = malloc(10);
    ESCAPE(block);
    pthread_barrier_wait(&end);
    for (;;) {
        pthread_barrier_wait(&begin);
        run_rounds();
        pthread_barrier_wait(&end);
    }
    return argument;
}

int main(int count, char **arguments) {
    char command[COMMAND_BYTES];
    pthread_t thread;
    require(count == 2);
    pthread_barrier_init(&begin, NULL, 2);
    pthread_barrier_init(&end, NULL, 2);
    require(pthread_create(&thread, NULL, work, NULL) == 0);
    pthread_barrier_wait(&end);
    confine(strcmp(arguments[1], "kill") == 0 ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | EPERM);
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (strcmp(command, "quit") == 0) {
            return 0;
        } else if (strcmp(command, "forbidden") == 0) {
            answer(syscall(SYS_getppid) == -1 && errno == EPERM ? "EPERM\n" : "allowed\n");
        } else {
            pthread_barrier_wait(&begin);
            run_rounds();
            pthread_barrier_wait(&end);
            answer("done\n");
        }
    }
}
