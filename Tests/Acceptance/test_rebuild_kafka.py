"""`beamline rebuild` of a cluster whose log is in Kafka: under load, killed at any moment, and when the topic no longer reaches back
to the beginning."""

import ctypes
import itertools
import signal
import subprocess
import time

import pytest

from beamline import BINARY, wait_for
from local_cluster import LocalCluster
from senders import START, Senders

PARTITIONS = 4
TOPIC = "beamline.segments"
IDENTICAL = "exchanged: the new tables (identical) serve"


@pytest.fixture
def cluster():
    cluster = LocalCluster("--partitions", PARTITIONS).start()
    yield cluster
    cluster.remove()


def kafka_flags(cluster):
    return ["--kafka-brokers", cluster.state["kafka_brokers"]]


def rebuild(cluster, *flags, check=True):
    return cluster.administer("rebuild", *kafka_flags(cluster), *flags, check=check)


def sql(cluster, text):
    done = subprocess.run(["psql", cluster.state["database_url"], "-X", "-A", "-t", "-c", text], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def positions(cluster):
    """How far each partition is folded."""
    return {int(partition): int(position) for partition, position in (
        row.split("|") for row in sql(cluster, "SELECT partition, position FROM log_positions WHERE partition >= 0"))}


def is_begun(cluster):
    """Whether a rebuild has left tables to go on with."""
    return sql(cluster, "SELECT to_regclass('public_rebuild.rebuild_state') IS NOT NULL") == ["t"]


def has_sessions(cluster):
    """Whether PostgreSQL still has a session of a rebuild; those of nodes bear the node's name."""
    return sql(cluster, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'beamline'") != ["0"]


def reads(caller):
    """What clients see of everything: summaries by trace, and the graph."""
    summaries = {found["Id"]: found for found in caller.summaries(START, START + 400)}
    return summaries, caller.graph(START, START + 400)


def remove_records(cluster, before):
    """Removes what lies before an offset of each partition, as the topic's retention does (DeleteRecords, by librdkafka)."""
    kafka = ctypes.CDLL("librdkafka.so.1")
    pointers = ["rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_topic_partition_list_new", "rd_kafka_topic_partition_list_add",
                "rd_kafka_DeleteRecords_new", "rd_kafka_queue_new", "rd_kafka_queue_poll", "rd_kafka_event_DeleteRecords_result",
                "rd_kafka_DeleteRecords_result_offsets"]
    for name in pointers:
        getattr(kafka, name).restype = ctypes.c_void_p

    class Item(ctypes.Structure):
        _fields_ = [
            ("topic", ctypes.c_char_p), ("partition", ctypes.c_int32), ("offset", ctypes.c_int64), ("metadata", ctypes.c_void_p),
            ("metadata_size", ctypes.c_size_t), ("opaque", ctypes.c_void_p), ("err", ctypes.c_int), ("private", ctypes.c_void_p)]

    class Items(ctypes.Structure):
        _fields_ = [("count", ctypes.c_int), ("size", ctypes.c_int), ("elements", ctypes.POINTER(Item))]

    pointer = ctypes.c_void_p
    configuration = pointer(kafka.rd_kafka_conf_new())
    assert kafka.rd_kafka_conf_set(configuration, b"bootstrap.servers", cluster.state["kafka_brokers"].encode(), None, 0) == 0
    client = pointer(kafka.rd_kafka_new(0, configuration, None, 0))
    offsets = pointer(kafka.rd_kafka_topic_partition_list_new(len(before)))
    for partition, offset in before.items():
        item = kafka.rd_kafka_topic_partition_list_add(offsets, TOPIC.encode(), partition)
        Item.from_address(item).offset = offset
    request = (pointer * 1)(kafka.rd_kafka_DeleteRecords_new(offsets))
    queue = pointer(kafka.rd_kafka_queue_new(client))
    kafka.rd_kafka_DeleteRecords(client, request, 1, None, queue)
    event = pointer(kafka.rd_kafka_queue_poll(queue, 10_000))
    assert event.value and kafka.rd_kafka_event_error(event) == 0
    result = pointer(kafka.rd_kafka_event_DeleteRecords_result(event))
    answers = Items.from_address(kafka.rd_kafka_DeleteRecords_result_offsets(result))
    assert answers.count == len(before)
    for answer in answers.elements[:answers.count]:
        assert answer.err == 0 and answer.offset == before[answer.partition], (answer.partition, answer.err, answer.offset)
    kafka.rd_kafka_event_destroy(event)
    kafka.rd_kafka_queue_destroy(queue)
    kafka.rd_kafka_DeleteRecords_destroy(pointer(request[0]))
    kafka.rd_kafka_topic_partition_list_destroy(offsets)
    kafka.rd_kafka_destroy(client)


def folded(cluster):
    wait_for(lambda: cluster.metric("aggregate", "beamline_lag_records") == 0, 30, "everything is folded")


# If this fails, a cluster with Kafka cannot be repaired while it serves.
def test_a_rebuild_from_kafka_while_senders_go_on(cluster):
    caller = cluster.root()
    with Senders(caller, threads=2, pause=0.1) as senders:
        senders.more(200)
        known = list(senders.acknowledged)
        before = reads(caller)[0]
        assert set(known) <= set(before)
        for _ in range(2):
            done = rebuild(cluster)
            assert IDENTICAL in done.stdout, done.stdout
            assert "stored documents" not in done.stdout, "the topic reaches back to the beginning"
            senders.more(50)
        after = reads(caller)[0]
        assert {trace: after.get(trace) for trace in known} == {trace: before[trace] for trace in known}
    senders.check(cluster)
    # Nothing comes in any more: everything that can be read is the same, to the last digit.
    before = reads(caller)
    done = rebuild(cluster)
    assert IDENTICAL in done.stdout, done.stdout
    assert reads(caller) == before
    assert not is_begun(cluster)


# If this fails, a rebuild that dies has to begin anew, or leaves something wrong behind.
def test_a_rebuild_from_kafka_is_killed_and_goes_on(cluster):
    caller = cluster.root()
    with Senders(caller, threads=2, pause=0.1) as senders:
        senders.more(300)
        began = time.monotonic()
        assert IDENTICAL in rebuild(cluster).stdout
        whole = time.monotonic() - began
        known = list(senders.acknowledged)
        before = reads(caller)[0]
        environment = {"BEAMLINE_DATABASE_URL": cluster.state["database_url"], "BEAMLINE_KAFKA_BROKERS": cluster.state["kafka_brokers"]}
        killed = continued = 0
        for part in itertools.islice(itertools.cycle([0.3, 0.4, 0.5, 0.6, 0.7, 0.8]), 30):
            had_tables = is_begun(cluster)
            process = subprocess.Popen([BINARY, "rebuild"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
            wait_for(lambda: is_begun(cluster) or process.poll() is not None, 30, "a rebuild is begun")
            try:
                output, _ = process.communicate(timeout=None if killed >= 5 and had_tables else part * whole / 2)
                assert process.returncode == 0 and IDENTICAL in output, output
                assert had_tables == ("went on with the rebuild begun at" in output), output
                continued += had_tables
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += 1
                # PostgreSQL finishes what it was doing for it, perhaps the exchange.
                wait_for(lambda: not has_sessions(cluster), 30, "the end of the killed rebuild's sessions")
            if killed >= 5 and continued and not is_begun(cluster):
                break
        assert killed >= 5 and continued > 0, (killed, continued, whole)
        senders.more(50)
        after = reads(caller)[0]
        assert {trace: after.get(trace) for trace in known} == {trace: before[trace] for trace in known}
    senders.check(cluster)


# If this fails, what is older than the topic's retention is lost by a rebuild.
@pytest.mark.parametrize("kept", ["half", "nothing"])
def test_the_topic_no_longer_reaches_back(cluster, kept):
    """Records are gone: the stored documents are the source of what they held."""
    caller = cluster.root()
    with Senders(caller, threads=2, pause=0.1) as senders:
        senders.more(200)
        known = list(senders.acknowledged)
        before = reads(caller)[0]
        reached = positions(cluster)
        assert len(reached) == PARTITIONS and all(position > 10 for position in reached.values())
        remove_records(cluster, {partition: position if kept == "nothing" else position // 2 for partition, position in reached.items()})
        done = rebuild(cluster)
        assert IDENTICAL in done.stdout, done.stdout
        assert " traces from stored documents" in done.stdout, done.stdout
        senders.more(50)
        after = reads(caller)[0]
        assert {trace: after.get(trace) for trace in known} == {trace: before[trace] for trace in known}
    senders.check(cluster)
    before = reads(caller)
    assert IDENTICAL in rebuild(cluster).stdout
    assert reads(caller) == before


# If this fails, a rebuild silently leaves out what retention took away while it was interrupted.
def test_the_topic_is_cut_while_a_rebuild_is_interrupted(cluster):
    caller = cluster.root()
    with Senders(caller, threads=2, pause=0.1) as senders:
        senders.more(200)
    folded(cluster)
    before = reads(caller)
    # A difference keeps the new tables, as a kill does: the next run only has to catch up.
    assert sql(cluster, "UPDATE traces SET event_second = event_second + 1 WHERE ctid = (SELECT ctid FROM traces LIMIT 1)") == ["UPDATE 1"]
    done = rebuild(cluster, check=False)
    assert done.returncode == 1 and is_begun(cluster), done.stdout
    with Senders(caller, threads=2, pause=0.1) as more:
        more.more(100)
    folded(cluster)
    remove_records(cluster, {partition: position - 1 for partition, position in positions(cluster).items()})
    refused = rebuild(cluster, "--accept-differences", check=False)
    assert refused.returncode != 0 and "begin again with --restart" in refused.stderr, refused.stdout + refused.stderr
    assert is_begun(cluster)
    done = rebuild(cluster, "--restart", "--accept-differences")
    assert "exchanged: the new tables (different, as accepted) serve" in done.stdout and " traces from stored documents" in done.stdout
    after = reads(caller)[0]
    assert {trace: after.get(trace) for trace in before[0]} == before[0]
    more.check(cluster)
