"""A program that knows what is on its heap, and tells.

It speaks the hand-shake of handshake.h: each command is answered by one line. "count" tells how many blocks CPython
says are in use, "keep" makes objects and tells their addresses, "drop" gives some of them back and tells which,
"interpreters" starts some.
"""

import gc
import os
import sys


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
    """One object of each kind, none of which another one holds."""
    return [
        Plain(number),
        Slots(number),
        (number, str(number)),
        [number],
        {"number": number},
        "text of %d" % number,
        b"bytes of %d" % number,
        float(number) + 0.5,
        (1 << 70) + number,
        {number, number + 1},
        bytearray(b"x" * 20),
    ]


def blocks():
    return sys.getallocatedblocks()


def keep(count):
    KEPT.extend(made(number) for number in range(int(count)))
    return told(thing for things in KEPT for thing in things)


def told(things):
    return " ".join("%x" % id(thing) for thing in things)


def drop(count):
    """Of each kind so many that CPython's own lists of spare objects have no room for all."""
    gone = [told(KEPT.pop()) for _ in range(int(count))]
    gc.collect()
    return " ".join(gone)


def interpreters(count):
    """Starts interpreters that have, since 3.12, allocators of their own; "none" where that cannot be."""
    try:
        import _interpreters as module
    except ImportError:
        try:
            import _xxsubinterpreters as module
        except ImportError:
            return "none"
    KEPT.append([module.create() for _ in range(int(count))])
    return "some"


COMMANDS = {"count": lambda: str(blocks()), "keep": keep, "drop": drop, "interpreters": interpreters}


def next_command():
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(111)
        line += byte
    return line.decode().split()


def main():
    gc.collect()
    os.write(1, b"ready\n")
    while True:
        command = next_command()
        if command[0] == "quit":
            return
        answer = (COMMANDS[command[0]](*command[1:]) + "\n").encode()
        while answer:
            answer = answer[os.write(1, answer):]


main()
