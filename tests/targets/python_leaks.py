"""A Python program with two leaks: a list that grows, and a block from libc that ctypes asked for.

It speaks the hand-shake of handshake.h. Both leaks run once before "ready", so that what the interpreter
sets up at first use is no part of the plan.
"""

import ctypes
import gc
import os

OBJECTS = 1000
OBJECT_PAYLOAD_BYTES = 1000  # a bytes object of 1,033: too large for pymalloc
C_BLOCKS = 100
C_BLOCK_BYTES = 4321

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

KEPT = []


def grow_list(count):
    for _ in range(count):
        KEPT.append(bytes(OBJECT_PAYLOAD_BYTES))  # the list that grows


def leak_through_ctypes(count):
    for _ in range(count):
        libc.malloc(C_BLOCK_BYTES)  # never freed


def next_command():
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(111)
        line += byte
    return line


def main():
    grow_list(10)
    leak_through_ctypes(10)
    KEPT.clear()
    gc.collect()
    gc.disable()
    os.write(1, b"ready\n")
    while next_command() != b"quit\n":
        grow_list(OBJECTS)
        leak_through_ctypes(C_BLOCKS)
        os.write(1, b"done\n")
    os._exit(0)  # an orderly end would free the list


main()
