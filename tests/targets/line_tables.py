"""Prints line tables of this interpreter's code objects beside what the interpreter itself makes of them.

    line_tables.py MODULE...            every code object of these modules, and of HARD below
    line_tables.py --few MODULE...      of these a few small ones that have everything that occurs in any

One code object a line: its first line, its table in hexadecimal, then `UNIT:LINE` wherever the line changes
(`-` is no line) and the end. A unit is two bytes of bytecode.
"""

import dis
import importlib.util
import sys
import types

HARD = (
    "def far(a, b):\n    x = a\n" + "\n" * 300 + "    return (\n        x +\n        b)\n"
    "def back(a):\n    return [\n        a(1),\n        a(2)] if a(\n        3) else a(" + "\n" * 200 + "4)\n"
    "def long(a):\n    x = [" + "a, " * 300 + "]\n    return x\n"
    "def quiet(a):\n    with a:\n        pass\n    try:\n        a()\n    finally:\n        a = None\n    while a:\n"
    "        if a():\n            break\n    else:\n        del a\n"
    "async def later(a):\n    async with a as b:\n        async for c in b:\n            yield c\n"
    "class C:\n    @property\n    def f(self): return lambda x: (yield)\n    x: int = 3\n"
    "empty = lambda: None\n"
)


def codes_in(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


def codes_of(module):
    with open(importlib.util.find_spec(module).origin, "rb") as file:
        yield from codes_in(compile(file.read(), module, "exec"))


def table(code):
    return code.co_lnotab if sys.version_info < (3, 10) else code.co_linetable


def changes(code):
    """Pairs of unit and line, and the end, by the interpreter's own account."""
    if sys.version_info < (3, 10):
        pairs = [(start // 2, line) for start, line in dis.findlinestarts(code)]
    else:
        pairs = [(start // 2, line) for start, end, line in code.co_lines() if end > start]
    merged = [pair for index, pair in enumerate(pairs) if index == 0 or pairs[index - 1][1] != pair[1]]
    assert merged[0][0] == 0, merged
    return merged, len(code.co_code) // 2


def line(code):
    lines, end = changes(code)
    shown = " ".join("%d:%s" % (unit, "-" if line is None else line) for unit, line in lines)
    return "%d %s %s %d" % (code.co_firstlineno, table(code).hex() or "-", shown, end)


def features(code):
    """What occurs in its table, by the first byte of an entry or the kind of a pair."""
    raw = table(code)
    if sys.version_info >= (3, 11):
        entries = [byte for byte in raw if byte & 0x80]
        # 0x40 tells that a number goes on in the next byte.
        long = any(byte & 0xC0 == 0x40 for byte in raw)
        return {byte >> 3 & 15 for byte in entries} | {len(entries) > 1, ("long", long)}

    def size(delta):
        return delta if delta in (0, 127, 128, 129, 254, 255) else ">" if delta < 128 else "<"

    return {(size(a), size(l)) for a, l in zip(raw[::2], raw[1::2])} | {len(raw) > 2}


def few(hard, codes):
    """The small ones of `hard`, and of `codes` so many that together they have all features."""
    chosen = [code for code in hard if len(table(code)) < 120]
    missing = set().union(*map(features, codes)).difference(*map(features, chosen))
    while missing:
        best = max(codes, key=lambda code: len(features(code) & missing) / (len(table(code)) + 40))
        chosen.append(best)
        missing -= features(best)
    return chosen


modules = [module for module in sys.argv[1:] if module != "--few"]
hard = list(codes_in(compile(HARD, "hard", "exec")))
found = list(hard)
for module in modules:
    found.extend(codes_of(module))
for code in few(hard, found) if "--few" in sys.argv else found:
    print(line(code))
