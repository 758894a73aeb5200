import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps one state a process; each test is a program of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
