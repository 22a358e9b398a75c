"""Documents in any order, twice, late, in parts: the map and the summaries always equal what was sent."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from beamline import counts, edge, hex_id, node, segment, subsegment, trace_id, wait_for

START = 1_700_000_000


def test_a_segment_that_is_open_counts_only_when_it_completes(account):
    trace = trace_id(START)
    open_segment = {**segment(trace, "job", START, None), "in_progress": True}
    account.put(open_segment)
    (summary,) = account.summaries(START, START + 1)
    assert summary["IsPartial"] is True and "Duration" not in summary and "ResponseTime" not in summary
    assert account.graph(START, START + 10) == []
    (job,) = account.read("GetTraceGraph", {"TraceIds": [trace]})["Services"][:1]
    assert job["Name"] == "job" and counts(job) == (0, 0, 0, 0)
    assert account.traces(trace)[0]["Segments"][0]["in_progress"] is True

    done = {key: value for key, value in open_segment.items() if key != "in_progress"} | {"end_time": START + 2.5, "fault": True}
    account.put(done)
    (summary,) = account.summaries(START, START + 1)
    assert (summary["IsPartial"], summary["Duration"], summary["HasFault"], summary["Revision"]) == (False, 2.5, True, 2)
    assert counts(node(account.graph(START, START + 10), "job")) == (0, 0, 0, 1)
    assert account.graph(START, START + 2) == [], "the observation belongs to the second of its end"


def test_the_same_documents_again_change_nothing(account):
    documents = [segment(name="again", start=START + number, duration=0.5) for number in range(30)]
    account.put(*documents)
    before = account.graph(START, START + 100), account.summaries(START, START + 100)
    for _ in range(3):
        random.shuffle(documents)
        account.put(*documents)
    different = {**documents[0], "fault": True}  # the first completion wins
    account.put(different)
    assert (account.graph(START, START + 100), account.summaries(START, START + 100)) == before


def test_a_late_callee_takes_the_call_over_from_the_inferred_node(account):
    trace = trace_id(START)
    call = subsegment("orders.internal", START + 0.05, 0.3, namespace="remote")
    account.put(segment(trace, "web", START, 0.4, subsegments=[call]))
    services = account.graph(START, START + 10)
    assert counts(node(services, "orders.internal", "remote")) == (1, 0, 0, 0)

    account.put(segment(trace, "orders", START + 0.1, 0.2, parent_id=call["id"], error=True))
    services = account.graph(START, START + 10)
    assert node(services, "orders.internal", "remote") is None
    web, orders = node(services, "web"), node(services, "orders")
    assert counts(orders) == (0, 1, 0, 0)
    between = edge(services, web, orders)
    assert counts(between) == (1, 0, 0, 0) and between["Aliases"] == [{"Name": "orders.internal", "Names": ["orders.internal"], "Type": "remote"}]


def test_a_callee_before_its_caller_is_a_root_until_then(account):
    trace = trace_id(START)
    call = subsegment("orders", START + 0.05, 0.3, namespace="remote")
    account.put(segment(trace, "orders", START + 0.1, 0.2, parent_id=call["id"]))
    (summary,) = account.summaries(START, START + 1)
    assert summary["EntryPoint"]["Name"] == "orders" and summary["IsPartial"] is True
    assert node(account.graph(START, START + 10), "orders", "client") is not None
    account.put(segment(trace, "web", START, 0.4, subsegments=[call]))
    (summary,) = account.summaries(START, START + 1)
    assert summary["EntryPoint"]["Name"] == "web" and summary["IsPartial"] is False
    services = account.graph(START, START + 10)
    assert node(services, "orders", "client") is None and "Root" not in node(services, "orders")
    assert node(services, "web", "client") is not None


def test_independent_subsegments_wait_for_their_parent(account):
    trace = trace_id(START)
    root = segment(trace, "streamed", START, 2.0)
    middle = {**subsegment("work", START + 0.1, 1.0), "type": "subsegment", "trace_id": trace, "parent_id": root["id"]}
    leaf = {**subsegment("db.example", START + 0.2, 0.5, namespace="remote"), "type": "subsegment", "trace_id": trace, "parent_id": middle["id"]}
    account.put(leaf)
    assert account.traces(trace)[0]["Segments"] == [] and account.graph(START, START + 10) == []
    account.put(root)
    assert node(account.graph(START, START + 10), "db.example", "remote") is None
    account.put(middle)
    services = account.graph(START, START + 10)
    assert counts(edge(services, node(services, "streamed"), node(services, "db.example", "remote"))) == (1, 0, 0, 0)
    (found,) = account.traces(trace)
    assert found["Segments"][0]["subsegments"][0]["subsegments"][0]["id"] == leaf["id"]
    assert not {"type", "parent_id", "trace_id"} & set(found["Segments"][0]["subsegments"][0])


def test_three_clocks_find_a_trace(account):
    now = int(time.time())
    trace = trace_id()
    account.put(segment(trace, "old", START, 100.0))
    for kind, inside, outside in (
        ("TraceId", (START, START + 1), (START + 1, START + 200)), ("Service", (START + 100, START + 101), (START, START + 100)),
        ("Event", (now - 5, now + 60), (START, START + 200)),
    ):
        assert [found["Id"] for found in account.summaries(*inside, TimeRangeType=kind)] == [trace], kind
        assert account.summaries(*outside, TimeRangeType=kind) == [], kind


def test_a_trace_over_its_limit_says_so_and_keeps_the_rest_in_the_inbox(server, account):
    trace = trace_id(START)
    padding = "x" * 60_000
    documents = [segment(trace, "big", START + number, 0.5, metadata={"app": {"padding": padding}}) for number in range(12)]
    for document in documents:
        account.put(document)
    (found,) = account.traces(trace)
    assert found["LimitExceeded"] is True and 6 <= len(found["Segments"]) <= 8
    stored = {document["id"] for document in found["Segments"]}
    lines = server.administer("inbox", "--account", account.account).stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    assert {entry["code"] for entry in entries} == {"TraceSizeLimitExceeded"}
    refused = {json.loads(entry["document"])["id"] for entry in entries}
    assert stored | refused == {document["id"] for document in documents} and not stored & refused
    assert sum(counts(found)[0] for found in account.graph(START, START + 100) if found.get("Type") != "client") == len(stored)


def test_500_kilobytes_document_by_document_cost_no_more_than_ten_times_one_batch(server, account):
    """What is compared is the processor time of the server, less that of answering as many requests about as many traces."""

    def documents(count):
        trace = trace_id(START)
        root = segment(trace, "wide", START, 10.0)
        return trace, [root] + [
            {**subsegment("part", START + 1 + number / 1e4, 0.001), "type": "subsegment", "trace_id": trace, "parent_id": root["id"]}
            for number in range(count - 1)]

    def cost(calls):
        """Seconds of processor time until everything is committed."""
        before = server.cpu_seconds()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda call: account.put(*call), calls))
        account.graph(START + 1000, START + 1001)
        return server.cpu_seconds() - before

    together, whole = documents(2300)
    assert 450_000 < sum(len(json.dumps(document)) for document in whole) < 512_000
    batch = cost([whole])
    single, parts = documents(2300)
    one_by_one = cost([[part] for part in parts])
    requests = cost([[segment(name="alone", start=START)] for _ in range(2300)])
    for trace in (together, single):
        (found,) = account.traces(trace)
        assert len(found["Segments"][0]["subsegments"]) == 2299 and found["LimitExceeded"] is False
    assert one_by_one - requests <= 10 * max(batch, 0.05), (batch, one_by_one, requests)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_of_arrival_gives_the_same_map_and_verify_agrees(server, seed):
    random.seed(seed)
    documents = []
    for number in range(15):
        trace, start = trace_id(START), START + number / 3
        call = subsegment("b.internal", start + 0.1, 0.5, namespace="remote", **random.choice([{}, {"fault": True}, {"http": {"response": {"status": 429}}}]))
        table = subsegment("DynamoDB", start + 0.2, 0.1, namespace="aws", aws={"operation": "GetItem", "table_name": "t"})
        root = segment(trace, "a", start, 0.9, subsegments=[call])
        documents += [
            {**{key: value for key, value in root.items() if key != "end_time"}, "in_progress": True}, root,
            segment(trace, "b", start + 0.2, 0.3, parent_id=call["id"], subsegments=[table], origin="AWS::ECS::Container"),
            {**subsegment("S3", start + 0.6, 0.1, namespace="aws", aws={"operation": "GetObject", "bucket_name": "bucket"}),
             "type": "subsegment", "trace_id": trace, "parent_id": root["id"]},
        ]
    graphs = []
    for _ in range(3):
        account = server.new_account()
        shuffled = random.sample(documents, len(documents))
        shuffled += random.sample(documents, 20)
        for start in range(0, len(shuffled), 7):
            account.put(*shuffled[start:start + 7])
        graphs.append(account.graph(START, START + 60))
        assert server.verify(START, START + 60, account.account) > 15 * 6
    assert graphs[0] == graphs[1] == graphs[2], f"seed {seed}"


def test_links_to_a_trace_that_arrives_later_become_edges(account):
    producers = []
    for number in range(10):
        trace = trace_id(START)
        call = subsegment("SQS", START + 0.1, 0.1, namespace="aws", aws={"operation": "SendMessage", "queue_url": "https://q.example/1/jobs"})
        producers.append((segment(trace, "api", START, 0.5, subsegments=[call]), call))
    for document, call in producers:
        account.put(segment(name="worker", start=START + 5, duration=0.5, links=[{"trace_id": document["trace_id"], "id": call["id"]}]))
    for document, _ in producers:
        account.put(document)

    def linked():
        services = account.graph(START, START + 60)
        queue, worker = node(services, "https://q.example/1/jobs", "AWS::SQS::Queue"), node(services, "worker")
        found = edge(services, queue, worker) if queue else None
        return found if found and counts(found) == (10, 0, 0, 0) and node(services, "worker", "client") is None else None

    found = wait_for(linked, 5, "ten link observations")
    assert found["EdgeType"] == "link" and found["ReceivedEventAgeHistogram"] == [{"Value": 4.8, "Count": 10}]
