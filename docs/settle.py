"""A settlement service: batches of transfers come as JSON, totals go back as JSON; aiohttp and ujson.

    python settle.py PORT            serves
    python settle.py PORT customers  sends batches, one after the other, until it is stopped
"""

import random
import sys
import urllib.request

import ujson
from aiohttp import web

BALANCES = {}


class Ether:
    def __init__(self, wei):
        self.wei = wei


def as_text(amount):
    return f"{amount.wei / 10**18:,.4f} Ξ"


async def settle(request):
    batch = await request.json(loads=ujson.loads)
    for transfer in batch["transfers"]:
        account = transfer["to"]
        BALANCES[account] = (BALANCES.get(account, 0) + transfer["wei"]) % 10**24
    total = sum(transfer["wei"] for transfer in batch["transfers"])
    answer = ujson.dumps({"batch": batch["batch"], "total": Ether(total)}, default=as_text)
    return web.Response(text=answer, content_type="application/json")


def customers(port):
    number = 0
    while True:
        number += 1
        transfers = [
            {"to": "0x%040x" % random.randrange(500), "wei": random.randrange(10**18, 10**21)}
            for _ in range(50)
        ]
        body = ujson.dumps({"batch": number, "transfers": transfers}).encode()
        request = urllib.request.Request("http://127.0.0.1:%d/batches" % port, body)
        urllib.request.urlopen(request).read()


def serve(port):
    application = web.Application()
    application.router.add_post("/batches", settle)
    web.run_app(application, host="127.0.0.1", port=port, print=None)


if "customers" in sys.argv:
    customers(int(sys.argv[1]))
else:
    serve(int(sys.argv[1]))
