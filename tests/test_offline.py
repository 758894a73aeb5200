"""Tests cannot reach the network, so no other test needs to say that what it calls does not."""

import socket
import subprocess
import sys
import urllib.request

import pytest

from .launching import ENVIRONMENT
from .offline.sitecustomize import OnlineError


def test_other_machines_are_out_of_reach():
    with socket.socket() as connection, pytest.raises(OnlineError, match=r"reaches for 192\.0\.2\.1"):
        connection.connect(("192.0.2.1", 9))
    with pytest.raises(OnlineError, match=r"reaches for example\.com"):
        urllib.request.urlopen("http://example.com", timeout=1)


def test_this_machine_is_within_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_programs_that_tests_start_are_offline_too():
    program = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert "OnlineError: tests run offline" in ended.stderr
