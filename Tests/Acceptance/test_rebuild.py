"""`beamline rebuild` with the real program: while documents come in, killed in every part, and after damage."""

import random
import signal
import subprocess
import threading
import time

import pytest

from beamline import BINARY, Server, segment, subsegment, trace_id, wait_for
from senders import Senders
from test_commands import find_database, psql_in


@pytest.fixture
def server():
    server = Server().start()
    yield server
    server.remove()


def family(start):
    """A trace of two services."""
    trace = trace_id(start)
    call = subsegment("stock", start, namespace="remote")
    return trace, [
        segment(trace, "shop", start, subsegments=[call]),
        segment(trace, "stock", start, 0.1, parent_id=call["id"]),
    ]


class Writer(threading.Thread):
    """Sends traces until told to stop; remembers the acknowledged ones."""

    def __init__(self, caller):
        super().__init__(daemon=True)
        self.caller, self.acknowledged, self.stopping, self.trouble = caller, [], threading.Event(), None

    def run(self):
        try:
            while not self.stopping.is_set():
                traces = [family(time.time() - 1) for _ in range(10)]
                self.caller.put(*[document for _, documents in traces for document in documents])
                self.acknowledged += [trace for trace, _ in traces]
        except Exception as error:  # shown by finish()
            self.trouble = error

    def finish(self):
        self.stopping.set()
        self.join(30)
        assert self.trouble is None, self.trouble
        return self.acknowledged


def check(server, caller, acknowledged, began):
    """Every acknowledged trace is there once, and the map equals the traces."""
    end = int(time.time()) + 2
    wait_for(lambda: len(caller.summaries(int(began) - 60, end)) >= len(acknowledged), 30, "all traces listed")
    assert len(caller.summaries(int(began) - 60, end)) == len(set(acknowledged)) == len(acknowledged)
    for trace in random.sample(acknowledged, min(20, len(acknowledged))):
        [found] = caller.traces(trace)
        reported = [document for document in found["Segments"] if not document.get("inferred")]
        assert sorted(document["name"] for document in reported) == ["shop", "stock"]
    graph = caller.graph(int(began) - 60, end)
    shop = [service for service in graph if service["Name"] == "shop" and service.get("Type") != "client"]
    assert sum(service["SummaryStatistics"]["TotalCount"] for service in shop) == len(acknowledged)
    assert server.verify(began - 60, end) > 0


# If this fails, a rebuild stops the service, or loses or doubles what came meanwhile.
def test_a_rebuild_while_documents_come_in(server):
    began = time.time()
    caller = server.root()
    writer = Writer(caller)
    writer.start()
    wait_for(lambda: len(writer.acknowledged) > 100, what="some traces")
    for _ in range(2):
        done = server.administer("rebuild")
        assert "exchanged: the new tables (identical) serve" in done.stdout, done.stdout
    check(server, caller, writer.finish(), began)


# If this fails, a rebuild that dies has to begin anew, or leaves something wrong behind.
def test_a_rebuild_killed_in_every_part_goes_on(server):
    began = time.time()
    caller = server.root()
    writer = Writer(caller)
    writer.start()
    wait_for(lambda: len(writer.acknowledged) > 300, what="some traces")
    command = [BINARY, "rebuild", "--data-dir", str(server.data_dir), "--from", str(int(time.time()))]
    killed = 0
    for delay in [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output, _ = process.communicate(timeout=delay)
            assert process.returncode == 0, output
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
    assert killed > 2
    done = server.run(*command[1:])
    assert "exchanged: the new tables (identical) serve" in done.stdout, done.stdout
    check(server, caller, writer.finish(), began)


# If this fails, damaged tables cannot be repaired without losing the data folder.
def test_damage_is_reported_and_repaired(server):
    began = time.time()
    caller = server.root()
    traces = [family(began - 1) for _ in range(50)]
    caller.put(*[document for _, documents in traces for document in documents])
    check(server, caller, [trace for trace, _ in traces], began)
    removed = psql_in(
        server, find_database(server), "DELETE FROM graph_blocks WHERE ctid = (SELECT ctid FROM graph_blocks LIMIT 1)")
    assert removed.returncode == 0, removed.stderr
    assert server.verify(began - 60, time.time() + 2, check=False).returncode == 1

    refused = server.administer("rebuild", check=False)
    assert refused.returncode == 1
    assert "graph minutes" in refused.stdout and "not exchanged: the old tables serve" in refused.stdout
    accepted = server.administer("rebuild", "--accept-differences")
    assert "0 records replayed" in accepted.stdout
    assert "exchanged: the new tables (different, as accepted) serve" in accepted.stdout
    check(server, caller, [trace for trace, _ in traces], began)


# If this fails, a mistyped time or folder is an unreadable error, or worse, does something.
def test_bad_arguments_are_one_sentence(server):
    for arguments, text in [
        (["--from", "yesterday"], "--from must be"),
        (["--retention-days", "0"], "--retention-days must be from 1"),
    ]:
        done = server.administer("rebuild", *arguments, check=False)
        assert done.returncode != 0 and text in done.stderr, done.stderr


# If this fails, aggregators on other machines go on with what the old tables held, or have to be restarted.
def test_the_roles_of_a_cluster_survive_the_exchange(cluster):
    takers = [cluster.start("ingest"), cluster.start("ingest")]
    workers = [cluster.start("aggregate"), cluster.start("aggregate")]
    reader = cluster.start("query")
    wait_for(lambda: cluster.is_even(*workers), what="an even split")
    account = cluster.new_account(takers[0])
    with Senders(*[account.at(taker) for taker in takers]) as senders:
        senders.more(200)
        for _ in range(2):
            done = cluster.administer("rebuild")
            assert "exchanged: the new tables (identical) serve" in done.stdout, done.stdout
            senders.more(50)
    assert all(process.process.poll() is None for process in takers + workers + [reader])
    senders.check(cluster, reader=account.at(reader))
    wait_for(lambda: cluster.is_even(*workers), what="an even split after the exchange")
