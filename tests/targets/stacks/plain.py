"""Python calls Python: functions, methods, generators, comprehensions, and where their lines are."""

import contextlib
import functools

from planting import keep, mark, size

CASES = []


def case(function):
    CASES.append(function)
    return function


@case
def nested():
    def middle(block_of):
        def inner():
            keep(bytes(size()), direct=2)

        inner()
        keep(block_of(size()))

    middle(bytes)


@case
def lines_of_calls():
    def sum_of(*_):
        keep(bytes(size()))

    # Each call runs on its own line, and the next begins further up.
    sum_of(
        1,
        keep(bytes(size())),
        [
            keep(bytes(size())),
            (
                keep(bytes(size()))
            ),
        ],
    )
    sum_of(); sum_of
    (sum_of
        (2,
         3))
    for number in range(1): keep(bytes(size()))
    if number == 0 and (
        keep(bytes(size())) is None
    ): keep(bytes(size()))
    "%s" % (
        sum_of() or
        sum_of()
    )


class Base:
    def __init__(self):
        keep(bytes(size()))

    def method(self):
        keep(bytes(size()))

    @staticmethod
    def static():
        keep(bytes(size()))

    @classmethod
    def of_class(cls):
        keep(bytes(size()))
        return cls.static()

    @property
    def attribute(self):
        keep(bytes(size()))
        return 1

    @attribute.setter
    def attribute(self, _):
        keep(bytes(size()))

    def __getattr__(self, name):
        keep(bytes(size()))
        return name

    def __call__(self, *args, **kwargs):
        keep(bytes(size()))

    def __eq__(self, other):
        keep(bytes(size()))
        return True

    def __hash__(self):
        keep(bytes(size()))
        return 1

    def __repr__(self):
        keep(bytes(size()))
        return "Base"

    def __format__(self, spec):
        keep(bytes(size()))
        return spec

    def __add__(self, other):
        keep(bytes(size()))
        return self

    def __bool__(self):
        keep(bytes(size()))
        return True

    def __contains__(self, item):
        keep(bytes(size()))
        return True

    def __iter__(self):
        keep(bytes(size()))
        return iter((1,))

    def __del__(self):
        keep(bytes(size()))


class Derived(Base):
    def __init__(self):
        super().__init__()
        keep(bytes(size()))

    def method(self):
        super().method()


@case
def methods():
    thing = Derived()
    thing.method()
    thing.static()
    Derived.of_class()
    thing.attribute
    thing.attribute = 2
    thing.missing
    thing(1, *(2, 3), key=4)
    thing == thing
    {thing: 1}
    repr(thing)
    "{:x}".format(thing)
    f"{thing:y}"
    thing + thing
    if thing:
        1 in thing
    for _ in thing:
        pass
    bound = thing.static
    bound()
    del thing


@case
def generators():
    def numbers():
        keep(bytes(size()))
        got = yield 1
        keep(bytes(size()))
        try:
            yield got
        finally:
            keep(bytes(size()))

    def delegating():
        keep(bytes(size()))
        yield from numbers()

    generator = delegating()
    next(generator)
    generator.send(2)
    generator.close()

    def throwing():
        try:
            yield
        except KeyError:
            keep(bytes(size()))
            yield

    thrown = throwing()
    next(thrown)
    thrown.throw(KeyError())
    for _ in (keep(bytes(size())) for _ in range(1)):
        pass
    any(keep(bytes(size()), via=[[0, "any"]]) for _ in (1,))
    ended = numbers()
    next(ended)
    ended.send(3)
    del ended


@case
def comprehensions():
    [keep(bytes(size())) for _ in range(1)]
    {keep(bytes(size())) for _ in range(1)}
    {
        1: keep(bytes(size()))
        for _ in range(1)
    }
    [[keep(bytes(size())) for _ in range(1)] for _ in range(1)]
    [(lambda: keep(bytes(size())))() for _ in range(1)]


def decorated(function):
    keep(bytes(size()))

    @functools.wraps(function)
    def wrapper(*args):
        keep(bytes(size()))
        return function(*args)

    return wrapper


def with_argument(_):
    keep(bytes(size()))
    return decorated


@case
def decorators():
    @with_argument(
        keep(bytes(size()))
    )
    def function(number, default=keep(bytes(size()))):
        keep(bytes(size()))
        return number

    function(1)

    class Made(metaclass=Meta, flag=1):
        keep(bytes(size()))
        field = Field()

        class Inner:
            keep(bytes(size()))

            def method(self):
                keep(bytes(size()))

    Made.Inner().method()
    Made()


class Field:
    def __set_name__(self, owner, name):
        keep(bytes(size()))


class Meta(type):
    @classmethod
    def __prepare__(cls, name, bases, **_):
        keep(bytes(size()))
        return {}

    def __new__(cls, name, bases, namespace, **_):
        keep(bytes(size()))
        return super().__new__(cls, name, bases, namespace)

    def __init__(cls, name, bases, namespace, **_):
        keep(bytes(size()))

    def __call__(cls):
        keep(bytes(size()))
        return super().__call__()


@case
def lambdas():
    (lambda: keep(bytes(size())))()
    (lambda function: function())(lambda: keep(bytes(size())))
    number = 5

    def closure():
        nonlocal number
        number += keep(bytes(size())) is None
        return (lambda: (number, keep(bytes(size()))))()

    closure()


@case
def contexts():
    class Manager:
        def __enter__(self):
            keep(bytes(size()))

        def __exit__(self, *_):
            keep(bytes(size()))
            return True

    with Manager():
        keep(bytes(size()))
        raise KeyError

    @contextlib.contextmanager
    def managed():
        keep(bytes(size()))
        try:
            yield
        finally:
            keep(bytes(size()))

    with managed(), contextlib.ExitStack() as stack:
        stack.callback(lambda: keep(bytes(size())))
        keep(bytes(size()))
    try:
        {}[1]
    except KeyError:
        keep(bytes(size()))
    else:
        pass
    finally:
        keep(bytes(size()))


@case
def recursion():
    def down(depth):
        if depth == 0:
            keep(bytes(size()), direct=30)
        else:
            down(depth - 1)

    down(30)

    def through_sorted(depth):
        if depth == 0:
            keep(bytes(size()), via=[[1, "sort"], [3, "sort"]])
        else:
            sorted([1], key=lambda _: through_sorted(depth - 1))

    through_sorted(5)


class Hot:
    """What newer interpreters specialise once it has run a few times, some of it with frames pushed in place."""

    def __init__(self, number=0):
        self.number = number
        mark()

    @property
    def attribute(self):
        mark()
        return 1

    def __getitem__(self, index):
        mark()
        return index

    def __add__(self, other):
        mark()
        return other

    def __lt__(self, other):
        mark()
        return True

    @classmethod
    def of_class(cls):
        mark()

    def method(self, *args, **kwargs):
        mark()


class HotAttributes:
    def __getattribute__(self, name):
        mark()
        return name


def hot_generator():
    mark()
    yield 1
    mark()


def hot_delegating():
    yield from hot_generator()


async def hot_inner():
    mark()


async def hot_outer():
    await hot_inner()


def hot_cases():
    """Runs all that the interpreter specialises."""
    thing = Hot()
    thing.attribute
    thing[1]
    thing + 1
    thing < thing
    thing.of_class()
    thing.method()
    thing.method(1, key=2)
    thing.method(*(1, 2), **{"key": 3})
    HotAttributes().name
    for _ in hot_generator():
        mark()
    for _ in hot_delegating():
        pass
    list(hot_delegating())
    first, *rest = (mark() for _ in range(1))
    [mark() for _ in range(1)]
    try:
        hot_outer().send(None)
    except StopIteration:
        mark()
    sorted([Hot()], key=lambda _: mark())
    (lambda: mark())()
