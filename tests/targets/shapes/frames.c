/* Shapes whose frames are peculiar. */
#define _GNU_SOURCE
#include <alloca.h>
#include <immintrin.h>
#include <setjmp.h>
#include <stdarg.h>

#include "shapes.h"

/* A number that the compiler does not know. */
static volatile int some = 3;

void follow(void) {
    FOLLOW();
}

void shape_plain(void) {
    FOLLOW();
}

void shape_alloca(void) {
    char *room = alloca(some * 100 + 1);
    ESCAPE(room);
    FOLLOW();
}

void shape_vla(void) {
    long numbers[some * 7];
    long *first = numbers;
    ESCAPE(first);
    FOLLOW();
    char letters[some + sizeof numbers];
    char *letter = letters;
    ESCAPE(letter);
}

/* The pages between are not touched; a probe for each of them would be -fstack-clash-protection's. */
void shape_large(void) {
    char room[1 << 20];
    char *first = room;
    ESCAPE(first);
    FOLLOW();
}

void shape_aligned(void) {
    _Alignas(64) char room[64];
    char *first = room;
    ESCAPE(first);
    FOLLOW();
}

void shape_aligned_page(void) {
    _Alignas(4096) char room[100];
    char *first = room;
    ESCAPE(first);
    FOLLOW();
}

/* Realigned, of a size that is not known, and it needs what its caller pushed: DRAP, kept in a register. */
__attribute__((noipa)) static void realign(int a, int b, int c, int d, int e, int f, int g, int h) {
    _Alignas(64) char room[64];
    char *first = room;
    char *more = alloca(g * 100 + 1);
    ESCAPE(first);
    ESCAPE(more);
    FOLLOW();
    some = a + b + c + d + e + f - 4 * g - 2 * h + 3 * 7;
}

void shape_drap(void) {
    realign(some - 2, 2, 3, 4, 5, 6, 7, 4);
    some = 3;
}

/* DRAP in a function of variable arguments. */
__attribute__((noipa)) static int realign_variable(int count, ...) {
    _Alignas(32) char room[96];
    char *first = room;
    va_list list;
    int sum = 0;
    va_start(list, count);
    ESCAPE(first);
    FOLLOW();
    for (int i = 0; i < count; i++) {
        sum += va_arg(list, int);
    }
    va_end(list);
    return sum;
}

void shape_drap_variable(void) {
    if (realign_variable(9, 1, 2, 3, 4, 5, 6, 7, 8, some) != 39) {
        _exit(113);
    }
}

/* Vectors that live across the call are spilled to places aligned at 32 bytes. */
__attribute__((target("avx2"))) void shape_avx(void) {
    __m256i one = _mm256_set1_epi32(some), two = _mm256_set1_epi32(some + 1);
    __asm__ volatile("" : "+x"(one), "+x"(two));
    FOLLOW();
    __asm__ volatile("" : "+x"(one), "+x"(two));
    if (_mm256_extract_epi32(_mm256_add_epi32(one, two), 5) != 7) {
        _exit(113);
    }
}

__attribute__((target("avx2"))) void shape_avx_alloca(void) {
    __m256i one = _mm256_set1_epi32(some);
    char *room = alloca(some * 64 + 1);
    ESCAPE(room);
    __asm__ volatile("" : "+x"(one));
    FOLLOW();
    __asm__ volatile("" : "+x"(one));
    if (_mm256_extract_epi32(one, 5) != 3) {
        _exit(113);
    }
}

/* Every register that a call keeps is taken, rbp too, by numbers that look like addresses of the stack. */
void shape_registers(void) {
    char *here = (char *)__builtin_frame_address(0);
    char *a = here + some, *b = here + 8, *c = here + 16, *d = here + 24, *e = here + 32, *f = here - 64;
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    FOLLOW();
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
}

struct bulk {
    long words[40];
};

__attribute__((noipa)) static long take_bulk(struct bulk bulk, void (*next)(void), int a, int b, int c, int d,
                                             int e, int f, int g) {
    next();
    return bulk.words[7] + a + b + c + d + e + f + g;
}

/* Arguments are pushed for the call, so that the frame is not the same for all its calls. */
void shape_pushed(void) {
    struct bulk bulk = {{some}};
    if (take_bulk(bulk, follow, 1, 2, 3, 4, 5, 6, some) != 24) {
        _exit(113);
    }
}

/* No frame: the caller's caller is next. */
void shape_tail(void) {
    const char *here = path;
    if (here != NULL && *here != 0) {
        path = here + 1;
        return shapes[*here - FIRST_SHAPE]();
    }
    return follow();
}

/* What a compiler holds to be unlikely it puts far from the function, with an FDE of its own. */
__attribute__((cold, noipa)) static void unlikely(void) {
    FOLLOW();
}

void shape_cold(void) {
    if (__builtin_expect(some == 3, 0)) {
        unlikely();
        FOLLOW();
    }
    NO_TAIL_CALL();
}

static jmp_buf to_never;

/* The call is the last instruction of the function: what it would return to belongs to another. */
__attribute__((noreturn, noipa)) static void follow_and_jump(void) {
    FOLLOW();
    longjmp(to_never, 1);
}

__attribute__((noreturn, noipa)) static void call_last(void) {
    jmp_buf outer;
    memcpy(outer, to_never, sizeof outer);
    if (some == 3) {
        follow_and_jump();
    }
    _exit(113);
}

__attribute__((noipa)) static void set_jump(void) {
    jmp_buf outer;
    memcpy(outer, to_never, sizeof outer);
    if (setjmp(to_never) == 0) {
        call_last();
    }
    memcpy(to_never, outer, sizeof outer);
}

void shape_no_return(void) {
    set_jump();
    NO_TAIL_CALL();
}

__attribute__((noipa, noreturn)) static void jump(jmp_buf where) {
    char *room = alloca(some * 1000);
    ESCAPE(room);
    longjmp(where, 1);
}

/* After a jump back. */
void shape_jumped(void) {
    jmp_buf here;
    if (setjmp(here) == 0) {
        jump(here);
    }
    FOLLOW();
}

/* Windows' convention: other registers are kept, and vectors with them. */
__attribute__((ms_abi, noipa)) static void foreign(int a, int b, int c, int d, int e) {
    FOLLOW();
    some = a + b + c + d + e - 12;
}

void shape_foreign(void) {
    foreign(1, 2, 3, 4, 5);
    NO_TAIL_CALL();
}

/* Most of the function needs no frame, so that it is made late. */
void shape_shrink_wrapped(void) {
    if (path == NULL || some != 3) {
        return;
    }
    char room[300];
    char *first = room;
    ESCAPE(first);
    FOLLOW();
}

__attribute__((noipa)) static int add_up(int depth, int *sum) {
    if (depth == 0) {
        FOLLOW();
        return 1;
    }
    *sum += add_up(depth - 1, sum);
    return depth;
}

/* Ten frames of one function. */
void shape_recursive(void) {
    int sum = 0;
    add_up(10, &sum);
    if (sum != 46) {
        _exit(113);
    }
}
