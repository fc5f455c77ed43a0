// Leaks exactly 30,000 bytes by C++ `new`, `new[]` and a container, and throws through `operator new`.
//
// Commands: "go" runs the plan and leaks; "clean" runs the same plan and frees everything.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "handshake.h"

namespace {

constexpr int BLOCKS = 3;
constexpr std::size_t BLOCK_BYTES = 10000;

struct Block {
    char bytes[BLOCK_BYTES];
};

volatile bool frees;

}  // namespace

NAMED void leak_new() {
    for (int i = 0; i < BLOCKS; i++) {
        Block *block = new Block;
        ESCAPE(block);
        if (frees) {
            delete block;
        }
    }
}

NAMED void leak_new_array() {
    for (int i = 0; i < BLOCKS; i++) {
        char *block = new char[BLOCK_BYTES];
        ESCAPE(block);
        if (frees) {
            delete[] block;
        }
    }
}

NAMED void leak_new_aligned() {
    for (int i = 0; i < BLOCKS; i++) {
        void *block = ::operator new(9984, std::align_val_t{128});
        ESCAPE(block);
        if (frees) {
            ::operator delete(block, std::align_val_t{128});
        }
    }
    void *rest = ::operator new(48);
    ESCAPE(rest);
    if (frees) {
        ::operator delete(rest);
    }
}

// The vector itself lies in static storage: its elements are the only block.
NAMED void leak_vector() {
    alignas(std::vector<char>) static unsigned char storage[sizeof(std::vector<char>)];
    auto *vector = new (storage) std::vector<char>();
    vector->reserve(BLOCKS * BLOCK_BYTES);
    ESCAPE(vector);
    if (frees) {
        vector->~vector();
    }
}

// The exception is thrown by `operator new` itself, inside its call to malloc.
NAMED void survive_bad_alloc() {
    std::size_t too_much = SIZE_MAX / 4;
    for (int i = 0; i < 100; i++) {
        try {
            ESCAPE(too_much);
            char *block = new char[too_much];
            ESCAPE(block);
            _exit(112);
        } catch (const std::bad_alloc &) {
        }
    }
}

// A frame that holds a block while an exception crosses it.
NAMED void throw_from_depth(int depth) {
    std::vector<char> held(100);
    char *data = held.data();
    ESCAPE(data);
    if (depth == 0) {
        throw std::runtime_error("a message too long for the small string buffer of std::string");
    }
    throw_from_depth(depth - 1);
    ESCAPE(data);
}

NAMED void survive_thrown() {
    for (int i = 0; i < 100; i++) {
        try {
            throw_from_depth(10);
            _exit(112);
        } catch (const std::runtime_error &) {
        }
    }
}

NAMED void run_plan() {
    leak_new();
    leak_new_array();
    leak_new_aligned();
    leak_vector();
    survive_bad_alloc();
    survive_thrown();
}

int main() {
    char command[COMMAND_BYTES];
    // The unwinder sets up its tables at the first exception: not part of the plan.
    survive_bad_alloc();
    survive_thrown();
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (std::strcmp(command, "quit") == 0) {
            return 0;
        }
        frees = std::strcmp(command, "clean") == 0;
        run_plan();
        answer("done\n");
    }
}
