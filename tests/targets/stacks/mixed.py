"""Blocks that extension modules ask of libc for themselves, some of them freed at once.

`asked` notes the Python stack at a line on which an extension allocates. The stacks of at least so many bytes
begin in `module` and go on with the Python frames of that line; `inner` names Python functions of the
extension's own package that lie between.
"""

import sqlite3
import sys
import zlib

import lxml.etree
import numpy
from planting import KEPT, stack_of

CASES = []
ASKED = []


def case(function):
    CASES.append(function)
    return function


def asked(block, module, least_bytes, inner=()):
    KEPT.append(block)
    row = {"module": module, "bytes": least_bytes, "inner": list(inner), "stack": stack_of(sys._getframe(1))}
    ASKED.append(row)


@case
def of_numpy():
    def build(count):
        asked(numpy.empty(count, numpy.uint8), "_multiarray_umath", count)
        asked(numpy.ones(count + 1, numpy.uint8), "_multiarray_umath", count, ["ones"])

    build(100_003)
    asked(numpy.arange(5000) + 1, "_multiarray_umath", 40_000)
    sorted([1], key=lambda _: asked(numpy.zeros(3000), "_multiarray_umath", 24_000) or 1)


@case
def of_sqlite3():
    database = sqlite3.connect(":memory:")

    def query():
        # The database runs without the interpreter's lock.
        asked(database.execute("SELECT length(randomblob(300008))").fetchall(), "libsqlite3", 300_008)

    query()


@case
def of_zlib():
    asked(zlib.compressobj(wbits=15), "libz.so", 65_536)
    (lambda: asked(zlib.compress(bytes(50_000)), "libz.so", 65_536))()


@case
def of_lxml():
    class Parser:
        def parse(self, text):
            asked(lxml.etree.fromstring(text), "etree.", 30_000)

    Parser().parse("<a>%s</a>" % ("text " * 6000))
