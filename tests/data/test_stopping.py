import signal

from eden_hf.data.stopping import undone_on_sigterm
from tests.launching import python

FORKED = """
import os, signal, sys
from eden_hf.data.stopping import undone_on_sigterm
with undone_on_sigterm():
    child = os.fork()
    if not child:
        os._exit(signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
STOPPED = """
import os, signal
from eden_hf.data import stopping
stopping._PATIENCE = 1  # the system may forget the parent's signal, as below
ready, say = os.pipe()
with stopping.undone_on_sigterm():
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)  # not its parent's word
        os.write(say, b"x")
        signal.pause()
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
UNHEARD = """
import os, signal
from eden_hf.data import stopping
stopping._PATIENCE = 0.1
with stopping.undone_on_sigterm():
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_processes_have_no_handler_in_python():
    """A pool waited for ever for a worker that the signal met between a step of Python's and the lock behind it."""
    assert python("-c", FORKED).stdout.split() == ["0"]


def test_forked_processes_end_where_their_parent_says_so():
    assert python("-c", STOPPED, timeout=60).stdout.split() == ["0"]


def test_forked_processes_end_where_another_signal_swallowed_their_parents():
    """Of two signals that wait the system keeps one: the parent's was lost, and its join did not return."""
    assert python("-c", UNHEARD, timeout=60).stdout.split() == ["0"]


def test_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with undone_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
