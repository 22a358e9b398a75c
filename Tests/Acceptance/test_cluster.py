"""Several processes over one PostgreSQL: ingest, aggregate and query, started, killed, stopped and paused under load."""

import json
import os
import subprocess
import time

from beamline import BINARY, Cluster, FRESH, counts, node, run, segment, subsegment, trace_id, wait_for
from senders import START, Senders

# A debug build on a machine with other work needs more.
HAND_OVER_SECONDS = 1.0 if "release" in BINARY else 1.5


def seconds_until(condition, timeout=30, what="the condition"):
    began = time.monotonic()
    wait_for(condition, timeout, what)
    return time.monotonic() - began


def test_every_role_does_its_part(cluster):
    takers = [cluster.start("ingest"), cluster.start("ingest")]
    workers = [cluster.start("aggregate"), cluster.start("aggregate")]
    readers = [cluster.start("query"), cluster.start("query")]
    for process in takers + workers + readers:
        assert process.get("/healthz") == 200 and process.get("/readyz") == 200
    account = cluster.new_account(takers[0])
    spread = seconds_until(lambda: cluster.is_even(*workers), 5, "an even split")
    assert spread <= 5

    # What one ingest node has acknowledged can be read at once from every query node, though other processes folded it.
    for number in range(40):
        document = segment(name="shop", start=START + number, subsegments=[subsegment("db", START + number + 0.01, namespace="remote")])
        account.at(takers[number % 2]).put(document)
        if number % 8 == 0:
            for reader in readers:
                assert account.at(reader).traces(document["trace_id"]), "read your writes"
    graphs = [account.at(reader).graph(START, START + 60) for reader in readers]
    assert graphs[0] == graphs[1] and counts(node(graphs[0], "shop")) == (40, 0, 0, 0)
    assert cluster.verify(START, START + 60) == 160

    # Each role answers its own operations only.
    assert account.at(readers[0]).call("PutTraceSegments", {"TraceSegmentDocuments": []}).error == "UnknownOperationException"
    assert account.at(takers[0]).call("GetServiceGraph", {"StartTime": START, "EndTime": START + 60}).error == "UnknownOperationException"

    for worker in workers:
        values = worker.metrics()
        assert values["beamline_partitions_owned"] == 6 and values["beamline_workers_live"] == 2
        assert values['beamline_lease_moves_total{kind="claimed"}'] >= 6
    for process in takers + workers + readers:
        began = time.monotonic()
        assert process.stop() == 0, process.log_text()
        assert time.monotonic() - began <= 10


def test_page_tokens_are_good_at_every_query_node(cluster):
    taker, worker = cluster.start("ingest"), cluster.start("aggregate")
    first, second = cluster.start("query"), cluster.start("query")
    account = cluster.new_account(taker)
    ids = []
    for _ in range(5):
        documents = [segment(start=START + number % 60) for number in range(50)]
        ids += [document["trace_id"] for document in documents]
        account.put(*documents)
    request = {"StartTime": START, "EndTime": START + 61}
    found, at = [], [first, second]
    while True:
        page = account.at(at[0]).read("GetTraceSummaries", request, FRESH)
        found += [summary["Id"] for summary in page["TraceSummaries"]]
        if "NextToken" not in page:
            break
        request["NextToken"] = page["NextToken"]
        at.reverse()
    assert sorted(found) == sorted(ids)
    first.stop()
    first.start()
    request = {"StartTime": START, "EndTime": START + 61}
    token = account.at(second).read("GetTraceSummaries", request, FRESH)["NextToken"]
    assert account.at(first).read("GetTraceSummaries", {**request, "NextToken": token})["TraceSummaries"]


def test_workers_killed_stopped_and_paused_under_load(cluster):
    takers = [cluster.start("ingest"), cluster.start("ingest")]
    reader = cluster.start("query")
    stays, goes = cluster.start("aggregate", name="stays"), cluster.start("aggregate", name="goes")
    account = cluster.new_account(takers[0])
    wait_for(lambda: cluster.is_even(stays, goes), 10, "an even split")
    with Senders(account, account.at(takers[1])) as senders:
        senders.more(100)
        goes.kill()
        assert seconds_until(lambda: cluster.is_even(stays), 10, "the take-over after kill -9") <= 5
        senders.more(50)

        goes.start()
        assert seconds_until(lambda: cluster.is_even(stays, goes), 10, "the split after a join") <= 5
        senders.more(50)

        goes.terminate()
        hand_over = seconds_until(lambda: cluster.is_even(stays), 10, "the hand-over after SIGTERM")
        print(f"handed over {hand_over:.2f} s after SIGTERM")
        assert hand_over <= HAND_OVER_SECONDS
        assert goes.stop() == 0, goes.log_text()

        goes.start()
        wait_for(lambda: cluster.is_even(stays, goes), 10, "an even split")
        senders.more(50)
        goes.pause()
        assert seconds_until(lambda: cluster.is_even(stays), 10, "the take-over from a paused worker") <= 5
        senders.more(50)
        goes.resume()
        wait_for(lambda: cluster.is_even(stays, goes), 10, "its share again")
        senders.more(50)

        # An ingest node that dies loses nothing that it has acknowledged.
        takers[1].kill()
        senders.more(50)
    assert stays.process.poll() is None and goes.process.poll() is None
    senders.check(cluster, account.at(reader))


def test_status_and_doctor(cluster):
    done = cluster.administer("doctor", "--master-key", cluster.master_key, check=False)
    assert done.returncode == 1 and "FAIL  log" in done.stdout, done.stdout
    taker, worker, reader = cluster.start("ingest"), cluster.start("aggregate", name="worker"), cluster.start("query")
    account = cluster.new_account(taker)
    account.put(*[segment(start=START + number) for number in range(30)])
    account.at(reader).graph(START, START + 60)
    wait_for(lambda: cluster.is_even(worker), 10, "all partitions owned")

    status = json.loads(cluster.administer("status", "--json").stdout)
    assert sorted(found["role"] for found in status["nodes"]) == ["aggregate", "ingest", "query"]
    assert all(found["live"] and found["heartbeat_age_seconds"] < 3 and found["version"] for found in status["nodes"])
    assert str(worker.metrics_port) in next(found["addresses"] for found in status["nodes"] if found["role"] == "aggregate")
    assert [found["owner"] for found in status["partitions"]] == ["worker"] * 12
    assert sum(found["position"] for found in status["partitions"]) == 30 == sum(found["end"] for found in status["partitions"])
    assert all(found["lag_records"] == 0 and found["epoch"] >= 1 for found in status["partitions"])
    text = cluster.administer("status").stdout
    assert "worker" in text and "complete to 20" in text and len(text.splitlines()) == 4 + 1 + 13 + 1 + 1

    done = cluster.administer("doctor", "--master-key", cluster.master_key)
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
    for subject in ("database", "clock", "connections", "schema", "master key", "log", "leases"):
        assert f"ok    {subject}: " in done.stdout, done.stdout

    # A worker that died: what waits shows, and who is gone.
    worker.kill()
    account.put(*[segment(start=START + number) for number in range(20)])
    wait_for(lambda: cluster.owners() == [None] * 12, 10, "expired leases")
    status = json.loads(cluster.administer("status", "--json").stdout)
    assert sum(found["lag_records"] for found in status["partitions"]) == 20 and max(found["lag_seconds"] for found in status["partitions"]) > 1
    assert "(gone)" in cluster.administer("status").stdout and "nobody" in cluster.administer("status").stdout

    other = cluster.folder / "other.key"
    other.write_bytes(os.urandom(32))
    other.chmod(0o600)
    done = cluster.administer("doctor", "--master-key", other, check=False)
    assert done.returncode == 1 and "FAIL  master key" in done.stdout, done.stdout
    done = run("doctor", "--database-url", "postgresql://beamline@127.0.0.1:1/nothing", check=False)
    assert done.returncode == 1 and "FAIL  database" in done.stdout and len(done.stdout.splitlines()) == 1, done.stdout


def test_partitions_are_added_while_everything_runs(database):
    cluster = Cluster(database, partitions=4).migrate()
    try:
        taker, reader = cluster.start("ingest"), cluster.start("query")
        workers = [cluster.start("aggregate"), cluster.start("aggregate")]
        account = cluster.new_account(taker)
        wait_for(lambda: cluster.is_even(*workers), 10, "an even split")
        with Senders(account) as senders:
            senders.more(100)
            cluster.partitions = 8
            workers.append(cluster.start("aggregate"))
            wait_for(lambda: cluster.is_even(*workers), 15, "eight partitions in even shares")
            senders.more(100)
            wait_for(lambda: all(cluster.ends()[4:]), 15, "documents in the new partitions")
        senders.check(cluster, account.at(reader))
    finally:
        cluster.remove()


def test_roles_say_what_they_need(database):
    cluster = Cluster(database)
    try:
        for role in ("ingest", "aggregate", "query"):
            done = subprocess.run([BINARY, role, "--metrics", "off"], capture_output=True, text=True, timeout=20)
            assert done.returncode != 0 and "--database-url" in done.stderr, done.stderr
        key = ["--master-key", str(cluster.master_key)]
        common = ["--database-url", cluster.url, "--metrics", "off"]
        # No tables yet, no key yet.
        done = run("aggregate", *common, check=False, timeout=20)
        assert done.returncode != 0 and "beamline migrate" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
        done = run("query", *common, *key, "--api", "127.0.0.1:0", check=False, timeout=20)
        assert done.returncode != 0 and "master key" in done.stderr, done.stderr
        cluster.migrate()
        assert cluster.master_key.stat().st_mode & 0o777 == 0o600
        before = cluster.master_key.read_bytes()
        cluster.migrate()
        assert cluster.master_key.read_bytes() == before
        for flags, word in (
            (["--partitions", "0"], "--partitions"), (["--retention-days", "x"], "--retention-days"), (["--node-name", ""], "--node-name"),
            (["--api", "127.0.0.1:1"], "--api"),
        ):
            done = run("aggregate", *common, *flags, check=False, timeout=20)
            assert done.returncode != 0 and word in done.stderr, done.stderr
        # Newer tables than the program knows.
        cluster.sql("INSERT INTO schema_version (component, version, name) VALUES ('store', 1000, 'from the future')")
        done = run("aggregate", *common, check=False, timeout=20)
        assert done.returncode != 0 and "newer beamline" in done.stderr, done.stderr
    finally:
        cluster.remove()


def test_a_node_that_cannot_reach_postgresql_is_not_ready():
    from beamline import Database

    database = Database().start()
    cluster = Cluster(database).migrate()
    try:
        processes = [cluster.start("ingest"), cluster.start("aggregate"), cluster.start("query")]
        database.kill()
        for process in processes:
            wait_for(lambda: process.get("/readyz") == 503, 15, f"{process.name} not ready")
            assert process.get("/healthz") == 200
        database.start()
        for process in processes:
            wait_for(process.is_ready, 15, f"{process.name} ready again")
        account = cluster.new_account(processes[0])
        document = segment()
        account.put(document)
        wait_for(lambda: account.at(processes[2]).traces(document["trace_id"]), 10, "the trace")
    finally:
        cluster.remove()
        database.remove()
