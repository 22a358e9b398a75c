"""One server for all tests that do not break it; each of them uses an account of its own."""

import pytest

from beamline import Server


@pytest.fixture(scope="session")
def server():
    server = Server(flags=["--max-trace-bytes", "512000"]).start()
    yield server
    server.remove()


@pytest.fixture
def account(server):
    return server.new_account()
