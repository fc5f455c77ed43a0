"""Makes 220,000 objects of eleven kinds and keeps them, then drops them; and says what the interpreter itself
counts: `sys.getallocatedblocks()` before and after.
"""

import gc
import sys

from handshake import serve

EACH = 20_000
KEPT = []
ITEM = object()


class Slotted:
    __slots__ = ("one", "two")

    def __init__(self):
        self.one = self.two = ITEM


class Plain:
    def __init__(self):
        self.one = ITEM


def make(count):
    KEPT.append([number * 1.5 for number in range(count)])
    KEPT.append([number << 70 for number in range(count)])
    KEPT.append([(ITEM, ITEM, ITEM) for _ in range(count)])
    KEPT.append([[ITEM, ITEM] for _ in range(count)])
    KEPT.append([{"key": ITEM} for _ in range(count)])
    KEPT.append(["number %d" % number for number in range(count)])
    KEPT.append([b"number %d" % number for number in range(count)])
    KEPT.append([Slotted() for _ in range(count)])
    KEPT.append([Plain() for _ in range(count)])
    KEPT.append([{ITEM} for _ in range(count)])
    KEPT.append([bytearray(number % 400) for number in range(count)])


def counted(work, *arguments):
    before = sys.getallocatedblocks()
    work(*arguments)
    return "done %d" % (sys.getallocatedblocks() - before)


def main():
    gc.disable()
    make(100)
    KEPT.clear()
    gc.collect()
    serve({"make": lambda: counted(make, EACH), "drop": lambda: counted(KEPT.clear)})


main()
