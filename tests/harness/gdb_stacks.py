"""Run by gdb: writes the stack of every allocation of a range of sizes, as gdb's `bt` shows it.

The environment says what to do:
  STACKS_OUT    file for the stacks, one JSON object a line
  STACKS_SIZES  "least-most", bytes
  STACKS_RULES  frames of which gdb cannot know how to leave them, "first-last:rule" or "symbol:rule" separated
                by commas; "rbp": they keep a frame pointer; "rsp+N": the frame ends N bytes above the stack
                pointer after the call
  STACKS_RUN    when set, the program is started with its standard input from that file; else it was attached
"""

import json
import os

import gdb
from gdb.unwinder import Unwinder

LEAST, MOST = (int(bytes) for bytes in os.environ["STACKS_SIZES"].split("-"))
OUT = open(os.environ["STACKS_OUT"], "w")
DEEPEST = 4000

# Which argument is what, by the System V ABI.
FUNCTIONS = {
    "malloc": lambda register: register("rdi"),
    "calloc": lambda register: register("rdi") * register("rsi"),
    "realloc": lambda register: register("rsi"),
    "reallocarray": lambda register: register("rsi") * register("rdx"),
    "aligned_alloc": lambda register: register("rsi"),
    "memalign": lambda register: register("rsi"),
    "posix_memalign": lambda register: register("rdx"),
}
# Functions that are named in a rule are no longer than this.
CODE_ALIGNMENT = 16

# How `__start_context` of glibc begins, which makecontext lays as return address at the end of a new stack. No call
# comes before it, and its unwind information does not tell that nothing called it: gdb takes the next words of
# the stack for frames. glibc 2.36, sysdeps/unix/sysv/linux/x86_64/__start_context.S: mov %rbx, %rsp; mov (%rsp), %rdi.
START_CONTEXT = bytes.fromhex("4889dc488b3c24")
START_CONTEXT_BYTES = 26

KEPT = ["rbx", "rbp", "r12", "r13", "r14", "r15"]


class FrameId:
    def __init__(self, sp, pc):
        self.sp = sp
        self.pc = pc


class KnownFrames(Unwinder):
    """Code without unwind information and without a symbol: gdb would take the word at the stack pointer for
    the return address. What such code does is known to the test that made it."""

    def __init__(self, rules):
        super().__init__("frames known to the test")
        self.rules = rules

    def __call__(self, pending):
        pc = int(pending.read_register("pc"))
        for first, last, rule in self.rules:
            if first <= pc <= last:
                return self.leave(pending, rule, pc)
        return None

    def leave(self, pending, rule, pc):
        word = gdb.lookup_type("unsigned long")
        pointer = word.pointer()
        saved = {name: pending.read_register(name) for name in KEPT}
        if rule == "rbp":
            frame = int(pending.read_register("rbp"))
            saved["rbp"] = gdb.Value(frame).cast(pointer).dereference()
            cfa = frame + 16
        else:
            cfa = int(pending.read_register("rsp")) + int(rule.removeprefix("rsp+"))
        info = pending.create_unwind_info(FrameId(gdb.Value(cfa).cast(word), gdb.Value(pc).cast(word)))
        info.add_saved_register("rip", gdb.Value(cfa - 8).cast(pointer).dereference())
        info.add_saved_register("rsp", gdb.Value(cfa).cast(word))
        for name, value in saved.items():
            info.add_saved_register(name, value)
        return info


def address_of(symbol):
    return int(gdb.parse_and_eval(f"(unsigned long) &{symbol}"))


def known_frames():
    for rule in filter(None, os.environ.get("STACKS_RULES", "").split(",")):
        place, how = rule.split(":")
        if place.startswith("0x"):
            first, last = (int(address, 16) for address in place.split("-"))
        else:
            first = address_of(place)
            last = first + CODE_ALIGNMENT - 1
        yield first, last, how


def mappings():
    with open(f"/proc/{gdb.selected_inferior().pid}/maps") as lines:
        for line in lines:
            place, _, offset, _, _, *path = line.rstrip("\n").split(None, 5)
            start, end = (int(address, 16) for address in place.split("-"))
            yield start, end, int(offset, 16), path[0] if path else None


def place(pc, exact, maps):
    """Path and offset in the file, or no path and the address. A return address belongs to its call."""
    byte = pc if exact else pc - 1
    for start, end, offset, path in maps:
        if start <= byte < end and path is not None:
            return path, pc - start + offset
    return None, pc


def is_start_context(pc, path):
    if path is None or "/libc.so" not in path:
        return False
    before = START_CONTEXT_BYTES - 1
    code = gdb.selected_inferior().read_memory(pc - before, before + len(START_CONTEXT))
    return START_CONTEXT in code.tobytes()


def stack():
    """The frames of the caller of the function that was hit, and outwards; and why gdb ended."""
    maps = list(mappings())
    frames = []
    frame = gdb.newest_frame()
    exact = False
    while True:
        exact = frame.type() == gdb.SIGTRAMP_FRAME
        older = frame.older()
        # These gdb infers from debug information: functions that were inlined, and functions that ended by a
        # jump to the next. Neither has a frame.
        while older is not None and older.type() in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            older = older.older()
        if older is None or len(frames) == DEEPEST:
            break
        frame = older
        path, offset = place(frame.pc(), exact, maps)
        frames.append([path, offset, frame.name()])
        if is_start_context(frame.pc(), path):
            return frames, None
    reason = frame.unwind_stop_reason()
    return frames, gdb.frame_stop_reason_string(reason) if reason not in ENDS else None


# How a whole stack ends: the caller is known not to exist, or its address is 0.
ENDS = (gdb.FRAME_UNWIND_NO_REASON, gdb.FRAME_UNWIND_OUTERMOST)


class Allocation(gdb.Breakpoint):
    def __init__(self, function, address):
        super().__init__(f"*{address}", internal=True)
        self.function = function

    def stop(self):
        frame = gdb.selected_frame()
        word = (1 << 64) - 1
        size = FUNCTIONS[self.function](lambda name: int(frame.read_register(name)) & word)
        if LEAST <= size <= MOST:
            try:
                frames, cut = stack()
            except gdb.error as error:
                frames, cut = [], str(error)
            json.dump({"function": self.function, "bytes": size, "frames": frames, "cut": cut}, OUT)
            OUT.write("\n")
        return False


def place_breakpoints():
    known = set()
    for function in FUNCTIONS:
        try:
            address = address_of(function)
            # glibc has memalign and aligned_alloc at one address.
            if address not in known:
                Allocation(function, address)
            known.add(address)
        except gdb.error as error:
            print(f"no {function}: {error}")
    rules = list(known_frames())
    if rules:
        gdb.unwinder.register_unwinder(None, KnownFrames(rules))


def when_loaded(event):
    if os.path.basename(event.new_objfile.filename).startswith("libc.so"):
        gdb.events.new_objfile.disconnect(when_loaded)
        place_breakpoints()


for setting in [
    "pagination off",
    "confirm off",
    "print inferior-events off",
    "print thread-events off",
    "debuginfod enabled off",
    "backtrace past-main on",
    "backtrace past-entry on",
    "backtrace limit unlimited",
]:
    gdb.execute(f"set {setting}")
gdb.execute("handle all nostop noprint pass")

run = os.environ.get("STACKS_RUN")
if run:
    gdb.events.new_objfile.connect(when_loaded)
    gdb.execute(f"run < {run} > /dev/null")
else:
    place_breakpoints()
    print("stacks: ready", flush=True)
    gdb.execute("continue")
OUT.close()
