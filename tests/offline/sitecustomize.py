"""No test talks to another machine, nor does a program that a test starts: Python imports this from PYTHONPATH."""

import socket
import sys

HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}


class OnlineError(BaseException):
    """A connection to another machine; nothing that catches exceptions goes on after it."""


def _refuse(event: str, arguments: tuple) -> None:
    """Of Python's audit events those of reaching out; sockets that are files have no host."""
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in HERE and not str(host).endswith(".127.0.0.1"):  # what datasets makes of a Hub of this machine
        raise OnlineError(f"tests run offline, and this reaches for {host}")


sys.addaudithook(_refuse)
