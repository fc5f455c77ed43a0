"""A few million allocations in some thirty lines, of which a part is kept; with tracemalloc as the witness.

Each line of the plan makes one kind of thing. Where blocks come from one of the interpreter's free lists, a
block may be told of the line that first made it or of the one that has it now; two lines that take a block in
turns may have many of each other. Where one line resizes what another has made, it may be told of either. Such
lines say so, and form a family.

    python lines.py COUNT [tracemalloc]     COUNT times for each line; every 16th result is kept
"""

import gc
import json
import sys
from collections import Counter, defaultdict

from handshake import serve

KEPT = []
ITEM = object()
KEY = "key"
OTHER = "other"


class Slotted:
    __slots__ = ("one", "two")


class Plain:
    pass


def text_of(number):
    return "text %d of a part" % number  # resized: text


def use(made, number):
    if number % 16 == 0:
        KEPT.append(made)


def line_of_one_digit(count):
    for number in range(count):
        use(number + 5_000, number)  # taken in turns: int


def line_of_integers(count):
    for number in range(count):
        use(number << 70, number)


def line_of_huge_integers(count):
    for number in range(count):
        use((number + 1) << 4100, number)


def line_of_floats(count):
    for number in range(count):
        use(number * 1.5, number)  # free list: float


def line_of_quotients(count):
    for number in range(count):
        use(number / 7, number)  # free list: float


def line_of_complex_numbers(count):
    for number in range(count):
        use(number * 1j, number)


def line_of_short_strings(count):
    for number in range(count):
        use("%05d" % number, number)


def line_of_wide_strings(count):
    for number in range(count):
        use(f"Ξ {number:030d}", number)  # free list: method


def line_of_long_strings(count):
    for number in range(count):
        use("%0999d" % number, number)


def line_of_bytes(count):
    for number in range(count):
        use(b"%d of many" % number, number)


def line_of_bytes_of_all_sizes(count):
    for number in range(count):
        use(bytes(number % 1200), number)  # free list: tuple


def line_of_bytearrays(count):
    for number in range(count):
        use(bytearray(number % 1200), number)  # free list: tuple


def line_of_pairs(count):
    for number in range(count):
        use((ITEM, KEY), number)  # free list: tuple


def line_of_triples(count):
    for number in range(count):
        use((ITEM, KEY, ITEM), number)  # free list: tuple


def line_of_long_tuples(count):
    for number in range(count):
        use((ITEM,) * 33, number)  # more than the free lists take


def line_of_empty_lists(count):
    for number in range(count):
        use([], number)  # free list: list


def line_of_lists(count):
    for number in range(count):
        use([ITEM, KEY, ITEM], number)  # free list: list


def line_of_long_lists(count):
    for number in range(count):
        use([ITEM] * 100, number)  # free list: list


def line_of_empty_dicts(count):
    for number in range(count):
        use({}, number)  # free list: dict


def line_of_dicts(count):
    for number in range(count):
        use({KEY: ITEM, OTHER: ITEM}, number)  # free list: dict


def line_of_dicts_by_number(count):
    for number in range(count):
        use({1: ITEM, 2: ITEM, 3: ITEM}, number)  # free list: dict


def line_of_large_dicts(count):
    for number in range(count):
        use(dict.fromkeys("abcdefghijklmnop", ITEM), number)  # free list: dict


def line_of_sets(count):
    for number in range(count):
        use({ITEM, KEY, OTHER}, number)


def line_of_large_sets(count):
    for number in range(count):
        use(set("abcdefghijklmnop"), number)


def line_of_frozen_sets(count):
    for number in range(count):
        use(frozenset((ITEM, KEY)), number)  # free list: tuple


def line_of_slotted(count):
    for number in range(count):
        use(Slotted(), number)


def line_of_plain(count):
    for number in range(count):
        made = Plain()  # free list: dict
        made.one = ITEM  # free list: dict
        use(made, number)


def line_of_closures(count):
    for number in range(count):
        use(lambda: count, number)  # free list: tuple


def line_of_methods(count):
    for number in range(count):
        use(KEY.join, number)  # free list: method


def line_of_texts_that_grow(count):
    for number in range(count):
        text = text_of(number)
        text += KEY  # resized: text
        text += OTHER  # resized: text
        use(text, number)


def line_of_lists_that_grow(count):
    for number in range(count):
        made = []  # free list: list
        made.append(ITEM)  # free list: list
        made += KEY, ITEM, KEY  # free list: list
        use(made, number)


def line_of_bytearrays_that_grow(count):
    for number in range(count):
        made = bytearray(b"some")  # resized: bytearray
        made += b" and more of it"  # resized: bytearray
        made.append(33)  # resized: bytearray
        use(made, number)


LINES = [function for name, function in list(globals().items()) if name.startswith("line_of_")]


def work(count):
    gc.collect()  # empties the free lists
    for line in LINES:
        line(count)
    gc.collect()


END = work.__code__.co_firstlineno


def families():
    """By line: why its blocks may be told of another line, and of which family it is."""
    found = {}
    with open(__file__) as source:
        for line, text in enumerate(source, 1):
            if text.startswith("    for number in range"):
                found[line] = ["taken in turns", "int"]  # from a free list, since 3.14
            for why in "free list", "taken in turns", "resized":
                _, mark, family = text.partition("  # " + why + ": ")
                if mark:
                    found[line] = [why, family.strip()]
    return found


def seen(tracemalloc):
    """What is outstanding of the lines of the plan: by line, sizes and how often."""
    blocks = defaultdict(Counter)
    for trace in tracemalloc.take_snapshot().traces:
        frame = trace.traceback[0]
        if frame.filename == __file__ and frame.lineno < END:
            blocks[frame.lineno][trace.size] += 1
    return {line: sorted(sizes.items()) for line, sizes in blocks.items()}


def main():
    tracemalloc = __import__("tracemalloc") if "tracemalloc" in sys.argv else None
    gc.disable()
    work(64)
    KEPT.clear()
    gc.collect()
    if tracemalloc:
        tracemalloc.start(1)

    def go():
        work(int(sys.argv[1]))
        return "done"

    def plan():
        blocks = seen(tracemalloc) if tracemalloc else {}
        return json.dumps({"seen": blocks, "families": families(), "end": END})

    serve({"go": go, "plan": plan})


main()
