"""Allocations that tell where they were made.

`keep(bytes(size()))` makes one block of libc whose size no other block has, and notes the Python stack that
the interpreter itself reports for it. Whoever traces the process must report the same stack for that size.
"""

import itertools
import json
import sys
import threading
import traceback

# What bytes(n) asks of libc beyond its n bytes: the object's header and the closing zero. Blocks of more than
# 512 bytes are none of pymalloc's.
BYTES_OVERHEAD = 33

KEPT = []
PLAN = []
SEEN = set()
SKIPPED = []
FAILED = []
LAST = threading.local()


class State:
    hot = False
    jit = False
    sizes = itertools.count(20_000, 17)


def start_at(first):
    State.sizes = itertools.count(first, 17)


def size():
    """A size that was never asked for. Small enough for the heap: glibc maps blocks from 128 KiB on."""
    LAST.size = next(State.sizes)
    return LAST.size


def stack_of(frame):
    """Function, file and line of a frame and of those that called it, by the interpreter's own account."""
    told = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
    stack = []
    for entry in told:
        code = frame.f_code
        if (entry.name, entry.filename, entry.lineno) != (code.co_name, code.co_filename, frame.f_lineno):
            raise AssertionError("traceback and frame disagree: %r %r" % (entry, frame))
        stack.append([getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno])
        frame = frame.f_back
    if frame is not None:
        raise AssertionError("traceback leaves out %r" % frame)
    return stack


def stack_here():
    return stack_of(sys._getframe(1))


def keep(block, **marks):
    """Keeps a block that the caller made on the very line on which it calls this. The marks say what else
    holds of the stack:

    via     [[n, text]]: C code lies between frame n and the frame that called it, with `text` in a
            function's or a file's name
    direct  the innermost n calls are from Python to Python, without C between
    below   the frames of another Python stack on which this one stands: they may follow or not
    own     it stands on a C stack of its own (a greenlet that was switched to again)
    deep    more frames than a tracer must walk: it may be cut
    jit     it leads through machine code made at run time: it may be cut there
    thread  it ends where a thread starts
    """
    if block is None:
        raise MemoryError
    extra = BYTES_OVERHEAD if isinstance(block, bytes) else 0
    stack = stack_of(sys._getframe(1))
    key = json.dumps(stack)
    if key in SEEN:
        # Who calls back from C may drop an exception.
        FAILED.append("two blocks of one stack: %s" % key)
    SEEN.add(key)
    KEPT.append(block)
    if threading.current_thread() is not threading.main_thread():
        marks["thread"] = True
    PLAN.append(dict(marks, size=LAST.size + extra, stack=stack))


def nobody(block):
    """Keeps a block that no Python code asked for, in a thread that runs none."""
    KEPT.append(block)
    PLAN.append(dict(size=LAST.size, stack=[], thread=True))


def mark():
    """Plants a block when it is time to: cases are run until the interpreter has specialised their code."""
    if State.hot:
        keep(bytes(size()), **({"jit": True} if State.jit else {}))


def skip(what, why):
    SKIPPED.append([what, str(why)])


def lines():
    """The plan, one JSON object a line, and at last what could not be done here."""
    rows = PLAN + [{"skipped": SKIPPED}]
    return [json.dumps(row, separators=(",", ":")).encode() for row in rows]
