// C++ exceptions that cross frames whose calls are traced.
//
//   throw      100,000 exceptions, each through five frames that hold a block of 200 bytes. The answer is
//              "done <caught> <sum of their numbers> <blocks held and given back>".
//   bad_alloc  10,000 times operator new of more than there is, of each kind; "done <caught> <null>".

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "handshake.h"

namespace {

std::uint64_t held, given_back;

struct Failure {
    std::uint64_t number;
};

}  // namespace

NAMED void *take_block() {
    void *block = std::malloc(200);
    ESCAPE(block);
    std::memset(block, 0x5a, 200);
    held++;
    return block;
}

NAMED void give_back(void *block) {
    given_back++;
    std::free(block);
}

// Its destructor runs while the exception passes.
struct Holder {
    void *block = take_block();
    Holder() = default;
    Holder(const Holder &) = delete;
    Holder &operator=(const Holder &) = delete;
    ~Holder() { give_back(block); }
};

NAMED void fail(int depth, std::uint64_t number) {
    Holder holder;
    if (depth == 0) {
        throw Failure{number};
    }
    fail(depth - 1, number);
    ESCAPE(holder.block);
}

NAMED void throw_and_catch() {
    std::uint64_t caught = 0, sum = 0;
    for (std::uint64_t number = 0; number < 100000; number++) {
        try {
            fail(4, number);
        } catch (const Failure &failure) {
            caught++;
            sum += failure.number;
        }
    }
    char line[128];
    std::snprintf(line, sizeof line, "done %llu %llu %llu %llu\n", (unsigned long long)caught,
                  (unsigned long long)sum, (unsigned long long)held, (unsigned long long)given_back);
    answer(line);
}

NAMED std::size_t hidden(std::size_t size) {
    ESCAPE(size);
    return size;
}

NAMED void ask_too_much() {
    const std::size_t absurd = PTRDIFF_MAX - 4096, beyond_memory = std::size_t{1} << 46;
    unsigned caught = 0, null = 0;
    for (int i = 0; i < 10000; i++) {
        for (std::size_t bytes : {absurd, beyond_memory}) {
            Holder holder;
            try {
                void *block = ::operator new(hidden(bytes));
                ESCAPE(block);
            } catch (const std::bad_alloc &) {
                caught++;
            }
            try {
                void *block = ::operator new(hidden(bytes), std::align_val_t{64});
                ESCAPE(block);
            } catch (const std::bad_alloc &) {
                caught++;
            }
            void *block = ::operator new(hidden(bytes), std::nothrow);
            ESCAPE(block);
            null += block == nullptr;
        }
    }
    char line[128];
    std::snprintf(line, sizeof line, "done %u %u\n", caught, null);
    answer(line);
}

int main() {
    char command[COMMAND_BYTES];
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (std::strcmp(command, "quit") == 0) {
            return 0;
        } else if (std::strcmp(command, "throw") == 0) {
            throw_and_catch();
        } else {
            ask_too_much();
        }
    }
}
