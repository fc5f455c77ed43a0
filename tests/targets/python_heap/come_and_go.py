"""A million objects of many kinds that come and go, one at a time and a thousand at once."""

import gc

from handshake import serve

ITEM = object()


class Slotted:
    __slots__ = ("one", "two")


class Plain:
    def __init__(self):
        self.one = ITEM


def numbers():
    yield ITEM


KINDS = [
    lambda number: {"key": number},
    lambda number: [number, number],
    lambda number: (number, number, number),
    lambda number: (number,) * (number % 25),
    lambda number: "number %d" % number,
    lambda number: "of any length " * (number % 60),
    lambda number: bytes(number % 900),
    lambda number: bytearray(number % 900),
    lambda number: number * 1.5,
    lambda number: number << 70,
    lambda number: number + 100_000,
    lambda number: {number, ITEM},
    lambda number: Slotted(),
    lambda number: Plain(),
    lambda number: numbers(),
    lambda number: range(number),
    lambda number: complex(number, 1),
    lambda number: memoryview(b"some bytes"),
    lambda number: slice(number),
    lambda number: iter(KINDS),
]


def one_at_a_time(count):
    for number in range(count):
        for kind in KINDS:
            kind(number)


def many_at_once(count):
    for kind in KINDS:
        [kind(number) for number in range(count)]


def churn(count):
    """As many objects as this, about."""
    times = count // len(KINDS) // 2
    one_at_a_time(times)
    for _ in range(times // 1000):
        many_at_once(1000)
    return "done"


def main():
    gc.collect()
    for _ in range(2):
        churn(20_000 * len(KINDS) // 10)
    gc.collect()
    serve({"go": lambda: churn(1_000_000)})


main()
