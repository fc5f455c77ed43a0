"""Calls each leak of leaky.c from a line of its own, a known number of times, between objects that come and go.

It speaks the hand-shake of handshake.h. `plan` tells which functions leaked, in which line, and how often.
Everything runs once before "ready", so that what the interpreter sets up at first use is no part of the plan;
and free lists are emptied before each leak, so that each object is a new block.

With the argument `tracemalloc` the plan tells too what tracemalloc has seen in each line: sizes and how often.
"""

import collections
import gc
import json
import sys

import leaky
from handshake import serve

ROUNDS = 3
KEY = "key of a dict"
ITEM = "item of a list"


class Slotted:
    __slots__ = ("one", "two")


class Plain:
    pass


def malloc_small(count):
    for _ in range(count):
        leaky.malloc(48)


def malloc_large(count):
    for _ in range(count):
        leaky.malloc(4000)


def raw_malloc(count):
    for _ in range(count):
        leaky.raw_malloc(100)


def raw_malloc_nothing(count):
    for _ in range(count):
        leaky.raw_malloc(0)


def raw_calloc(count):
    for _ in range(count):
        leaky.raw_calloc(90)


def raw_realloc(count):
    for _ in range(count):
        leaky.raw_realloc(700)


def mem_malloc(count):
    for _ in range(count):
        leaky.mem_malloc(24)


def mem_malloc_512(count):
    for _ in range(count):
        leaky.mem_malloc(512)


def mem_malloc_513(count):
    for _ in range(count):
        leaky.mem_malloc(513)


def mem_malloc_nothing(count):
    for _ in range(count):
        leaky.mem_malloc(0)


def mem_calloc(count):
    for _ in range(count):
        leaky.mem_calloc(300)


def mem_calloc_large(count):
    for _ in range(count):
        leaky.mem_calloc(3000)


def mem_realloc(count):
    for _ in range(count):
        leaky.mem_realloc(200)


def mem_realloc_large(count):
    for _ in range(count):
        leaky.mem_realloc(2000)


def object_malloc(count):
    for _ in range(count):
        leaky.object_malloc(33)


def object_malloc_where_a_global_was(count):
    for _ in after_a_global(count):
        leaky.object_malloc(33)


def after_a_global(count):
    """Up to 3.10, code that has run a thousand times keeps where it last found each global, also when that is gone."""
    global kept
    kept = bytes(bytearray(10))
    for _ in range(2000):
        read_kept()
    kept = None
    return range(count)


def read_kept():
    return kept


def object_malloc_512(count):
    for _ in range(count):
        leaky.object_malloc(512)


def object_malloc_513(count):
    for _ in range(count):
        leaky.object_malloc(513)


def object_malloc_nothing(count):
    for _ in range(count):
        leaky.object_malloc(0)


def object_calloc(count):
    for _ in range(count):
        leaky.object_calloc(129)


def object_realloc(count):
    for _ in range(count):
        leaky.object_realloc(222)


def object_realloc_large(count):
    for _ in range(count):
        leaky.object_realloc_large(5000)


def object_realloc_in_place(count):
    for _ in range(count):
        leaky.object_realloc_in_place(420)


def empty_dict(count):
    for _ in range(count):
        leaky.dict()


def dict_with_item(count):
    for _ in range(count):
        leaky.dict_with_item(KEY)


def empty_list(count):
    for _ in range(count):
        leaky.list()


def list_with_items(count):
    for _ in range(count):
        leaky.list_with_items(ITEM)


def tuple_of_three(count):
    for _ in range(count):
        leaky.tuple(ITEM)


def string(count):
    for _ in range(count):
        leaky.str()


def bytes_small(count):
    for _ in range(count):
        leaky.bytes(50)


def bytes_large(count):
    for _ in range(count):
        leaky.bytes(1500)


def floating(count):
    for _ in range(count):
        leaky.float()


def integer(count):
    for _ in range(count):
        leaky.int()


def slotted(count):
    for _ in range(count):
        leaky.instance(Slotted)


def plain(count):
    for _ in range(count):
        leaky.instance(Plain)


def reference_to_a_dict(count):
    for _ in range(count):
        leaky.reference({})


def reference_to_an_instance(count):
    for _ in range(count):
        leaky.reference(Slotted())


LEAKS = [
    malloc_small,
    malloc_large,
    raw_malloc,
    raw_malloc_nothing,
    raw_calloc,
    raw_realloc,
    mem_malloc,
    mem_malloc_512,
    mem_malloc_513,
    mem_malloc_nothing,
    mem_calloc,
    mem_calloc_large,
    mem_realloc,
    mem_realloc_large,
    object_malloc,
    object_malloc_where_a_global_was,
    object_malloc_512,
    object_malloc_513,
    object_malloc_nothing,
    object_calloc,
    object_realloc,
    object_realloc_large,
    object_realloc_in_place,
    empty_dict,
    dict_with_item,
    empty_list,
    list_with_items,
    tuple_of_three,
    string,
    bytes_small,
    bytes_large,
    floating,
    integer,
    slotted,
    plain,
    reference_to_a_dict,
    reference_to_an_instance,
]


def churn(count):
    """Objects of many kinds that come and go, one at a time and many at once."""
    for number in range(count):
        {"number": number}
        [number, number]
        (number, number, number)
        str(number) + " of many"
        bytes(number % 700)
        number * 1.5
        number << 70
        {number}
        Slotted()
        Plain().one = number
    for many in range(3):
        [{} for _ in range(count)]
        [[many] for _ in range(count)]
        [(many, number) for number in range(count)]
        [number / 7 for number in range(count)]
        [Plain() for _ in range(count)]
        {str(number): bytearray(number) for number in range(count)}
        " ".join(str(number) for number in range(count)).split()


def leak_by(leak, count):
    gc.collect()  # empties the free lists
    leak(count)


def count_of(index):
    """How often a leak leaks in each round: a different number for each, none of them small."""
    return 101 + 7 * index


def run():
    for number in range(ROUNDS):
        if number % 2:
            gc.enable()
        for index, leak in enumerate(LEAKS):
            leak_by(leak, count_of(index))
            churn(50)
        gc.disable()


def seen_by_tracemalloc(tracemalloc):
    """Sizes and how often, by line."""
    seen = collections.defaultdict(collections.Counter)
    for trace in tracemalloc.take_snapshot().traces:
        frame = trace.traceback[0]
        if frame.filename == __file__:
            seen[frame.lineno][trace.size] += 1
    return seen


def plan(tracemalloc):
    seen = seen_by_tracemalloc(tracemalloc) if tracemalloc else None
    told = []
    for index, leak in enumerate(LEAKS):
        line = leak.__code__.co_firstlineno + 2
        entry = {"function": leak.__name__, "line": line, "count": ROUNDS * count_of(index)}
        if seen is not None:
            entry["sizes"] = sorted(seen[line].items())
        told.append(entry)
    return json.dumps(told)


def go():
    run()
    return "done"


def main():
    tracemalloc = __import__("tracemalloc") if "tracemalloc" in sys.argv else None
    gc.disable()
    # Makes room for as many arenas as the plan needs, in the array that older versions keep of them.
    [bytes(400) for _ in range(60_000)]
    for leak in LEAKS:
        leak_by(leak, 30)
        churn(30)
    gc.collect()
    if tracemalloc:
        tracemalloc.start(1)
    serve({"go": go, "plan": lambda: plan(tracemalloc)})


main()
