"""A program that makes objects of many kinds, and knows how many blocks its allocators gave for them.

It speaks the hand-shake of handshake.h: each command is answered by one line. "make" and "drop" tell by how many blocks
sys.getallocatedblocks() has changed, "busy" allocates until the next command and tells how often, "fork" makes a process
whose parent is gone, "trace" switches tracemalloc on or off.
"""

import gc
import os
import select
import sys
import tracemalloc


class Plain:
    def __init__(self, value):
        self.value = value


class Slots:
    __slots__ = ("value", "other")

    def __init__(self, value):
        self.value = value
        self.other = None


KEPT = []


def made(number):
    """Objects of every kind: of fixed and of any size, small and too large for pools, grown in and out of them."""
    grown = bytearray(10)
    grown += b"x" * (600 if number % 8 == 0 else 300)
    shrunk = bytearray(2000)
    del shrunk[40:]
    appended = []
    for value in range(number % 90):
        appended.append(None)
    return [
        Plain(number),
        Slots(number),
        (number, str(number)),
        {"number": number, number: 1},
        "text of %d" % number,
        "\u20ac %d" % number * (number % 60),
        b"bytes of %d" % number * (number % 80),
        float(number) + 0.5,
        (1 << 70 + number % 5000) + number,
        {number, number + 1},
        lambda: number,
        grown,
        shrunk,
        appended,
    ]


def make(count):
    count = int(count)
    before = sys.getallocatedblocks()
    for number in range(count):
        KEPT.append(made(number))
    return str(sys.getallocatedblocks() - before)


def drop():
    before = sys.getallocatedblocks()
    KEPT.clear()
    gc.collect()
    return str(sys.getallocatedblocks() - before)


def busy():
    os.write(1, b"begun\n")
    rounds = 0
    while not select.select([0], [], [], 0)[0]:
        for number in range(50):
            made(number)
        rounds += 1
    next_command()
    return str(rounds)


def fork():
    """The child's child lives as long as this process; its parent is gone when the answer is given."""
    reader, writer = os.pipe()
    lives, life = os.pipe()
    KEPT.append(life)
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild != 0:
            os.write(writer, b"%d" % grandchild)
            os._exit(0)
        for used in (0, 1, 2, reader, writer, life):
            os.close(used)
        os.setsid()
        while not select.select([lives], [], [], 0.01)[0]:
            made(1)
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(reader, 20).decode()


def trace(state):
    tracemalloc.start() if state == "on" else tracemalloc.stop()
    return "done"


COMMANDS = {"make": make, "drop": drop, "busy": busy, "fork": fork, "trace": trace}


def next_command():
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(111)
        line += byte
    return line.decode().split()


def main():
    made(7)
    gc.collect()
    os.write(1, b"ready\n")
    while True:
        command = next_command()
        if command[0] == "quit":
            return
        if command[0] == "exec":
            os.execv(sys.executable, [sys.executable] + sys.argv)
        os.write(1, (COMMANDS[command[0]](*command[1:]) + "\n").encode())


main()
