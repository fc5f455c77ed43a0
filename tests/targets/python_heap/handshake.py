"""The hand-shake of handshake.h, for Python."""

import os


def next_command():
    """The words of the next line of standard input."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(111)
        line += byte
    return line.decode().split()


def say(text):
    os.write(1, text.encode() + b"\n")


def serve(answers):
    """Says that the program is ready, and answers commands until "quit". `answers` has a function for each
    command; what it returns is said."""
    say("ready")
    while True:
        command, *arguments = next_command()
        if command == "quit":
            os._exit(0)  # an orderly end would free what was kept
        say(answers[command](*arguments))
