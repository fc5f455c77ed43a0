"""A web service under full load that leaks: json, sqlite3, hashlib and zlib without end, on one thread.

A request is an order of four parcels, each of them what bench_server.py does for a request. After every hundredth request one dict with a string stays behind, at the line marked LEAK. It speaks the
hand-shake of handshake.h, and answers also while it works:

  "go"     works until told otherwise; "going"
  "rest"   does nothing until told otherwise; as "count"
  "count"  "count <requests> <leaks> <blocks> <bytes> <list bytes> <nanoseconds>"

so that between two answers it is known what was done and what was leaked, in what time. Blocks and bytes are
those of the dicts, their keys and their strings, as CPython's pools hold them; <list bytes> is the array in which
the list holds them, a block of its own that grows in steps at the same line.
"""

import json
import os
import select
import sys
import time

sys.dont_write_bytecode = True

import bench_server  # noqa: E402

PARCELS = 4
EVERY = 100
BETWEEN_LOOKS = 10
NOTE_CHARS = 300
# Of blocks in CPython's pools.
ALIGNMENT = 16

decoder = json.JSONDecoder()
leaked = []


def keep(body):
    # CPython keeps freed dicts and their keys for the next, whoever asks. While more are in use than any
    # request needs, none are left over, and what leaks here is also allocated here.
    in_use = decoder.decode(body), decoder.decode(body), [{"in use": None} for _ in range(4)]
    leaked.append({"note": body[:NOTE_CHARS]})  # LEAK
    return in_use


def bytes_of_one(body):
    note = body[:NOTE_CHARS]
    itself = sys.getsizeof({})
    blocks = itself, sys.getsizeof({"note": note}) - itself, sys.getsizeof(note)
    return sum((block + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT for block in blocks)


class Service:
    def __init__(self):
        self.database = bench_server.open_database()
        self.bodies = [bench_server.request_body(number) for number in range(PARCELS)]
        self.requests = 0
        self.bytes_of_one = bytes_of_one(self.bodies[0])

    def work(self):
        for _ in range(BETWEEN_LOOKS):
            for body in self.bodies:
                bench_server.serve(self.database, body)
        self.requests += BETWEEN_LOOKS
        if self.requests % EVERY == 0:
            keep(self.bodies[0])

    def books(self):
        array = sys.getsizeof(leaked) - sys.getsizeof([])
        leaks = len(leaked)
        figures = self.requests, leaks, 3 * leaks, self.bytes_of_one * leaks, array, time.monotonic_ns()
        return b"count %d %d %d %d %d %d\n" % figures


def main():
    service = Service()
    # What CPython keeps for later is in place after that.
    while len(leaked) < EVERY:
        service.work()
    commands = select.poll()
    commands.register(0, select.POLLIN)
    working = False
    os.write(1, b"ready\n")
    while True:
        if working and not commands.poll(0):
            service.work()
            continue
        command = bench_server.next_command()[0]
        if command == "go":
            working = True
            os.write(1, b"going\n")
        elif command == "rest":
            working = False
            os.write(1, service.books())
        elif command == "count":
            os.write(1, service.books())
        elif command == "quit":
            return
        else:
            sys.exit(2)


main()
