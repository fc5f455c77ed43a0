"""C code between two Python calls, and blocks that C code asks of libc while the interpreter runs others."""

import bisect
import codecs
import collections
import contextvars
import copy
import ctypes
import functools
import io
import itertools
import json
import operator
import os
import pickle
import queue
import re
import signal
import sqlite3
import sys
import threading
import xml.parsers.expat

from planting import keep, nobody, size

CASES = []


def case(function):
    CASES.append(function)
    return function


# Called without the interpreter's lock. The same by PyDLL is called with it.
libc = ctypes.CDLL(None)
unlocked_malloc = libc.malloc
unlocked_malloc.restype = ctypes.c_void_p
unlocked_malloc.argtypes = [ctypes.c_size_t]
locked_malloc = ctypes.PyDLL(None).malloc
locked_malloc.restype = ctypes.c_void_p
locked_malloc.argtypes = [ctypes.c_size_t]


@case
def callbacks_of_builtins():
    sorted([1], key=lambda _: keep(bytes(size()), via=[[0, "sort"]]))
    [3].sort(key=lambda _: keep(bytes(size()), via=[[0, "sort"]]))
    max([1], key=lambda _: keep(bytes(size()), via=[[0, "max"]]))
    list(map(lambda _: keep(bytes(size()), via=[[0, "map"]]), [1]))
    list(filter(lambda _: keep(bytes(size()), via=[[0, "filter"]]), [1]))
    list(itertools.starmap(lambda *_: keep(bytes(size()), via=[[0, "starmap"]]), [(1, 2)]))
    list(itertools.groupby([1], lambda _: keep(bytes(size()), via=[[0, "groupby"]])))
    functools.reduce(lambda *_: keep(bytes(size()), via=[[0, "reduce"]]), [1, 2])
    functools.partial(lambda *_: keep(bytes(size()), via=[[0, "partial"]]), 1)(2)
    operator.methodcaller("method")(Caller())
    iter(lambda: keep(bytes(size()), via=[[0, "calliter"]]), None).__next__
    for _ in iter(lambda: keep(bytes(size()), via=[[0, "calliter"]]), None):
        pass
    re.sub("a", lambda _: keep(bytes(size()), via=[[0, "sub"]]) or "b", "a")
    json.loads('{"a": 1}', object_hook=lambda _: keep(bytes(size()), via=[[0, ""]]))
    json.dumps(object(), default=lambda _: keep(bytes(size())))
    contextvars.copy_context().run(lambda: keep(bytes(size()), via=[[0, "run"]]))
    collections.defaultdict(lambda: keep(bytes(size()), via=[[0, "defdict"]]))[1]
    getattr(Caller(), "missing", None)
    bisect.insort([Caller()], Caller())
    sum([Caller(), Caller()], Caller())
    str(Caller())
    copy.deepcopy(Caller())
    pickle.dumps(Caller())
    codecs.register_error("stacks", lambda error: keep(bytes(size()), via=[[0, ""]]) or ("", error.end))
    "é".encode("ascii", "stacks")
    io.BufferedReader(Raw()).read(3)
    eval("keep(bytes(size()))")
    exec("def made():\n\n keep(bytes(size()))\nmade()", dict(globals()))
    print("x", file=Caller(), end="")


class Caller:
    def method(self):
        keep(bytes(size()), via=[[0, ""]])

    def __getattr__(self, name):
        if name == "missing":
            keep(bytes(size()), via=[[0, "getattr"]])
        raise AttributeError(name)

    def __lt__(self, other):
        keep(bytes(size()), via=[[0, ""]])
        return False

    def __radd__(self, other):
        return other

    def __add__(self, other):
        if other is not self and not isinstance(other, int) and getattr(self, "once", True):
            self.once = other.once = False
            keep(bytes(size()), via=[[0, "sum"]])
        return other

    def __str__(self):
        keep(bytes(size()), via=[[0, ""]])
        return ""

    def __deepcopy__(self, memo):
        keep(bytes(size()))

    def __reduce__(self):
        keep(bytes(size()), via=[[0, ""]])
        return (int, ())

    def write(self, text):
        keep(bytes(size()), via=[[0, "print"]]) if text == "x" else None


class Raw(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, buffer):
        keep(bytes(size()), via=[[0, "buffered"]])
        return None


@functools.lru_cache(maxsize=None)
def cached(number):
    keep(bytes(size()), via=[[0, "lru_cache"]])
    return cached(number - 1) if number else 0


@case
def caches():
    cached(2)

    @functools.singledispatch
    def dispatched(_):
        keep(bytes(size()))

    dispatched(1)

    class Lazy:
        @functools.cached_property
        def value(self):
            keep(bytes(size()))

    Lazy().value


@case
def without_the_lock():
    keep(unlocked_malloc(size()), via=[])
    keep(locked_malloc(size()))

    def inner(function):
        keep(function(size()))

    inner(unlocked_malloc)
    inner(locked_malloc)
    [keep(unlocked_malloc(size())) for _ in range(1)]
    (lambda: keep(unlocked_malloc(size())))()
    sorted([1], key=lambda _: keep(unlocked_malloc(size()), via=[[0, "sort"]]))


@case
def while_another_thread_has_the_lock():
    # getdelim waits for the pipe, and then asks for a block while Python runs in the other thread.
    reader, writer = os.pipe()
    line, capacity, buffer = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.create_string_buffer(1 << 16)
    libc.fdopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fdopen(reader, b"r"))
    libc.setvbuf(stream, buffer, 0, ctypes.c_size_t(len(buffer)))
    libc.getdelim.restype = ctypes.c_ssize_t
    libc.getdelim.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    wanted = queue.Queue()

    def waits():
        block_bytes = size()
        wanted.put(block_bytes)
        keep(libc.getdelim(ctypes.byref(line), ctypes.byref(capacity), 10, stream))

    thread = threading.Thread(target=waits)
    thread.start()
    block_bytes = wanted.get()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    text = b"x" * (block_bytes - 2) + b"\n"
    ctypes.PyDLL(None).write(writer, text, len(text))
    while capacity.value != block_bytes:
        pass
    keep(locked_malloc(size()))
    sys.setswitchinterval(interval)
    thread.join()


@case
def a_thread_without_python():
    # Its whole program is malloc, while the thread that waits for it has the interpreter's lock.
    library = ctypes.PyDLL(None)
    thread, block = ctypes.c_ulong(), ctypes.c_void_p()
    library.pthread_create(ctypes.byref(thread), None, library.malloc, ctypes.c_void_p(size()))
    library.pthread_join(thread, ctypes.byref(block))
    nobody(block.value)


COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
START = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


@case
def callbacks_of_c():
    compared = []

    def compare(*_):
        compared.append(1)
        if len(compared) == 1:
            keep(bytes(size()), via=[[0, "libffi"], [0, "libc"]])
            keep(unlocked_malloc(size()), via=[[0, "libffi"], [0, "libc"]])
        return 0

    numbers = (ctypes.c_int * 3)(3, 2, 1)
    libc.qsort(numbers, 3, 4, COMPARE(compare))

    def on_signal(_):
        keep(bytes(size()), via=[[0, "libffi"], [0, "libc"]])
        keep(unlocked_malloc(size()), via=[[0, "libffi"], [0, "libc"]])

    handler = HANDLER(on_signal)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGUSR2, handler)
    getattr(libc, "raise")(signal.SIGUSR2)
    libc.signal(signal.SIGUSR2, None)

    def foreign(_):
        keep(bytes(size()), thread=True)
        sorted([1], key=lambda _: keep(bytes(size()), via=[[0, "sort"]], thread=True))

    start = START(foreign)
    thread = ctypes.c_ulong()
    libc.pthread_create(ctypes.byref(thread), None, start, None)
    libc.pthread_join(thread, None)


@case
def signals_of_python():
    signal.signal(signal.SIGUSR1, lambda *_: keep(bytes(size()), via=[]))
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


class Sum:
    def step(self, _):
        keep(bytes(size()), via=[[0, "sqlite3"]])

    def finalize(self):
        keep(bytes(size()), via=[[0, "sqlite3"]])
        return 1


@case
def databases():
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.create_function("called", 1, lambda _: keep(bytes(size()), via=[[0, "libsqlite3"]]))
    database.create_aggregate("summed", 1, Sum)
    database.execute("SELECT called(1)").fetchall()
    database.execute("SELECT summed(1)").fetchall()
    database.set_trace_callback(
        lambda statement: "1234" in statement and keep(bytes(size()), via=[[0, "sqlite3"]])
    )
    database.execute("SELECT 1234")


@case
def parsers():
    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = lambda *_: keep(bytes(size()), via=[[0, "expat"]])
    parser.Parse("<a/>", True)


@case
def tracing():
    def traced():
        return 1

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_name == "traced":
            keep(bytes(size()), via=[])

    sys.setprofile(profile)
    traced()
    sys.setprofile(None)

    def trace(frame, event, _):
        if frame.f_code.co_name == "traced" and event in ("call", "return"):
            keep(bytes(size()), via=[])
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    traced()
    sys.settrace(before)
    threading.current_thread()
