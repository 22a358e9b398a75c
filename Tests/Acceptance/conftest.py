"""One server for all tests that do not break it; each of them uses an account of its own."""

import pytest

from beamline import Cluster, Database, Server


@pytest.fixture(scope="session")
def server():
    server = Server(flags=["--max-trace-bytes", "512000"]).start()
    yield server
    server.remove()


@pytest.fixture
def account(server):
    return server.new_account()


@pytest.fixture(scope="session")
def database():
    """A PostgreSQL that clusters of roles share; each makes a database of its own in it."""
    database = Database().start()
    yield database
    database.remove()


@pytest.fixture
def cluster(database):
    cluster = Cluster(database).migrate()
    yield cluster
    cluster.remove()
