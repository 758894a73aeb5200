import signal

import pytest

from eden_hf.training import stop_request
from eden_hf.training.stop_request import StopRequest


def test_signals_at_once_are_one_request_and_a_later_one_ends(monkeypatch):
    raised = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    with StopRequest() as request:
        assert not request.requested
        for _ in range(2):
            request._ask(signal.SIGTERM, None)
        assert request.requested
        assert not raised
        monkeypatch.setattr(stop_request, "ONE_REQUEST", -1.0)
        request._ask(signal.SIGTERM, None)
        assert raised == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_before_is_back_afterwards(number):
    before = signal.getsignal(number)
    with StopRequest():
        pass
    assert signal.getsignal(number) == before
