"""The crash matrix of the README: a cluster is broken on purpose under load, and afterwards every acknowledged document is there,
once, and `beamline verify` finds no difference between the graphs and the traces."""

import contextlib
import datetime
import json
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from urllib.parse import urlsplit

import pytest

from beamline import BINARY, wait_for
from local_cluster import Cable, LocalCluster
from senders import START, Senders

PARTITIONS = 4


@pytest.fixture(params=["kafka", "postgresql"])
def cluster(request):
    cluster = LocalCluster("--partitions", PARTITIONS, *(["--no-kafka"] if request.param == "postgresql" else [])).start()
    yield cluster
    cluster.remove()


@pytest.fixture
def kafka_cluster():
    cluster = LocalCluster("--partitions", PARTITIONS).start()
    yield cluster
    cluster.remove()


def all_owned(cluster):
    return cluster.metric("aggregate", "beamline_partitions_owned") == PARTITIONS


def test_kill_9_of_ingest_nodes_under_load(cluster):
    with Senders(cluster.root()) as senders:
        for name in ("ingest-1", "ingest-2", "ingest-1"):
            senders.more(60)
            cluster.kill(name)
            senders.more(60)
            cluster.wait_ready(name)
    senders.check(cluster)


def test_kill_9_of_aggregators_under_load(cluster):
    with Senders(cluster.root()) as senders:
        for name in ("aggregate-1", "aggregate-2", "aggregate-1"):
            senders.more(60)
            cluster.kill(name)
            senders.more(60)
            cluster.wait_ready(name)
        wait_for(lambda: all_owned(cluster), 30, "an owner for each partition")
    senders.check(cluster)


def test_kill_9_of_postgresql_under_load(cluster):
    with Senders(cluster.root()) as senders:
        for _ in range(2):
            senders.more(60)
            cluster.kill("postgresql")
            senders.more(60, 60)
        cluster.wait_ready()
    senders.check(cluster)


def test_kill_9_of_every_node_of_beamline_at_once(cluster):
    with Senders(cluster.root()) as senders:
        senders.more(100)
        for found in cluster.state["nodes"]:
            if found["role"] in ("ingest", "aggregate", "query"):
                cluster.kill(found["name"])
        senders.more(60, 60)
        cluster.wait_ready()
    senders.check(cluster)


def test_an_aggregator_that_hangs_is_fenced_when_it_wakes(cluster):
    """SIGSTOP beyond the length of its lease: the other takes its partitions over, and what it still held is dropped."""
    with Senders(cluster.root()) as senders:
        senders.more(60)
        cluster.signal("aggregate-1", signal.SIGSTOP)
        try:
            def owned():
                return cluster.metric("aggregate-2", "beamline_partitions_owned")

            wait_for(lambda: owned() == PARTITIONS, 60, "the other aggregator owns all partitions")
            senders.more(60)
        finally:
            cluster.signal("aggregate-1", signal.SIGCONT)
        senders.more(60)
        wait_for(lambda: all_owned(cluster) and owned() < PARTITIONS, 60, "partitions are shared again")
    senders.check(cluster)


def test_the_broker_is_down_for_30_seconds(kafka_cluster):
    cluster = kafka_cluster
    with Senders(cluster.root()) as senders:
        senders.more(60)
        cluster.hold("kafka")
        down = time.monotonic()
        failures = senders.failures
        wait_for(lambda: senders.failures > failures, 40, "calls are refused while the broker is down")
        # What is in the tables can be read all the time.
        while time.monotonic() - down < 30:
            assert cluster.root().call("GetTraceSummaries", {"StartTime": START, "EndTime": START + 60}).status == 200
            time.sleep(0.5)
        cluster.release("kafka")
        senders.more(100, 60)
        assert set(senders.statuses) <= {200, 502, 503, 504, "no answer"}, senders.statuses
    # Every node finds the broker again within seconds; reads wait two at most.
    ids = list(senders.acknowledged)

    def missing():
        return [ids[first] for first in range(0, len(ids), 5) if len(cluster.root().traces(*ids[first:first + 5])) < len(ids[first:first + 5])]
    wait_for(lambda: not missing(), 90, "what was acknowledged can be read")
    senders.check(cluster)


def test_a_backlog_at_the_start_is_folded(cluster):
    """Both aggregators are away while documents come in; they find all of them when they are back."""
    for name in ("aggregate-1", "aggregate-2"):
        cluster.hold(name)
    with Senders(cluster.root()) as senders:
        senders.more(1500, 90)
    for name in ("aggregate-1", "aggregate-2"):
        cluster.release(name)
    cluster.wait_ready()
    wait_for(lambda: all_owned(cluster) and cluster.metric("aggregate", "beamline_lag_records") == 0, 60, "the backlog is gone")
    senders.check(cluster)


@pytest.mark.parametrize("log, documents", [("kafka", 50_000), ("postgresql", 500_000)])
def test_a_large_backlog_is_folded_in_bounded_memory(log, documents):
    """No aggregator is there while so much comes in. Reads say how far they are complete; then all of it is folded, once."""
    cluster = LocalCluster("--partitions", PARTITIONS, *(["--no-kafka"] if log == "postgresql" else [])).start()
    try:
        names = ("aggregate-1", "aggregate-2")
        for name in names:
            cluster.hold(name)
        began = int(time.time())
        load = subprocess.run(
            [BINARY, "load", "--endpoint", cluster.endpoint, "--credentials", str(cluster.data_dir / "credentials"), "--traces",
             str(documents // 6), "--connections", "8", "--json"], capture_output=True, text=True, timeout=300)
        ended, report = time.time(), json.loads(load.stdout)
        assert load.returncode == 0 and report["documents"] > 0.9 * documents, load.stdout + load.stderr

        def complete_to():
            answer = cluster.root().call("GetServiceGraph", {"StartTime": began, "EndTime": began + 60})
            assert answer.status == 200
            return datetime.datetime.fromisoformat(answer.headers["x-beamline-complete-to"].replace("Z", "+00:00")).timestamp()

        assert began - 60 < complete_to() <= ended - report["seconds"] + 1, "nothing that was sent is in the answer, and it says so"

        for name in names:
            cluster.release(name)
        cluster.wait_ready()
        peaks = dict.fromkeys(names, 0)

        def is_folded():
            for name in names:
                peaks[name] = max(peaks[name], peak_bytes(cluster.node(name)["pid"]))
            return complete_to() >= ended
        wait_for(is_folded, 300, "the backlog is folded")
        assert max(peaks.values()) <= 400e6, peaks
        found = re.search(r"recounted from (\d+) documents of (\d+) traces: no difference", cluster.administer("verify", "--from", began - 60).stdout)
        assert found and (int(found[1]), int(found[2])) == (report["documents"], report["traces"]), (found, report)
    finally:
        cluster.remove()


def peak_bytes(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def test_partitions_are_raised_under_load(cluster):
    """One new node asks for more of them; all others follow."""
    with Senders(cluster.root()) as senders:
        senders.more(60)
        with cluster.aggregator("third", partitions=2 * PARTITIONS) as third:
            wait_for(
                lambda: third("beamline_partitions_owned") > 0
                and third("beamline_partitions_owned") + cluster.metric("aggregate", "beamline_partitions_owned") == 2 * PARTITIONS,
                60, "an owner for each of the new partitions")
            senders.more(200)
            wait_for(lambda: third("beamline_commits_total", outcome="committed") > 0, 30, "a batch of the third aggregator")
        wait_for(lambda: cluster.metric("aggregate", "beamline_partitions_owned") == 2 * PARTITIONS, 30, "its partitions are given back")
    senders.check(cluster)


def test_an_aggregator_is_cut_off_from_postgresql(cluster):
    """Nobody is told: packets just do not arrive. The others take over; what comes through late is refused."""
    port = cluster.node("postgresql")["port"]
    cable = Cable(port)
    try:
        url = cluster.state["database_url"].replace(f":{port}/", f":{cable.port}/")
        with Senders(cluster.root()) as senders, cluster.aggregator("far", partitions=PARTITIONS, database_url=url) as far:
            wait_for(lambda: far("beamline_partitions_owned") > 0, 30, "it has a share")
            senders.more(60)
            cable.cut()
            wait_for(lambda: all_owned(cluster), 30, "the others own all partitions")
            senders.more(60)
            cable.mend()
            wait_for(lambda: far("beamline_partitions_owned") > 0 and not all_owned(cluster), 60, "it has a share again")
            senders.more(60)
        senders.check(cluster)
    finally:
        cable.close()


class Crowd:
    """Other clients of PostgreSQL, who take every connection there is and each that becomes free."""

    def __init__(self, url):
        self.url = urlsplit(url)
        self.held = []
        self.stopping = threading.Event()
        self.is_full = threading.Event()
        self.thread = threading.Thread(target=self.take, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(10)
        for connection in self.held:
            connection.close()

    def connect(self):
        """A connection on which the server has said `R` (welcome); None when it has no room."""
        words = b"".join(word.encode() + b"\0" for word in ("user", self.url.username, "database", self.url.path[1:])) + b"\0"
        connection = socket.create_connection((self.url.hostname, self.url.port), timeout=5)
        connection.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
        if connection.recv(1) == b"R":
            return connection
        connection.close()
        return None

    def take(self):
        while not self.stopping.is_set():
            connection = None
            with contextlib.suppress(OSError):
                connection = self.connect()
            if connection:
                self.held.append(connection)
            else:
                self.is_full.set()
                self.stopping.wait(0.02)


def test_postgresql_has_no_connections_left(cluster):
    """Nodes that die meanwhile come back when there is room again; the others go on with the connections they have."""
    with Senders(cluster.root()) as senders:
        senders.more(60)
        with Crowd(cluster.state["database_url"]) as crowd:
            assert crowd.is_full.wait(60), "every connection is taken"
            senders.more(60)
            for name in ("aggregate-1", "ingest-1"):
                cluster.kill(name)
            wait_for(lambda: all_owned_by_another(cluster), 40, "the aggregator that lives owns all partitions")
            senders.more(60, 60)
        cluster.wait_ready(timeout=60)
        senders.more(60)
    senders.check(cluster)


def all_owned_by_another(cluster):
    return cluster.metric("aggregate-2", "beamline_partitions_owned") == PARTITIONS


def test_everything_is_stopped_under_load_and_started_again(cluster):
    with Senders(cluster.root()) as senders:
        senders.more(100)
        senders.stopping.set()
        assert cluster.stop() == 0
    cluster.output.unlink()
    cluster.start()
    senders.check(cluster)
