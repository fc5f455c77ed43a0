"""asyncio, async generators, threads and greenlets: stacks that are left and entered again."""

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
import types

from planting import keep, size, skip, stack_here

CASES = []


def case(function):
    CASES.append(function)
    return function


async def leaf():
    keep(bytes(size()))
    await asyncio.sleep(0)
    keep(bytes(size()))


async def chain(depth):
    if depth:
        await chain(depth - 1)
    else:
        keep(bytes(size()))
        await leaf()


class Waited:
    def __await__(self):
        keep(bytes(size()))
        yield from asyncio.sleep(0).__await__()
        keep(bytes(size()))


@types.coroutine
def old_style():
    keep(bytes(size()))
    yield
    keep(bytes(size()))


async def ticks():
    try:
        keep(bytes(size()))
        yield 1
        await asyncio.sleep(0)
        keep(bytes(size()))
        yield 2
    finally:
        keep(bytes(size()))


class Context:
    async def __aenter__(self):
        keep(bytes(size()))

    async def __aexit__(self, *_):
        keep(bytes(size()))
        await asyncio.sleep(0)
        keep(bytes(size()))


@contextlib.asynccontextmanager
async def managed():
    keep(bytes(size()))
    yield
    keep(bytes(size()))


async def first():
    keep(bytes(size()), via=[])
    await asyncio.sleep(0)
    keep(bytes(size()), via=[])


async def second():
    keep(bytes(size()))
    await asyncio.sleep(0)
    keep(bytes(size()))


async def fails():
    await asyncio.sleep(0)
    try:
        raise KeyError
    except KeyError:
        keep(bytes(size()))
        raise


async def cancelled():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        keep(bytes(size()))
        raise


async def plan():
    keep(bytes(size()))
    await chain(5)
    await Waited()
    await old_style()
    async for _ in ticks():
        keep(bytes(size())) if _ == 1 else None
    [keep(bytes(size())) async for _ in closed(ticks_once())]
    async with Context(), managed():
        keep(bytes(size()))
    await asyncio.gather(first(), second(), fails(), return_exceptions=True)
    task = asyncio.ensure_future(cancelled())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: keep(bytes(size())))
    await asyncio.sleep(0)
    await loop.run_in_executor(None, lambda: keep(bytes(size())))
    await loop.shutdown_asyncgens()


async def ticks_once():
    yield 1


async def closed(generator):
    async for value in generator:
        keep(bytes(size()))
        yield value


@case
def asyncio_tasks():
    asyncio.run(plan())


@case
def coroutine_by_hand():
    coroutine = chain_by_hand()
    coroutine.send(None)
    try:
        coroutine.send(None)
    except StopIteration:
        keep(bytes(size()))


async def chain_by_hand():
    keep(bytes(size()))
    await old_style()


@case
def eager_tasks():
    if not hasattr(asyncio, "eager_task_factory"):
        return skip("eager tasks", "before Python 3.12")

    async def eager():
        keep(bytes(size()))

    async def starts():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await asyncio.create_task(eager())

    asyncio.run(starts())


class Worker(threading.Thread):
    def run(self):
        keep(bytes(size()))

        def deeper():
            keep(bytes(size()))
            sorted([1], key=lambda _: keep(bytes(size()), via=[[0, "sort"]]))

        deeper()


@case
def threads():
    worker = Worker()
    worker.start()
    worker.join()
    thread = threading.Thread(target=lambda *_: keep(bytes(size())), args=(1,))
    thread.start()
    thread.join()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: keep(bytes(size()))).result()
        list(pool.map(lambda _: keep(bytes(size())), [1]))

    def in_step(number, before, after):
        before.wait()
        keep(bytes(size()))
        after.set()

    # Two threads in turn, so that one allocates while the other waits inside Python.
    events = [threading.Event() for _ in range(3)]
    pair = [
        threading.Thread(target=lambda: in_step(1, events[0], events[1])),
        threading.Thread(target=lambda: in_step(2, events[1], events[2])),
    ]
    for thread in pair:
        thread.start()
    events[0].set()
    for thread in pair:
        thread.join()


@case
def greenlets():
    try:
        from greenlet import getcurrent, greenlet
    except ImportError as error:
        return skip("greenlets", error)
    main = getcurrent()

    def work(below):
        keep(bytes(size()), below=below)

        def inner():
            main.switch()
            keep(bytes(size()), own=True)
            sorted([1], key=lambda _: keep(bytes(size()), own=True, via=[[0, "sort"]]))

        inner()
        main.switch()
        keep(bytes(size()), own=True)

    def start(task):
        task.switch(stack_here())

    def go_on(depth):
        if depth:
            return go_on(depth - 1)
        keep(bytes(size()))
        task.switch()
        keep(bytes(size()))

    task = greenlet(work)
    start(task)
    keep(bytes(size()))
    go_on(3)
    sorted([1], key=lambda _: task.switch())
    keep(bytes(size()))

    def ping(other):
        keep(bytes(size()), below=[])
        other[0].switch()
        keep(bytes(size()), own=True)
        other[0].switch()

    def pong(other):
        keep(bytes(size()), own=True)
        other[0].switch()
        keep(bytes(size()), own=True)

    one, two = [], []
    two.append(greenlet(lambda: pong(one)))
    one.append(greenlet(lambda: ping(two)))
    one[0].switch()
    keep(bytes(size()))
    sys.stdout.flush()
