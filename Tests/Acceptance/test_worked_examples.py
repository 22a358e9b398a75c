"""The worked examples of the specification, through the real API, compared exactly."""

import itertools
import json

from beamline import EXAMPLES, hex_id, segment, subsegment, trace_id


def example(name):
    return json.loads((EXAMPLES / f"{name}.json").read_text())


def test_service_graph_example_a(account):
    """service-graph.md §10: an instrumented callee, a leaf failure, a throttle."""
    data = example("service-graph-a")
    account.put(*data["documents"])
    assert account.graph(1_700_000_000, 1_700_000_200) == data["services"]


def test_service_graph_example_a_in_every_order_of_arrival(server):
    data = example("service-graph-a")
    for order in list(itertools.permutations(data["documents"]))[1::5]:
        account = server.new_account()
        for document in order:
            account.put(document)
            account.graph(1_700_000_000, 1_700_000_200)  # has been read, so later documents must correct it
        account.put(*data["documents"])
        assert account.graph(1_700_000_000, 1_700_000_200) == data["services"]


def test_service_graph_example_b(account):
    """service-graph.md §11: a queue link between two traces."""
    data = example("service-graph-b")
    account.put(*data["documents"])
    assert account.graph(1_700_000_000, 1_700_000_200) == data["services"]


def test_service_graph_example_b_when_the_consumer_is_first(account):
    data = example("service-graph-b")
    account.put(*data["documents"][1:])
    before = account.graph(1_700_000_000, 1_700_000_200)
    assert {found["Name"] for found in before} == {"worker"} and any(found.get("Type") == "client" for found in before)
    account.put(data["documents"][0])

    # A link is resolved by the consumer's own partition, after the producer's commit: visible within two seconds.
    from beamline import wait_for

    wait_for(lambda: account.graph(1_700_000_000, 1_700_000_200) == data["services"], 5, "the link edge")


def test_batch_get_traces_example(account):
    """traces.md §3: the documents returned, inferred segment included."""
    expected = example("batch-get-traces")
    (trace,) = expected["Traces"]
    reported, inferred = [json.loads(found["Document"]) for found in trace["Segments"]]
    assert inferred.pop("id") and inferred["inferred"] is True
    account.put(reported)
    answer = account.read("BatchGetTraces", {"TraceIds": [trace["Id"]]})
    assert answer["UnprocessedTraceIds"] == []
    (found,) = answer["Traces"]
    assert (found["Id"], found["Duration"], found["LimitExceeded"]) == (trace["Id"], trace["Duration"], trace["LimitExceeded"])
    documents = [json.loads(found["Document"]) for found in found["Segments"]]
    assert documents[0] == reported
    # The id is server-made: the first 16 hex digits of SHA-256 of "<trace id>:<subsegment id>:service".
    import hashlib

    made = hashlib.sha256(f"{trace['Id']}:{reported['subsegments'][0]['id']}:service".encode()).hexdigest()[:16]
    assert documents[1] == {**inferred, "id": made} and found["Segments"][1]["Id"] == made


def root_cause_documents(trace, start):
    call = subsegment(
        "DynamoDB", start + 0.3, 4.9, namespace="aws", fault=True, aws={"operation": "PutItem", "table_name": "orders-table"},
        cause={"exceptions": [{"id": hex_id(), "type": "InternalServerError", "message": "storage failure"}]})
    call_orders = subsegment("orders", start + 0.1, 5.3, namespace="remote", fault=True, http={"request": {"traced": True}, "response": {"status": 500}})
    web = segment(trace, "web", start, 5.5, origin="AWS::EC2::Instance", fault=True, http={"response": {"status": 500}}, subsegments=[call_orders])
    orders = segment(trace, "orders", start + 0.2, 5.1, origin="AWS::ECS::Container", parent_id=call_orders["id"], fault=True, subsegments=[call])
    return web, orders


def test_root_causes_example(account):
    """traces.md §6: the path of a fault and of a slow response."""
    expected = example("root-causes")
    start = 1_700_000_000
    trace = trace_id(start)
    web, orders = root_cause_documents(trace, start)
    account.put(orders)
    account.put(web)
    (summary,) = account.summaries(start, start + 1)
    assert summary["FaultRootCauses"] == expected["FaultRootCauses"]
    assert summary["ResponseTimeRootCauses"] == expected["ResponseTimeRootCauses"]
    assert summary["ErrorRootCauses"] == [] and summary["HasFault"] is True and summary["IsPartial"] is False
    (found,) = account.traces(trace)
    # `traced` is not returned by BatchGetTraces.
    assert found["Segments"][0]["subsegments"][0]["http"] == {"request": {}, "response": {"status": 500}} or found["Segments"][0]["subsegments"][0]["http"] == {"response": {"status": 500}}


def test_root_cause_of_a_handled_leaf_failure(account):
    """traces.md §6, second example: the root is not flagged, so the cause is the inferred service alone."""
    start = 1_700_000_000
    call = subsegment(
        "pay.example.com", start + 0.1, 0.1, namespace="remote", fault=True, http={"response": {"status": 503}},
        cause={"exceptions": [{"id": hex_id(), "type": "Timeout", "message": "no answer"}]})
    account.put(segment(trace_id(start), "web", start, 1.0, http={"response": {"status": 200}}, subsegments=[call]))
    (summary,) = account.summaries(start, start + 1)
    assert summary["FaultRootCauses"] == [{
        "ClientImpacting": False,
        "Services": [{
            "Name": "pay.example.com", "Names": ["pay.example.com"], "Type": "remote", "Inferred": True,
            "EntityPath": [{"Name": "pay.example.com", "Remote": False, "Exceptions": []}]}]}]
    assert summary["HasFault"] is False
