"""A little order service: JSON over HTTP, SQLite behind it, answers compressed."""

import hashlib
import http.server
import json
import sqlite3
import threading
import urllib.request
import zlib

DATABASE = sqlite3.connect(":memory:", check_same_thread=False)
DATABASE.execute("create table orders (id integer primary key, body text)")
LOCK = threading.Lock()


class Session:
    """What is kept of a customer's connection."""

    def __init__(self, customer):
        self.customer = customer
        self.compressor = zlib.compressobj(level=6, wbits=10, memLevel=1)
        self.pending = bytearray()

    def answer(self, payload):
        packed = self.compressor.compress(json.dumps(payload).encode())
        self.pending += packed or b"."
        return bytes(self.pending[-64:])


SESSIONS = {}


def session_of(customer):
    if customer not in SESSIONS:
        SESSIONS[customer] = Session(customer)
    return SESSIONS[customer]


def store(order):
    with LOCK:
        DATABASE.execute("insert into orders (body) values (?)", (json.dumps(order) * 20,))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))
        order["digest"] = hashlib.sha256(order["item"].encode()).hexdigest()
        store(order)
        # Each order number is taken for a customer: sessions are made and never dropped.
        body = session_of(order["number"]).answer(order)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def customers(url):
    for number in range(100_000):
        order = json.dumps({"number": number, "item": "screws" * 10}).encode()
        urllib.request.urlopen(urllib.request.Request(url, order)).read()


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=customers, args=("http://127.0.0.1:%d" % server.server_port,), daemon=True).start()
    server.serve_forever()


main()
