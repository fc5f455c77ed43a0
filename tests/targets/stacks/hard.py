"""What is hard to tell from outside: code that dies, lines far apart, deep stacks, other interpreters."""

import ast
import gc
import json
import os
import sys
import types
import weakref

import planting
from planting import keep, size, skip, stack_here

CASES = []


def case(function):
    CASES.append(function)
    return function


def run(source, file, **names):
    exec(compile(source, file, "exec"), dict(globals(), **names))


@case
def code_that_dies():
    # Each code object takes the place in memory of one that died, under another name, file and line.
    places = set()
    for number in range(40):
        lines = "\n" * (number * 7 % 40)
        names = dict(globals())
        source = "%sdef dies_%d():\n keep(bytes(size()))\ndies_%d()\n" % (lines, number, number)
        exec(compile(source, "<dying %d>" % number, "exec"), names)
        places.add(id(names["dies_%d" % number].__code__))
        # The function and its globals hold each other.
        names.clear()
        eval(compile("%s(lambda: keep(bytes(size())))()" % lines, "/srv/dead/%d.py" % number, "eval"))
    # Up to 3.9 most find another place.
    if sys.version_info >= (3, 10) and len(places) > 20:
        raise AssertionError("the code objects had %d places" % len(places))


@case
def names_beyond_ascii():
    run("def größe():\n    keep(bytes(size()))\ngröße()\n", "/srv/größe/naïve.py")
    run("class 类:\n    def 方法(self):\n        keep(bytes(size()))\n类().方法()\n", "/srv/模块/文件.py")
    run("def plain():\n\n    keep(bytes(size()))\nplain()\n", "/srv/\U0001f40d/\U0001d4d0.py")
    run("def Ωδ():\n    (lambda: keep(bytes(size())))()\nΩδ()\n", "<кириллица>")


@case
def long_names():
    name = "long_" * 50
    run("def %s():\n keep(bytes(size()))\n%s()\n" % (name, name), "/srv" + "/directory" * 40 + "/file.py")
    classes = "".join("%sclass C%d_%s:\n" % (" " * depth, depth, "x" * 30) for depth in range(12))
    run("%s%skeep(bytes(size()))\n" % (classes, " " * 12), "<nested classes>")


@case
def lines_far_apart():
    run("def far():\n%s    keep(bytes(size()))\nfar()\n" % ("\n" * 300), "<300 empty lines>")
    run("def far():\n%s    keep(bytes(size()))\nfar()\n" % ("\n" * 70000), "<70000 empty lines>")
    body = "".join("    number = %d + number * 2\n" % number for number in range(400))
    run("def long(number):\n%s    keep(bytes(size()))\n%s    keep(bytes(size()))\nlong(1)\n" % (body, body), "<800 lines>")
    # Lines of some thousand instructions, then a call far behind them. The larger table of lines is too large to
    # be taken on every occasion; the function lives on, so that it can be read later.
    for terms in (500, 1500):
        wide = " + ".join("number" for _ in range(terms))
        names = dict(globals())
        code = "def wide(number):\n    x = (%s,\n keep(bytes(size())))\nwide(1)\n" % wide
        exec(compile(code, "<a line of %d terms>" % terms, "exec"), names)
        if terms == 1500:
            planting.KEPT.append(names["wide"])
    # Lines as a program generator may number them: on, far on, and back by more than a byte holds.
    tree = ast.parse("def numbered():\n" + "".join("    keep(bytes(size()))\n" for _ in range(6)) + "numbered()\n")
    for statement, line in zip(tree.body[0].body, [5, 1_000_000, 7, 600, 200, 199]):
        for node in ast.walk(statement):
            if hasattr(node, "lineno"):
                node.lineno = node.end_lineno = line
    run(tree, "<numbered>")


@case
def replaced_code():
    def function():
        keep(bytes(size()))

    code = function.__code__.replace(co_name="renamed", co_filename="/srv/renamed.py", co_firstlineno=5000)
    if hasattr(code, "co_qualname"):
        code = code.replace(co_qualname="Somewhere.renamed")
    types.FunctionType(code, globals())()


@case
def newer_syntax():
    if sys.version_info < (3, 10):
        return skip("match statements", "before Python 3.10")
    run(
        "def matches(value):\n    match value:\n        case [1, x] if keep(bytes(size())) is None:\n"
        "            keep(bytes(size()))\nmatches([1, 2])\n",
        "<match>",
    )
    if sys.version_info >= (3, 11):
        run(
            "def grouped():\n    try:\n        raise ExceptionGroup('', [KeyError()])\n    except* KeyError:\n"
            "        keep(bytes(size()))\ngrouped()\n",
            "<except*>",
        )
    if sys.version_info >= (3, 12):
        run("def generic[T = int](x: T):\n    keep(bytes(size()))\ngeneric(1)\n" if sys.version_info >= (3, 13)
            else "def generic[T](x: T):\n    keep(bytes(size()))\ngeneric(1)\n", "<generic>")
        run("type Alias[T: (keep(bytes(size())), int)] = T\nAlias.__type_params__[0].__constraints__\n", "<lazy>")


@case
def imports():
    class Loader:
        def create_module(self, spec):
            keep(bytes(size()))

        def exec_module(self, module):
            exec(compile("keep(bytes(size()))\n", "/srv/imported.py", "exec"), dict(keep=keep, size=size))

    class Finder:
        def find_spec(self, name, path, target=None):
            if name == "stacks_imported":
                import importlib.machinery

                keep(bytes(size()))
                return importlib.machinery.ModuleSpec(name, Loader())

    sys.meta_path.insert(0, Finder())
    import stacks_imported

    sys.meta_path.pop(0)
    del stacks_imported


class Dying:
    def __init__(self):
        self.me = self

    def __del__(self):
        keep(bytes(size()))


class Counted:
    def __del__(self):
        keep(bytes(size()))


@case
def collections():
    Dying()
    gc.collect()
    counted = Counted()
    counted = None
    thing = Counted2()
    reference = weakref.ref(thing, lambda _: keep(bytes(size())))
    del thing
    del counted, reference
    gc.callbacks.append(lambda phase, _: keep(bytes(size())) if phase == "start" else None)
    gc.collect()
    gc.callbacks.pop()
    # At a moment that the interpreter chooses.
    Dying()
    gc.enable()
    gc.set_threshold(5, 1, 1)
    cycles = []
    for _ in range(200000):
        cycles = [cycles[-1:]]
    gc.disable()


class Counted2:
    pass


@case
def deep():
    def down(depth):
        if depth == 0:
            keep(bytes(size()), deep=True)
        else:
            down(depth - 1)

    down(400)

    def through_c(depth):
        if depth == 0:
            keep(bytes(size()), deep=True)
        else:
            sorted([1], key=lambda _: through_c(depth - 1))

    through_c(60)


SCRIPT = """
import os, sys
sys.path.insert(0, %r)
import planting
from planting import keep, size
planting.start_at(%d)
def inside(below):
    keep(bytes(size()), below=below)
    sorted([1], key=lambda _: keep(bytes(size()), below=below, via=[[0, "sort"]]))
inside(%r)
os.write(%d, b"".join(line + b"\\n" for line in planting.lines()))
"""


@case
def interpreters():
    try:
        import _interpreters as module
    except ImportError:
        try:
            import _xxsubinterpreters as module
        except ImportError as error:
            return skip("other interpreters", error)
    execute = getattr(module, "run_string", None) or module.exec
    reader, writer = os.pipe()
    here = os.path.dirname(os.path.abspath(planting.__file__))
    interpreter = module.create()
    failure = execute(interpreter, SCRIPT % (here, 70_000, stack_here(), writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        rows = [json.loads(line) for line in told]
    if failure is not None or not rows:
        raise AssertionError("in the other interpreter: %r" % (failure,))
    planting.PLAN.extend(row for row in rows if "size" in row)
    # It lives on, or its blocks would be freed.
    planting.KEPT.append(interpreter)


@case
def monitoring():
    if not hasattr(sys, "monitoring"):
        return skip("monitoring", "before Python 3.12")
    events = sys.monitoring.events

    def monitored():
        return 1

    def started(code, _):
        if code is monitored.__code__:
            keep(bytes(size()), via=[])

    sys.monitoring.use_tool_id(3, "stacks")
    sys.monitoring.register_callback(3, events.PY_START, started)
    sys.monitoring.set_events(3, events.PY_START)
    monitored()
    sys.monitoring.set_events(3, 0)
    sys.monitoring.free_tool_id(3)


@case
def trampolines():
    try:
        sys.activate_stack_trampoline("perf")
    except (AttributeError, ValueError) as error:
        return skip("trampolines of perf", error)

    # Each call goes through machine code made at run time, of which no table tells how it is unwound.
    def outer():
        def inner():
            keep(bytes(size()), jit=True)
            sorted([1], key=lambda _: keep(bytes(size()), jit=True))

        inner()
        keep(bytes(size()), jit=True)

    outer()
    sys.deactivate_stack_trampoline()
    os.unlink("/tmp/perf-%d.map" % os.getpid())
