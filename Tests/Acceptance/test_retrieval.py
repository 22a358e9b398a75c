"""Trace retrieval, destination and indexing rules with boto3 and the AWS CLI."""

import hashlib
import json
import time

import pytest

from beamline import Server, counts, node, segment, subsegment, trace_id, wait_for


def start(caller, ids, first=0, last=4_000_000_000):
    return caller.read("StartTraceRetrieval", {"TraceIds": ids, "StartTime": first, "EndTime": last})["RetrievalToken"]


def finished(caller, token, **more):
    """The first answer of a job that is no longer under way."""
    def ask():
        answer = caller.read("ListRetrievedTraces", {"RetrievalToken": token, **more})
        return answer["RetrievalStatus"] not in ("SCHEDULED", "RUNNING") and answer
    return wait_for(ask, what="the retrieval to end")


def test_retrieval_with_boto3_in_both_formats(account):
    base = int(time.time()) - 100
    call = subsegment("db", base, namespace="remote", http={"response": {"status": 503}}, fault=True)
    document = segment(name="web", start=base, annotations={"tenant": "a"}, subsegments=[call])
    account.put(document)
    xray = account.boto3()
    missing = trace_id()
    token = xray.start_trace_retrieval(TraceIds=[document["trace_id"], missing], StartTime=base - 10, EndTime=base + 10)["RetrievalToken"]
    assert len(token) <= 1020
    answer = xray.list_retrieved_traces(RetrievalToken=token)
    assert answer["RetrievalStatus"] == "COMPLETE" and answer["TraceFormat"] == "XRAY" and "NextToken" not in answer
    (trace,) = answer["Traces"]
    (stored,) = xray.batch_get_traces(TraceIds=[document["trace_id"]])["Traces"]
    assert trace["Id"] == document["trace_id"] and trace["Duration"] == stored["Duration"]
    assert trace["Spans"] == stored["Segments"], "the documents of BatchGetTraces, inferred ones included"

    (trace,) = xray.list_retrieved_traces(RetrievalToken=token, TraceFormat="OTEL")["Traces"]
    spans = [json.loads(span["Document"]) for span in trace["Spans"]]
    assert {span["name"]: (span["kind"], span.get("parentSpanId"), span["status"]) for span in spans} == {
        "web": (2, None, {}), "db": (3, document["id"], {"code": 2})}
    assert spans[0]["traceId"] == document["trace_id"].replace("-", "")[1:]

    graph = xray.get_retrieved_traces_graph(RetrievalToken=token)
    assert graph["RetrievalStatus"] == "COMPLETE"
    assert {entry["Service"]["Name"] for entry in graph["Services"]} == {"web", "db"}
    assert all(entry["Links"] == [] for entry in graph["Services"])
    xray.cancel_trace_retrieval(RetrievalToken=token)
    assert xray.list_retrieved_traces(RetrievalToken=token)["RetrievalStatus"] == "COMPLETE", "cancelling a finished job does nothing"


def test_retrieval_with_the_cli(account):
    document = segment()
    account.put(document)
    token = account.cli("start-trace-retrieval", "--trace-ids", document["trace_id"], "--start-time", 0, "--end-time", int(time.time()))["RetrievalToken"]
    assert account.cli("list-retrieved-traces", "--retrieval-token", token)["Traces"][0]["Id"] == document["trace_id"]
    assert account.cli("get-retrieved-traces-graph", "--retrieval-token", token)["RetrievalStatus"] == "COMPLETE"
    account.cli("cancel-trace-retrieval", "--retrieval-token", token)


def test_results_come_in_pages_and_stay_what_they_were(account):
    base = int(time.time()) - 100
    wide = trace_id()
    root = segment(wide, "hub", base, 1.0)
    children = [segment(wide, f"s{number:03d}", base, 0.5, parent_id=root["id"]) for number in range(249)]
    others = [segment(start=base + number) for number in range(11)]
    account.put(root, *children, *others)
    ids = [others[0]["trace_id"], wide] + [other["trace_id"] for other in others[1:]]
    token = start(account, ids)
    request, pages = {"RetrievalToken": token}, []
    while True:
        page = account.read("ListRetrievedTraces", request)
        pages.append([(trace["Id"], len(trace["Spans"])) for trace in page["Traces"]])
        if len(pages) == 1:
            # What comes in later is not part of the job.
            account.put(segment(wide, "late", base, 0.5, parent_id=root["id"]))
            account.summaries(base, base + 1)
        if "NextToken" not in page:
            break
        request["NextToken"] = page["NextToken"]
    assert all(len(page) <= 5 and all(spans <= 100 for _, spans in page) for page in pages)
    assert pages[0] == [(ids[0], 1), (wide, 100)] and pages[1] == [(wide, 100)] and pages[2][0] == (wide, 50)
    assert list(dict.fromkeys(trace for page in pages for trace, _ in page)) == ids


def test_the_window_is_inclusive(account):
    document = segment(start=1_700_000_000, duration=2)
    account.put(document)
    for first, last, is_found in ((1_700_000_002, 1_700_000_009, True), (1_699_999_000, 1_700_000_000, True), (1_700_000_003, 1_700_000_009, False), (1, 1_699_999_999, False)):
        traces = finished(account, start(account, [document["trace_id"]], first, last))["Traces"]
        assert len(traces) == is_found


def test_links_among_retrieved_traces(account):
    base = int(time.time()) - 100
    call = subsegment("SQS", base, namespace="aws", aws={"operation": "SendMessage", "queue_url": "jobs"})
    producer = segment(name="api", start=base, subsegments=[call])
    consumer = segment(name="worker", start=base + 5, links=[{"trace_id": producer["trace_id"], "id": call["id"]}])
    account.put(producer, consumer)
    graph = account.read("GetRetrievedTracesGraph", {"RetrievalToken": start(account, [producer["trace_id"], consumer["trace_id"]])})
    links = {entry["Service"]["Name"]: entry["Links"] for entry in graph["Services"]}
    assert links == {"api": [], "worker": [], "jobs": [
        {"ReferenceType": "link", "SourceTraceId": producer["trace_id"], "DestinationTraceIds": [consumer["trace_id"]]}]}


def test_tokens_and_jobs_that_are_not_there(account, server):
    other = server.new_account()
    token = start(account, [trace_id()])
    for operation in ("ListRetrievedTraces", "GetRetrievedTracesGraph", "CancelTraceRetrieval"):
        for caller, bad in ((other, token), (account, "x"), (account, token[:-4] + "AAAA"), (account, "")):
            answer = caller.call(operation, {"RetrievalToken": bad})
            assert (answer.status, answer.error) == (404, "ResourceNotFoundException"), answer
            assert answer.json["ResourceName"] == bad
    with pytest.raises(other.boto3().exceptions.ResourceNotFoundException):
        other.boto3().list_retrieved_traces(RetrievalToken=token)
    assert account.call("ListRetrievedTraces", {"RetrievalToken": token, "NextToken": token}).message == f"Invalid NextToken {token}"


def test_at_most_ten_jobs_at_once(account):
    tokens = [start(account, [trace_id()]) for _ in range(10)]
    request = {"TraceIds": [trace_id()], "StartTime": 0, "EndTime": 1}
    answer = account.call("StartTraceRetrieval", request)
    assert (answer.status, answer.error) == (429, "ThrottledException")
    assert account.call("StartTraceRetrieval", {**request, "TraceIds": []}).status == 200, "an empty job is complete at once"
    account.read("CancelTraceRetrieval", {"RetrievalToken": tokens[0]})
    assert account.read("ListRetrievedTraces", {"RetrievalToken": tokens[0]}) == {
        "RetrievalStatus": "CANCELLED", "TraceFormat": "XRAY", "Traces": []}
    assert account.call("StartTraceRetrieval", request).status == 200
    assert finished(account, tokens[1])["Traces"] == []
    assert account.call("StartTraceRetrieval", request).status == 200


def test_a_job_survives_a_restart():
    server = Server().start()
    try:
        caller, document = server.root(), segment()
        caller.put(document)
        token = start(caller, [document["trace_id"]])
        server.stop()
        server.start()
        assert finished(caller, token)["Traces"][0]["Id"] == document["trace_id"]
    finally:
        server.remove()


def fraction(trace):
    digest = hashlib.sha256(b"xray-sampling-v1:" + trace[2:].replace("-", "").encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def test_destination_and_indexing_rule_with_boto3(account):
    xray = account.boto3()
    assert xray.get_trace_segment_destination()["Destination"] == "XRay"
    assert xray.get_trace_segment_destination()["Status"] == "ACTIVE"
    (rule,) = xray.get_indexing_rules()["IndexingRules"]
    assert rule["Name"] == "Default" and rule["Rule"]["Probabilistic"] == {
        "DesiredSamplingPercentage": 1.0, "ActualSamplingPercentage": 1.0}
    changed = xray.update_indexing_rule(Name="Default", Rule={"Probabilistic": {"DesiredSamplingPercentage": 12.5}})["IndexingRule"]
    assert changed["Rule"]["Probabilistic"]["DesiredSamplingPercentage"] == 12.5 and changed["ModifiedAt"] > rule["ModifiedAt"]
    assert xray.get_indexing_rules()["IndexingRules"] == [changed]
    with pytest.raises(xray.exceptions.ResourceNotFoundException):
        xray.update_indexing_rule(Name="Other", Rule={"Probabilistic": {"DesiredSamplingPercentage": 1}})
    with pytest.raises(xray.exceptions.InvalidRequestException):
        xray.update_indexing_rule(Name="Default", Rule={"Probabilistic": {"DesiredSamplingPercentage": 100.5}})
    assert account.refusal("UpdateTraceSegmentDestination", {})[1] == "Destination is required"
    assert xray.update_trace_segment_destination(Destination="XRay")["Status"] == "ACTIVE", "unchanged"
    assert xray.update_trace_segment_destination(Destination="CloudWatchLogs")["Status"] == "PENDING"
    assert xray.get_trace_segment_destination()["Destination"] == "CloudWatchLogs"
    wait_for(lambda: xray.get_trace_segment_destination()["Status"] == "ACTIVE", 10, "the change to be active")
    assert account.cli("get-indexing-rules")["IndexingRules"][0]["Name"] == "Default"
    assert account.cli("get-trace-segment-destination") == {"Destination": "CloudWatchLogs", "Status": "ACTIVE"}


def test_the_indexing_rule_decides_which_traces_have_a_summary(account):
    base = int(time.time()) - 300
    account.read("UpdateIndexingRule", {"Name": "Default", "Rule": {"Probabilistic": {"DesiredSamplingPercentage": 40}}})
    before = segment(next(trace for _ in iter(int, 1) if fraction(trace := trace_id()) >= 0.4), "web", base)
    account.put(before)
    account.summaries(base, base + 1)
    account.read("UpdateTraceSegmentDestination", {"Destination": "CloudWatchLogs"})
    account.read("CreateGroup", {"GroupName": "all"})
    made = [segment(name="web", start=base + 1 + number / 10) for number in range(100)]
    account.put(*made)
    kept = {document["trace_id"] for document in made if fraction(document["trace_id"]) < 0.4}
    assert 10 < len(kept) < 80
    assert {found["Id"] for found in account.summaries(base, base + 60)} == kept | {before["trace_id"]}
    assert counts(node(account.graph(base, base + 60), "web")) == (len(kept) + 1, 0, 0, 0)
    assert counts(node(account.graph(base, base + 60, GroupName="all"), "web")) == (len(kept), 0, 0, 0)
    left_out = next(document for document in made if document["trace_id"] not in kept)
    assert account.traces(left_out["trace_id"])[0]["Segments"][0]["id"] == left_out["id"], "readable by id"
    assert finished(account, start(account, [left_out["trace_id"]]))["Traces"][0]["Id"] == left_out["trace_id"]

    # A change of the rule applies to later traces: what was decided stays.
    account.read("UpdateTraceSegmentDestination", {"Destination": "XRay"})
    account.put(segment(left_out["trace_id"], "late", base + 1, parent_id=left_out["id"]))
    account.put(segment(before["trace_id"], "late", base + 1, parent_id=before["id"]))
    services = account.graph(base, base + 60)
    assert counts(node(services, "late")) == (1, 0, 0, 0)
    assert account.server.verify(base - 60, base + 120, account.account) > 0
