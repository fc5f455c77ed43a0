"""Run by gdb: writes the stack of every allocation of a range of sizes, as gdb's `bt` shows it.

The environment says what to do:
  STACKS_OUT    file for the stacks, one JSON object a line
  STACKS_SIZES  "least-most", bytes
  STACKS_RULES  frames of which gdb cannot know how to leave them, "first-last:rule" or "symbol:rule" separated
                by commas; "rbp": they keep a frame pointer; "rsp+N": the frame ends N bytes above the stack
                pointer after the call
  STACKS_MEMORY when set, each stack comes with what its walk needs: registers, the stack's memory and the executable
                mappings; the kernel's own code is written to that file
  STACKS_RUN    when set, the program is started with its standard input from that file; else it was attached
"""

import json
import os

import gdb
from gdb.unwinder import Unwinder

LEAST, MOST = (int(bytes) for bytes in os.environ["STACKS_SIZES"].split("-"))
OUT = open(os.environ["STACKS_OUT"], "w")
MEMORY = os.environ.get("STACKS_MEMORY")
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


def entry_of(path):
    """Offset in the file of what the kernel jumps to. In these files code lies as in memory."""
    if path not in ENTRIES:
        with open(path, "rb") as file:
            ENTRIES[path] = int.from_bytes(file.read(32)[24:], "little")
    return ENTRIES[path]


# By path. Nothing calls the code at an entry point, but where it is assembly without unwind information (in the
# dynamic linker) gdb takes the arguments of the program for its callers.
ENTRIES = {}
ENTRY_BYTES = 64


def is_outermost(pc, path, offset):
    if path is None or not path.startswith("/"):
        return False
    if entry_of(path) < offset <= entry_of(path) + ENTRY_BYTES:
        return True
    if "/libc.so" not in path:
        return False
    before = START_CONTEXT_BYTES - 1
    code = gdb.selected_inferior().read_memory(pc - before, before + len(START_CONTEXT))
    return START_CONTEXT in code.tobytes()


# Registers may be saved beyond the stack pointer of the outermost frame. Larger stacks are left out.
BEYOND_BYTES = 512
MOST_BYTES = 1 << 21


def memory_of(stack_pointers):
    """The stack's memory, in one piece for each mapping that it has parts of."""
    pieces = []
    for start, end, _, _ in list(mappings()):
        inside = [pointer for pointer in stack_pointers if start <= pointer < end]
        if inside:
            first, last = min(inside), min(max(inside) + BEYOND_BYTES, end)
            if last - first > MOST_BYTES:
                return None
            memory = gdb.selected_inferior().read_memory(first, last - first)
            pieces.append([first, memory.tobytes().hex()])
    return pieces


def executable():
    with open(f"/proc/{gdb.selected_inferior().pid}/maps") as lines:
        codes = [line.split()[0] for line in lines if line.split()[1][2] == "x"]
    for start, end, offset, path in mappings():
        if f"{start:x}-{end:x}" in codes:
            yield start, end, offset, path


def context():
    """What a walk from here needs."""
    frame = gdb.newest_frame()
    registers = [int(frame.read_register(name)) for name in ("rsp", "rbp")]
    pointers = []
    while frame is not None and len(pointers) < DEEPEST:
        pointers.append(int(frame.read_register("rsp")))
        frame = frame.older()
    return {"registers": registers, "memory": memory_of(pointers), "code": list(executable())}


def keep_kernel_code(file_name):
    for start, end, _, path in mappings():
        if path == "[vdso]":
            with open(file_name, "wb") as file:
                file.write(gdb.selected_inferior().read_memory(start, end - start).tobytes())


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
        if is_outermost(frame.pc(), path, offset):
            return frames, None
    reason = frame.unwind_stop_reason()
    return frames, gdb.frame_stop_reason_string(reason) if reason not in ENDS else None


# How a whole stack ends: the caller is known not to exist, or its address is 0.
ENDS = (gdb.FRAME_UNWIND_NO_REASON, gdb.FRAME_UNWIND_OUTERMOST)


# The code of an allocation function is no longer than this.
FUNCTION_BYTES = 0x800
# Where the allocation functions are, and of each thread the last one that was entered: its address, the stack pointer
# and the return address.
ADDRESSES = set()
LAST = {}


def is_nested(frame):
    """Whether an allocation function makes this call for itself: it is counted already."""
    entry, sp = frame.pc(), int(frame.read_register("rsp"))
    word = gdb.lookup_type("unsigned long").pointer()
    returns_to = int(gdb.Value(sp).cast(word).dereference())
    if any(address < returns_to <= address + FUNCTION_BYTES for address in ADDRESSES):
        return True
    # By a jump: the same call has led from one function to another.
    thread = gdb.selected_thread().ptid
    last_entry, *last = LAST.get(thread, (entry,))
    if entry != last_entry and last == [sp, returns_to]:
        return True
    LAST[thread] = entry, sp, returns_to
    return False


class Allocation(gdb.Breakpoint):
    def __init__(self, function, address):
        super().__init__(f"*{address}", internal=True)
        self.function = function

    def stop(self):
        frame = gdb.selected_frame()
        word = (1 << 64) - 1
        size = FUNCTIONS[self.function](lambda name: int(frame.read_register(name)) & word)
        if LEAST <= size <= MOST and not is_nested(frame):
            try:
                frames, cut = stack()
            except gdb.error as error:
                frames, cut = [], str(error)
            hit = {"function": self.function, "bytes": size, "frames": frames, "cut": cut}
            if MEMORY:
                hit["context"] = context()
            write(hit)
        return False


def write(value):
    json.dump(value, OUT)
    OUT.write("\n")


def when_exited(event):
    # Whoever reads the stacks knows by this that there are no more.
    write({"exit_code": getattr(event, "exit_code", None)})


def place_breakpoints():
    for function in FUNCTIONS:
        try:
            address = address_of(function)
            # glibc has memalign and aligned_alloc at one address.
            if address not in ADDRESSES:
                Allocation(function, address)
            ADDRESSES.add(address)
        except gdb.error as error:
            print(f"no {function}: {error}")
    if MEMORY:
        keep_kernel_code(MEMORY)
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

gdb.events.exited.connect(when_exited)
run = os.environ.get("STACKS_RUN")
if run:
    gdb.events.new_objfile.connect(when_loaded)
    gdb.execute(f"run < {run} > /dev/null")
else:
    place_breakpoints()
    print("stacks: ready", flush=True)
    gdb.execute("continue")
OUT.close()
