// Threads that allocate, free, and throw and catch exceptions without end, and check their own work.
//
// Commands: "rate" answers "rate <operations per second>", measured over half a second;
//           "check" answers "ok" or "bad" and what is wrong.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <string>
#include <thread>

#include "handshake.h"

namespace {

std::atomic<std::uint64_t> operations{0};
std::atomic<std::uint64_t> thrown{0};
std::atomic<std::uint64_t> caught{0};
std::atomic<std::uint64_t> damaged{0};

struct Failure : std::runtime_error {
    explicit Failure(std::uint64_t number)
        : std::runtime_error("failure number " + std::to_string(number)), number(number) {}
    std::uint64_t number;
};

}  // namespace

// Allocates before it throws, so that the exception crosses frames whose calls are traced.
NAMED void fail(int depth, std::uint64_t number) {
    std::string held(200, 'h');
    char *data = held.data();
    ESCAPE(data);
    if (depth == 0) {
        thrown.fetch_add(1, std::memory_order_relaxed);
        throw Failure(number);
    }
    fail(depth - 1, number);
    ESCAPE(data);
}

NAMED void allocate_and_check(std::uint64_t number) {
    const std::size_t bytes = 16 + number % 1000;
    auto *block = static_cast<unsigned char *>(std::malloc(bytes));
    const auto pattern = static_cast<unsigned char>(number);
    std::memset(block, pattern, bytes);
    ESCAPE(block);
    block = static_cast<unsigned char *>(std::realloc(block, bytes * 2));
    ESCAPE(block);
    if (block[0] != pattern || block[bytes - 1] != pattern) {
        damaged.fetch_add(1, std::memory_order_relaxed);
    }
    std::free(block);
}

NAMED void churn() {
    for (std::uint64_t number = 0;; number++) {
        allocate_and_check(number);
        if (number % 16 == 0) {
            try {
                fail(5, number);
                damaged.fetch_add(1, std::memory_order_relaxed);
            } catch (const Failure &failure) {
                if (failure.number != number || std::strstr(failure.what(), "failure number ") == nullptr) {
                    damaged.fetch_add(1, std::memory_order_relaxed);
                }
                caught.fetch_add(1, std::memory_order_relaxed);
            }
        }
        operations.fetch_add(1, std::memory_order_relaxed);
    }
}

NAMED void report_rate() {
    timespec from{}, to{}, half_a_second{0, 500000000};
    clock_gettime(CLOCK_MONOTONIC, &from);
    const std::uint64_t before = operations.load();
    nanosleep(&half_a_second, nullptr);
    const std::uint64_t after = operations.load();
    clock_gettime(CLOCK_MONOTONIC, &to);
    const double seconds = double(to.tv_sec - from.tv_sec) + double(to.tv_nsec - from.tv_nsec) / 1e9;
    char line[COMMAND_BYTES];
    std::snprintf(line, sizeof line, "rate %.0f\n", double(after - before) / seconds);
    answer(line);
}

NAMED void report_check() {
    const std::uint64_t caught_now = caught.load();
    const std::uint64_t thrown_now = thrown.load();
    // Each of the two threads may be between its throw and its catch.
    const bool balanced = thrown_now >= caught_now && caught_now > 0;
    char line[COMMAND_BYTES];
    if (damaged.load() == 0 && balanced) {
        std::snprintf(line, sizeof line, "ok\n");
    } else {
        std::snprintf(line, sizeof line, "bad damaged=%llu\n", (unsigned long long)damaged.load());
    }
    answer(line);
}

int main() {
    char command[COMMAND_BYTES];
    std::thread first(churn), second(churn);
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (std::strcmp(command, "quit") == 0) {
            _exit(0);
        }
        if (std::strcmp(command, "rate") == 0) {
            report_rate();
        } else {
            report_check();
        }
    }
}
