// Shapes of C++.
#include <algorithm>
#include <functional>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <regex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "shapes.h"

static void require(bool holds) {
    if (!holds) {
        _exit(113);
    }
}

static volatile int some = 3;

#define SHAPE(name) extern "C" void shape_##name(void)

struct Follower {
    ~Follower() { FOLLOW(); }
};

__attribute__((noipa)) static void throw_number(int number) {
    throw number;
}

// In a handler of the exception.
SHAPE(catch) {
    try {
        throw_number(some);
    } catch (int number) {
        FOLLOW();
        require(number == 3);
    }
}

// In a handler of a second exception, while the first is being handled.
SHAPE(catch_in_catch) {
    try {
        throw_number(1);
    } catch (int) {
        try {
            throw;
        } catch (...) {
            FOLLOW();
        }
    }
}

__attribute__((noipa)) static void destroy_and_throw() {
    Follower follower;
    throw_number(some);
}

// In a destructor while the stack is unwound.
SHAPE(unwinding) {
    try {
        destroy_and_throw();
    } catch (int) {
        NO_TAIL_CALL();
    }
}

struct ThrowsInTheMiddle {
    Follower member;
    ThrowsInTheMiddle() { throw_number(some); }
};

// The members of an object that was never finished.
SHAPE(constructor_throws) {
    try {
        ThrowsInTheMiddle object;
        auto *member = &object.member;
        ESCAPE(member);
    } catch (int) {
        NO_TAIL_CALL();
    }
}

SHAPE(filter_by_type) {
    try {
        try {
            throw std::runtime_error("a text that is longer than what a string holds in itself");
        } catch (const std::logic_error &) {
            require(false);
        }
    } catch (const std::exception &error) {
        FOLLOW();
        require(error.what()[0] == 'a');
    }
}

struct Left {
    virtual ~Left() = default;
    virtual void left() = 0;
    long pad[5];
};

struct Right {
    virtual ~Right() = default;
    virtual void right(std::string text) = 0;
};

struct Both : Left, Right {
    __attribute__((noipa)) void left() override { FOLLOW(); }
    __attribute__((noipa)) void right(std::string text) override {
        FOLLOW();
        require(text.size() == 3);
    }
};

struct Deep : virtual Right {
    __attribute__((noipa)) void right(std::string) override { FOLLOW(); }
    long pad[3];
};

SHAPE(virtual) {
    std::unique_ptr<Left> object = std::make_unique<Both>();
    Left *left = object.get();
    ESCAPE(left);
    left->left();
}

// Through a thunk, which is no frame.
SHAPE(thunk) {
    std::unique_ptr<Right> object = std::make_unique<Both>();
    Right *right = object.get();
    ESCAPE(right);
    right->right("abc");
}

SHAPE(virtual_thunk) {
    std::unique_ptr<Right> object = std::make_unique<Deep>();
    Right *right = object.get();
    ESCAPE(right);
    right->right("abc");
}

static void (Left::*volatile member)() = &Left::left;

SHAPE(member_pointer) {
    Both object;
    void (Left::*chosen)() = member;
    (object.*chosen)();
    NO_TAIL_CALL();
}

SHAPE(function) {
    std::string kept = "kept by the function, too long for it to hold";
    std::function<int(int)> function = [kept](int number) {
        FOLLOW();
        return number + int(kept.size());
    };
    auto *kept_function = &function;
    ESCAPE(kept_function);
    require(function(1) == 46);
}

SHAPE(lambda) {
    int sum = 0;
    auto add = [&sum](int number) __attribute__((noipa)) {
        FOLLOW();
        sum += number;
    };
    add(some);
    require(sum == 3);
}

SHAPE(sort) {
    std::vector<std::string> words = {"c", "a", "b", "d"};
    std::sort(words.begin(), words.end(), [](const std::string &one, const std::string &other) {
        FOLLOW();
        return one < other;
    });
    require(words[0] == "a");
}

SHAPE(map) {
    struct Order {
        bool operator()(const std::string &one, const std::string &other) const {
            FOLLOW();
            return one < other;
        }
    };
    std::map<std::string, int, Order> map;
    map["one"] = 1;
    map["two"] = 2;
    require(map.size() == 2);
}

SHAPE(cxx_thread) {
    std::thread thread([](int number) {
        FOLLOW();
        require(number == 3);
    }, int(some));
    thread.join();
}

SHAPE(call_once) {
    std::once_flag once;
    std::call_once(once, [] { FOLLOW(); });
}

SHAPE(shared_pointer) {
    auto pointer = std::make_shared<Follower>();
    std::weak_ptr<Follower> weak = pointer;
    pointer.reset();
    require(weak.expired());
}

static int by_value(std::string one, std::string other, const std::vector<int> &numbers) {
    FOLLOW();
    return int(one.size() + other.size() + numbers.size());
}

SHAPE(temporaries) {
    int sum = by_value(std::string(40, 'a') + "b", "c", {1, 2, some});
    require(sum == 45);
}

template <int Depth> __attribute__((noipa)) int nest(std::string text) {
    if constexpr (Depth == 0) {
        FOLLOW();
        return int(text.size());
    } else {
        return nest<Depth - 1>(text + "x") + Depth;
    }
}

SHAPE(templates) {
    require(nest<8>("") == 8 + 36);
}

SHAPE(no_exceptions) {
    auto call = []() noexcept __attribute__((noipa)) { FOLLOW(); };
    call();
    NO_TAIL_CALL();
}

// What the standard library allocates for itself, of a size that is planted.
static void plant_string() {
    std::string text(next_bytes++, 'a');
    text.reserve(next_bytes++);
    auto *letters = text.data();
    ESCAPE(letters);
}

static void plant_vector() {
    std::vector<char> numbers(next_bytes++);
    numbers.push_back('a');
    numbers.shrink_to_fit();
    auto *first = numbers.data();
    ESCAPE(first);
}

static void plant_aligned() {
    struct alignas(64) Line {
        char bytes[64];
    };
    // A multiple of the alignment, and no two alike.
    auto *lines = new Line[(next_bytes += 64) / 64];
    ESCAPE(lines);
    delete[] lines;
}

struct Large {
    char bytes[742000];
};

static void plant_exception() {
    try {
        throw std::make_unique<Large>();
    } catch (const std::unique_ptr<Large> &) {
        NO_TAIL_CALL();
    }
}

static void plant_shared() {
    auto pointer = std::make_shared<Large>();
    auto *large = pointer.get();
    ESCAPE(large);
}

extern "C" void plant_in_cxx(void) {
    plant_string();
    plant_vector();
    plant_aligned();
    plant_exception();
    plant_shared();
}
