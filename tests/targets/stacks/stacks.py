"""A program that tells its own Python stack at each of some hundred allocations, each of a size of its own.

It speaks the hand-shake of handshake.h: "go" runs the plan, "plan <n>" answers with its nth line as JSON
(planting.py), "quit" ends it. With the argument "mixed" the plan is that of mixed.py.
"""

import gc
import importlib
import json
import os
import sys

import flow
import hard
import plain
import planting
import through_c


def run_mixed(mixed):
    for case in mixed.CASES:
        case()
    return [json.dumps(row).encode() for row in mixed.ASKED]


def run_cases():
    for module in (plain, through_c, flow, hard):
        for case in module.CASES:
            case()
    # The JIT of 3.14 and later makes machine code of what has run some thousand times.
    planting.State.jit = hasattr(sys, "_jit") and sys._jit.is_enabled()
    rounds = 10_000 if planting.State.jit else 300
    for number in range(rounds):
        planting.State.hot = number == rounds - 1
        plain.hot_cases()
    if planting.FAILED:
        raise AssertionError("\n".join(planting.FAILED))
    return planting.lines()


def next_command():
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(111)
        line += byte
    return line.decode().split()


def main():
    mixed = importlib.import_module("mixed") if sys.argv[1:] == ["mixed"] else None
    gc.collect()
    gc.disable()
    os.write(1, b"ready\n")
    told = []
    while True:
        command = next_command()
        if command[0] == "go":
            try:
                told = run_mixed(mixed) if mixed else run_cases()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os.write(1, b"done %d\n" % len(told))
        elif command[0] == "plan":
            os.write(1, told[int(command[1])] + b"\n")
        elif command[0] == "quit":
            os._exit(0)  # an orderly end would free the blocks
        else:
            os._exit(2)


main()
