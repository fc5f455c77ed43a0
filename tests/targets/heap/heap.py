"""A program that knows what is on its heap, and tells.

It speaks the hand-shake of handshake.h: each command is answered by one line. "count" tells how many blocks CPython
says are in use, "keep" makes objects and tells their addresses, "drop" gives some of them back and tells which,
"large" makes some that are large,
"churn" makes and drops objects, "busy" does so for ever, "interpreters" starts interpreters,
"collector" tells of the collector, "collect" changes what it tells.
"""

import contextvars
import gc
import os
import sys
import threading
import weakref


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


class Grown(type):
    pass


def large():
    """Objects that are too large for pymalloc: their addresses, and what is in front of them."""
    KEPT.append([tuple(range(1000)), "x" * 1000, "\u00e4" * 1000, b"x" * 1000, 1 << 9000, Grown("Made", (), {})])
    return " ".join("%x %d" % (id(thing), 16 * gc.is_tracked(thing)) for thing in KEPT[-1])


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


def numbers(count):
    for number in range(count):
        yield number


class Churned:
    def __init__(self, value):
        self.value = value

    def method(self):
        return sys._getframe()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return True


async def coroutine():
    return 1


async def items():
    yield 1


def churned(number):
    """Objects of each kind that CPython keeps some of for later, and others."""
    churned = Churned(float(number))
    yield churned.method
    yield churned.method()
    yield Slots(number)
    yield (1 << 40) + number
    yield -number - 1.5
    yield complex(number, 1.5)
    yield "text %d" % number
    yield b"bytes %d" % number
    yield bytearray(b"%d" % number)
    yield slice(number, number + 300)
    yield range(number)
    yield iter(range(number))
    yield iter([number])
    yield iter((number,))
    yield set(range(number % 40))
    yield dict.fromkeys(range(number % 20))
    yield {"a%d" % number: number, "b": number}
    yield {"only": number}.items()
    yield [None] * (number % 60)
    yield tuple(range(number % 24))
    yield numbers(number)
    yield lambda: number
    yield [].append
    yield "".join
    yield items()
    sent = items().asend(None)
    try:
        sent.send(None)
    except StopIteration:
        yield sent
    yield contextvars.Context()
    yield memoryview(b"x")
    yield enumerate([])
    yield zip([], [])
    yield map(str, [number])
    yield weakref.ref(churned)
    awaited = coroutine()
    awaited.close()
    yield awaited
    with churned:
        raise ValueError(number)
    yield ValueError(number)
    yield list(numbers(number % 7))


def churn(count):
    """Makes and drops so many objects, up to ten thousand at once: all lists of spare objects run full."""
    made = 0
    number = 0
    while made < int(count):
        held = []
        for _ in range(min(300, int(count) // 100)):
            held.append(list(churned(number)))
            made += len(held[-1])
            number += 1
    del held
    return str(made)


def work():
    """Makes and drops objects for ever, in a thread of its own."""
    while True:
        churn(10000)


def busy():
    threading.Thread(target=work, daemon=True).start()
    return "busy"


def collector():
    """What the collector says of itself, which it makes no object for: so its objects are counted last."""
    objects = [len(gc.get_objects(generation=number)) for number in range(3)]
    answer = [int(gc.isenabled()), *gc.get_threshold(), *objects, gc.get_freeze_count(), len(gc.garbage)]
    return " ".join(map(str, answer))


def collect(frozen):
    """Leaves the collector switched off, with some garbage and some objects put aside."""
    gc.collect()
    KEPT.append([[number] for number in range(300)])
    if frozen == "frozen":
        gc.freeze()
    gc.disable()
    gc.set_threshold(701, 11, 12)
    gc.garbage.extend([1, 2, 3])
    return "collected"


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


COMMANDS = {"count": lambda: str(blocks()), "keep": keep, "large": large, "drop": drop, "churn": churn, "busy": busy, "collector": collector,
            "collect": collect, "interpreters": interpreters}


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
