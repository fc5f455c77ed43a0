"""What a small web service does for a request, in a loop: the Python target of `cargo xtask bench`.

It speaks the hand-shake of handshake.h, as bench_pairs.c does: "run <ms>" is answered by
"done <requests> <nanoseconds>"; "hold" and "release" allocate and free the block by which a tracer shows
that it is there. A request reads a JSON order, looks for its customer in a database, stores it, and answers
with JSON, a checksum and a compressed copy.
"""

import ctypes
import hashlib
import json
import os
import sqlite3
import sys
import time
import zlib

CUSTOMERS = 1000
KEPT_ORDERS = 1000
ITEMS = 12
HOLD_BYTES = 1000

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

# zlib takes a quarter of a megabyte for each answer. Whether glibc gives that back to the kernel every time
# depends on what happens to lie above it in the heap, and changes the rate threefold. Here it never does.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
libc.mallopt(M_TRIM_THRESHOLD, 1 << 28)
libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)


def open_database():
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT)")
    database.execute("CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER, body TEXT, checksum TEXT)")
    rows = [(number, f"customer {number}", f"city {number % 37}") for number in range(CUSTOMERS)]
    database.executemany("INSERT INTO customer VALUES (?, ?, ?)", rows)
    return database


def request_body(number):
    items = [{"sku": f"A-{number % 97}-{line}", "count": line + 1, "price": 9.99 + line} for line in range(ITEMS)]
    return json.dumps({"id": number, "customer": number * 7 % CUSTOMERS, "items": items, "note": "as always"})


def serve(database, body):
    order = json.loads(body)
    name, city = database.execute(
        "SELECT name, city FROM customer WHERE id = ?", (order["customer"],)
    ).fetchone()
    total = sum(item["count"] * item["price"] for item in order["items"])
    checksum = hashlib.sha256(body.encode()).hexdigest()
    database.execute(
        "INSERT OR REPLACE INTO purchase VALUES (?, ?, ?, ?)",
        (order["id"] % KEPT_ORDERS, order["customer"], body, checksum),
    )
    answer = json.dumps({"name": name, "city": city, "total": round(total, 2), "checksum": checksum})
    return zlib.compress(answer.encode(), 1)


def run(database, bodies, milliseconds):
    started = time.monotonic_ns()
    until = started + milliseconds * 1_000_000
    requests = 0
    while True:
        for body in bodies:
            serve(database, body)
        requests += len(bodies)
        now = time.monotonic_ns()
        if now >= until:
            return requests, now - started


def next_command():
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(111)
        line += byte
    return line.decode().split()


def main():
    database = open_database()
    bodies = [request_body(number) for number in range(10)]
    run(database, bodies, 50)
    held = None
    os.write(1, b"ready\n")
    while True:
        command = next_command()
        if command[0] == "run":
            os.write(1, b"done %d %d\n" % run(database, bodies, int(command[1])))
        elif command[0] == "hold":
            held = libc.malloc(HOLD_BYTES)
            os.write(1, b"held %d\n" % held)
        elif command[0] == "release":
            libc.free(held)
            os.write(1, b"released\n")
        elif command[0] == "quit":
            return
        else:
            sys.exit(2)


if __name__ == "__main__":
    main()
