"""A WSGI application with a known leak: a block of LEAK_BYTES per request, and one of BOOT_BYTES at import.

The answer to a request is the id of the process that served it.
"""

import ctypes
import os

LEAK_BYTES = 43210
BOOT_BYTES = 43211

malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
malloc.argtypes = [ctypes.c_size_t]

malloc(BOOT_BYTES)


def application(environ, start_response):
    malloc(LEAK_BYTES)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
