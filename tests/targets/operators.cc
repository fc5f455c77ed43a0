// Leaks exactly 30,000 bytes by each variant of operator new, each in a function of its own, which also
// gives as many blocks back, by each variant of operator delete that fits.
//
// Commands: "go" runs the plan; "throws" makes every variant fail, by an exception where it has one;
// "refuse" makes those fail that return null.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#include "handshake.h"

namespace {

constexpr int BLOCKS = 3;
constexpr std::size_t BLOCK_BYTES = 10000;
constexpr auto ALIGNED = std::align_val_t{128};

}  // namespace

// Every other block is kept.
template <typename Delete>
static inline void dispose(int number, void *block, Delete give_back) {
    if (block == nullptr) {
        _exit(112);
    }
    std::memset(block, number, 8);
    ESCAPE(block);
    if (number % 2 == 0) {
        give_back(block);
    }
    ESCAPE(block);
}

#define LEAK(name, create, remove)                                 \
    NAMED void name() {                                            \
        for (int i = 0; i < 2 * BLOCKS; i++) {                     \
            void *made = create;                                   \
            ESCAPE(made);                                          \
            dispose(i, made, [](void *block) { remove; });         \
        }                                                          \
    }

LEAK(leak_new, ::operator new(BLOCK_BYTES), ::operator delete(block))
LEAK(leak_new_sized, ::operator new(BLOCK_BYTES), ::operator delete(block, BLOCK_BYTES))
LEAK(leak_new_array, ::operator new[](BLOCK_BYTES), ::operator delete[](block))
LEAK(leak_new_array_sized, ::operator new[](BLOCK_BYTES), ::operator delete[](block, BLOCK_BYTES))
LEAK(leak_new_nothrow, ::operator new(BLOCK_BYTES, std::nothrow), ::operator delete(block, std::nothrow))
LEAK(leak_new_array_nothrow, ::operator new[](BLOCK_BYTES, std::nothrow),
     ::operator delete[](block, std::nothrow))
LEAK(leak_new_aligned, ::operator new(BLOCK_BYTES, ALIGNED), ::operator delete(block, ALIGNED))
LEAK(leak_new_aligned_sized, ::operator new(BLOCK_BYTES, ALIGNED),
     ::operator delete(block, BLOCK_BYTES, ALIGNED))
LEAK(leak_new_array_aligned, ::operator new[](BLOCK_BYTES, ALIGNED), ::operator delete[](block, ALIGNED))
LEAK(leak_new_array_aligned_sized, ::operator new[](BLOCK_BYTES, ALIGNED),
     ::operator delete[](block, BLOCK_BYTES, ALIGNED))
LEAK(leak_new_aligned_nothrow, ::operator new(BLOCK_BYTES, ALIGNED, std::nothrow),
     ::operator delete(block, ALIGNED, std::nothrow))
LEAK(leak_new_array_aligned_nothrow, ::operator new[](BLOCK_BYTES, ALIGNED, std::nothrow),
     ::operator delete[](block, ALIGNED, std::nothrow))

// Blocks so small that allocators have them at hand, and so many that what is at hand runs out.
NAMED void leak_new_small() {
    for (int i = 0; i < 6000; i++) {
        void *block = ::operator new(10);
        ESCAPE(block);
        if (i % 2 == 0) {
            ::operator delete(block, std::size_t{10});
        }
    }
}

static volatile std::size_t too_much = SIZE_MAX / 4;

template <typename New>
static inline void survive(New make) {
    for (int i = 0; i < 10; i++) {
        try {
            void *block = make();
            ESCAPE(block);
            _exit(112);
        } catch (const std::bad_alloc &) {
        }
    }
}

NAMED void survive_bad_alloc() {
    survive([] { return ::operator new(too_much); });
    survive([] { return ::operator new[](too_much); });
    survive([] { return ::operator new(too_much, ALIGNED); });
    survive([] { return ::operator new[](too_much, ALIGNED); });
}

NAMED void survive_null() {
    void *blocks[] = {
        ::operator new(too_much, std::nothrow),
        ::operator new[](too_much, std::nothrow),
        ::operator new(too_much, ALIGNED, std::nothrow),
        ::operator new[](too_much, ALIGNED, std::nothrow),
    };
    for (void *block : blocks) {
        if (block != nullptr) {
            _exit(112);
        }
    }
}

NAMED void run_plan() {
    leak_new();
    leak_new_sized();
    leak_new_array();
    leak_new_array_sized();
    leak_new_nothrow();
    leak_new_array_nothrow();
    leak_new_aligned();
    leak_new_aligned_sized();
    leak_new_array_aligned();
    leak_new_array_aligned_sized();
    leak_new_aligned_nothrow();
    leak_new_array_aligned_nothrow();
    leak_new_small();
    NO_TAIL_CALL();
}

int main() {
    char command[COMMAND_BYTES];
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (std::strcmp(command, "quit") == 0) {
            return 0;
        }
        if (std::strcmp(command, "throws") == 0) {
            survive_bad_alloc();
            survive_null();
        } else if (std::strcmp(command, "refuse") == 0) {
            survive_null();
        } else {
            run_plan();
        }
        answer("done\n");
    }
}
