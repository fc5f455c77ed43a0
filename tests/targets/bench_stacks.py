"""Allocates at the bottom of nested Python functions, in a loop: a Python target of `cargo xtask bench`.

usage: bench_stacks.py <frames>

It speaks the hand-shake of handshake.h, as bench_pairs.c does: "run <ms>" is answered by
"done <blocks> <nanoseconds>". Each block is one call of libc's malloc and one of its free, made with <frames>
Python functions on the stack, the module and `main` included.
"""

import os
import sys
import time

OUTER_FRAMES = 2  # the module, main
BATCH = 256
BYTES = 1000  # more than pymalloc gives


def work(milliseconds):
    started = time.monotonic_ns()
    until = started + milliseconds * 1_000_000
    blocks = 0
    while True:
        for _ in range(BATCH):
            bytearray(BYTES)
        blocks += BATCH
        now = time.monotonic_ns()
        if now >= until:
            return blocks, now - started


def called_through(frames, function):
    """`function`, called through so many functions of their own: a program's stack is not one recursion."""
    for index in range(frames):
        name = "caller_%d" % index
        scope = {"called": function}
        exec("def %s(argument):\n    return called(argument)" % name, scope)
        function = scope[name]
    return function


def next_command():
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(111)
        line += byte
    return line.decode().split()


def main():
    run = called_through(int(sys.argv[1]) - OUTER_FRAMES - 1, work)
    os.write(1, b"ready\n")
    while True:
        command = next_command()
        if command[0] == "run":
            os.write(1, b"done %d %d\n" % run(int(command[1])))
        elif command[0] == "quit":
            return
        else:
            sys.exit(2)


main()
