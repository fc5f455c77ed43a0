"""Tells its own stack, the innermost frame first, and blocks there; for each byte of input somewhere else.

Of each frame: its code unit, its line, its name and its file. What tells is called by the very instruction
that blocks, as a conversion of an argument, so that every frame is at the same instruction when it is looked
at from outside.
"""

import os
import sys
import threading


def describe(frame):
    code = frame.f_code
    name = getattr(code, "co_qualname", code.co_name)
    unit = max(frame.f_lasti, -2) // 2
    return "frame %d %d %s\t%s\n" % (unit, frame.f_lineno, name, code.co_filename)


def stack(frame):
    told = ""
    while frame is not None:
        told += describe(frame)
        frame = frame.f_back
    return told


def tell(place, frame):
    """All at once: threads must not mix their lines."""
    head = "at %s %d %d\n" % (place, threading.get_native_id(), threading.get_ident())
    os.write(1, (head + stack(frame) + "end\n").encode())


class Tell:
    def __init__(self, place):
        self.place = place

    def __index__(self):
        tell(self.place, sys._getframe(1))
        return 1

    @property
    def _as_parameter_(self):
        tell(self.place, sys._getframe(1))
        return 1


def wait(place):
    return os.read(0, Tell(place))


def held(place):
    """With the global lock held, as a C extension that allocates has it."""
    import ctypes

    function = ctypes.PyDLL(None).read
    buffer = ctypes.create_string_buffer(1)
    return function(0, buffer, Tell(place))


def nested(place, wait):
    """Through all that calls Python functions."""
    import asyncio

    def decorated(function):
        def wrapper(*arguments, **named):
            return function(*arguments, **named)

        return wrapper

    class Méthode:
        def __init__(self, depth):
            self.depth = self.down(depth)

        @decorated
        def down(self, depth):
            if depth:
                return self.down(depth - 1)
            return self.sorted()

        def sorted(self):
            return sorted([1], key=lambda _: [self.comprehension() for _ in (1,)])

        def comprehension(self):
            return [next(self.generator()) for _ in range(1)]

        def generator(self):
            yield from self.inner()

        def inner(self):
            class Body:
                value = self.closed

            yield Body

        @property
        def closed(self):
            kept = wait

            def 関数(*, place=place, other=(1, 2)):
                return (lambda: kept(place))()

            return asyncio.run(self.task(関数))

        async def task(self, function):
            async def awaited():
                return function()

            return await asyncio.ensure_future(self.gathered(awaited))

        async def gathered(self, awaited):
            return await awaited()

    return Méthode(2).depth


def subinterpreter(place):
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    own = interpreters.create()
    source = (
        "__name__ = 'sub'\n__file__ = %r\n" % __file__
        + "exec(compile(open(__file__).read(), __file__, 'exec'))\n"
        + "(lambda: wait(%r))()\n" % place
    )
    run = getattr(interpreters, "run_string", None) or interpreters.exec
    tell("outer", sys._getframe()); run(own, source)


def small(place):
    """A few frames, for an image of the memory that they lie in."""

    class Métier:
        def __init__(self):
            self.value = next(self.generator())

        def generator(self):
            class Body:
                value = sorted([1], key=lambda _: [wait(place) for _ in (1,)])

            yield Body

    return Métier()


def thread():
    read, _ = os.pipe()
    return nested("thread", lambda place: os.read(read, Tell(place)))


if getattr(sys, "argv", [])[1:] == ["small"]:
    small("small")
elif getattr(sys, "argv", [])[1:] == ["small", "thread"]:
    import _thread

    _thread.start_new_thread(small, ("small",))
    os.read(os.pipe()[0], 1)
elif __name__ == "__main__":
    threading.Thread(target=thread, daemon=True).start()
    nested("released", wait)
    nested("held", held)
    subinterpreter("subinterpreter")
    os._exit(0)
