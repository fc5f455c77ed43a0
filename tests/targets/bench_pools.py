"""Takes a block from CPython's pools and gives it back, in a loop: a target of `cargo xtask bench`.

It speaks the hand-shake of handshake.h, as bench_stacks.py does: "run <ms>" is answered by
"done <blocks> <nanoseconds>". Each block is an `object()`, for which CPython keeps no free list.
"""

import os
import sys
import time

BATCH = 256


def work(milliseconds):
    started = time.monotonic_ns()
    until = started + milliseconds * 1_000_000
    blocks = 0
    while True:
        for _ in range(BATCH):
            object()
        blocks += BATCH
        now = time.monotonic_ns()
        if now >= until:
            return blocks, now - started


def main():
    os.write(1, b"ready\n")
    for line in sys.stdin:
        command = line.split()
        if command[0] == "run":
            os.write(1, b"done %d %d\n" % work(int(command[1])))
        elif command[0] == "quit":
            return
        else:
            sys.exit(2)


main()
