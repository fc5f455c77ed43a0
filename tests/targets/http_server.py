"""An HTTP server of aiohttp: each answer is what bench_server.py does for a request.

Says "ready <port>" when it listens on the loopback interface, and ends at the end of its standard input.
"""

import asyncio
import os
import sys

sys.dont_write_bytecode = True

import bench_server  # noqa: E402
from aiohttp import web  # noqa: E402

database = bench_server.open_database()
body = bench_server.request_body(1)


async def handle(_request):
    return web.Response(body=bench_server.serve(database, body), content_type="application/octet-stream")


async def main():
    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, lambda: os.read(0, 100) or ended.set())
    port = site._server.sockets[0].getsockname()[1]
    os.write(1, b"ready %d\n" % port)
    await ended.wait()
    await runner.cleanup()


asyncio.run(main())
