// Threads that allocate, free, and throw and catch exceptions without end, and check their own work.
//
// usage: churn            two threads
//        churn children   and a third that forks and executes itself, and checks what its children say
//
// Commands: "rate" answers "rate <operations per second>", measured over half a second;
//           "pair" answers "pair <nanoseconds>": what a malloc and its free take at the best. It goes on for a
//           second, but ends as soon as a pair takes no more than a call without traps does;
//           "check" answers "ok <children so far>", or "bad" and what is wrong.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <spawn.h>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <thread>

#include "handshake.h"

namespace {

std::atomic<std::uint64_t> operations{0};
std::atomic<std::uint64_t> thrown{0};
std::atomic<std::uint64_t> caught{0};
std::atomic<std::uint64_t> damaged{0};
std::atomic<std::uint64_t> children{0};

constexpr std::uint64_t fast_ns = 100;

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

// What a child writes: a sum over blocks that it allocates, resizes, and loses to exceptions.
NAMED std::uint64_t checksum(std::uint64_t seed) {
    std::uint64_t sum = seed;
    for (std::uint64_t number = seed; number < seed + 50; number++) {
        std::string text = std::to_string(number * number);
        for (int i = 0; i < 20; i++) {
            text += text.substr(0, 3);
        }
        try {
            fail(3, number);
        } catch (const Failure &failure) {
            caught.fetch_add(1, std::memory_order_relaxed);
            sum = sum * 31 + failure.number + text.size();
        }
        for (const char digit : text) {
            sum = sum * 31 + static_cast<unsigned char>(digit);
        }
    }
    return sum;
}

// The child's sum over a pipe, and its exit code.
NAMED bool is_right(pid_t child, int from_child, std::uint64_t expected) {
    std::uint64_t sum = 0;
    const bool read_all = read(from_child, &sum, sizeof sum) == ssize_t(sizeof sum);
    close(from_child);
    int status = 0;
    const bool ended = waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 42;
    return read_all && ended && sum == expected;
}

[[noreturn]] static void be_child(int to_parent, std::uint64_t seed) {
    const std::uint64_t sum = checksum(seed);
    _exit(write(to_parent, &sum, sizeof sum) == ssize_t(sizeof sum) ? 42 : 1);
}

NAMED bool fork_child(std::uint64_t seed, std::uint64_t expected) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return false;
    }
    const pid_t child = fork();
    if (child == 0) {
        be_child(ends[1], seed);
    }
    close(ends[1]);
    return is_right(child, ends[0], expected);
}

NAMED bool execute_child(std::uint64_t seed, std::uint64_t expected) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return false;
    }
    std::string name = "churn", role = "child", number = std::to_string(seed);
    char *arguments[] = {name.data(), role.data(), number.data(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    pid_t child = 0;
    const int error = posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    return is_right(error == 0 ? child : -1, ends[0], expected);
}

NAMED void make_children() {
    for (std::uint64_t seed = 1;; seed++) {
        const std::uint64_t expected = checksum(seed);
        const bool right = seed % 2 ? fork_child(seed, expected) : execute_child(seed, expected);
        if (!right) {
            damaged.fetch_add(1, std::memory_order_relaxed);
        }
        children.fetch_add(1, std::memory_order_relaxed);
    }
}

static std::uint64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return std::uint64_t(now.tv_sec) * 1000000000 + std::uint64_t(now.tv_nsec);
}

// Short loops: some of them are not interrupted, however busy the machine is.
NAMED std::uint64_t time_pairs() {
    constexpr int pairs = 200;
    const std::uint64_t begin = now_ns();
    for (int i = 0; i < pairs; i++) {
        void *block = std::malloc(100);
        ESCAPE(block);
        std::free(block);
    }
    return (now_ns() - begin) / pairs;
}

NAMED void report_pair() {
    const std::uint64_t end = now_ns() + 1000000000;
    std::uint64_t best = UINT64_MAX;
    while (best >= fast_ns && now_ns() < end) {
        best = std::min(best, time_pairs());
    }
    char line[COMMAND_BYTES];
    std::snprintf(line, sizeof line, "pair %llu\n", (unsigned long long)best);
    answer(line);
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
    // Each of the threads may be between its throw and its catch.
    const bool balanced = thrown_now >= caught_now && caught_now > 0;
    char line[COMMAND_BYTES];
    if (damaged.load() == 0 && balanced) {
        std::snprintf(line, sizeof line, "ok %llu\n", (unsigned long long)children.load());
    } else {
        std::snprintf(line, sizeof line, "bad damaged=%llu of %llu children\n",
                      (unsigned long long)damaged.load(), (unsigned long long)children.load());
    }
    answer(line);
}

int main(int count, char **arguments) {
    char command[COMMAND_BYTES];
    if (count == 3) {
        be_child(STDOUT_FILENO, std::strtoull(arguments[2], nullptr, 10));
    }
    std::thread first(churn), second(churn);
    std::thread third;
    if (count == 2) {
        third = std::thread(make_children);
    }
    answer("ready\n");
    for (;;) {
        next_command(command);
        if (std::strcmp(command, "quit") == 0) {
            _exit(0);
        } else if (std::strcmp(command, "rate") == 0) {
            report_rate();
        } else if (std::strcmp(command, "pair") == 0) {
            report_pair();
        } else {
            report_check();
        }
    }
}
