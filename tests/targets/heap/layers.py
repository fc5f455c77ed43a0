"""Objects of some types, as many of each as is asked for: "objects N", "thin" gives most of them back.

It speaks the hand-shake of handshake.h.
"""

import gc
import os
import sys


class Plain:
    def __init__(self, value):
        self.value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


KEPT = []


def objects(count):
    KEPT.extend([{"a": None} for _ in range(count)])
    KEPT.extend([Plain(None) for _ in range(count)])
    KEPT.extend([Slots(None) for _ in range(count)])
    KEPT.extend([b"x" * 100 + b"%d" % number for number in range(count)])
    # One of 40,000,033 bytes, and one for each of a thousand sizes that malloc serves.
    KEPT.append(b"y" * 40_000_000)
    KEPT.append([bytes(1000 + number) for number in range(1000)])


def thin():
    del KEPT[:-2]
    # One block of each pool keeps it.
    KEPT.append([(number, None, None) for number in range(400_000)])
    KEPT[-1] = KEPT[-1][::200]


def say(text):
    os.write(1, (text + "\n").encode())


gc.collect()
# What is collected meanwhile would be the interpreter's own.
gc.disable()
say("ready")
for line in sys.stdin:
    words = line.split()
    if words[0] == "quit":
        break
    if words[0] == "objects":
        objects(int(words[1]))
    elif words[0] == "thin":
        thin()
    elif words[0] == "fork":
        # The child ends when nobody can write any more.
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        KEPT.append(writer)
    elif words[0] == "uncollectable":
        gc.garbage.extend([1, 2, 3])
    elif words[0] == "gc":
        gc.enable()
        gc.set_threshold(701, 11, 12)
    say("done")
