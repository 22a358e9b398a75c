"""Every operation through boto3 and the AWS CLI: shapes, pages, messages."""

import datetime
import itertools
import json
import re
import subprocess
import time

import botocore.exceptions
import pytest

from beamline import FRESH, Server, counts, edge, hex_id, node, segment, subsegment, trace_id


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def refused(call, *arguments, **named):
    """Error code and message of a boto3 call that must be refused."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(*arguments, **named)
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


def test_a_trace_goes_in_and_comes_out_with_boto3(account):
    xray = account.boto3()
    start = time.time() - 2
    call = subsegment("DynamoDB", start + 0.1, namespace="aws", aws={"operation": "GetItem", "table_name": "orders-table"})
    document = segment(
        name="checkout", start=start, duration=0.5, origin="AWS::ECS::Container", user="ann", subsegments=[call],
        http={"request": {"method": "GET", "url": "https://shop.example/cart", "client_ip": "192.0.2.7", "user_agent": "t"}, "response": {"status": 200}},
        annotations={"tenant": "t1", "size": 3, "paid": True}, metadata={"app": {"note": "é\u0000😀"}})
    assert xray.put_trace_segments(TraceSegmentDocuments=[json.dumps(document)])["UnprocessedTraceSegments"] == []

    # Read your writes: at once, without waiting.
    traces = xray.batch_get_traces(TraceIds=[document["trace_id"]])
    assert traces["UnprocessedTraceIds"] == []
    (trace,) = traces["Traces"]
    assert trace["Id"] == document["trace_id"] and trace["Duration"] == 0.5 and trace["LimitExceeded"] is False
    reported, inferred = [json.loads(found["Document"]) for found in trace["Segments"]]
    assert reported == {**document, "subsegments": [{**call, "aws": {**call["aws"], "resource_names": ["orders-table"]}}]}
    assert inferred["inferred"] is True and inferred["origin"] == "AWS::DynamoDB::Table" and inferred["parent_id"] == call["id"]

    summary = account.summaries(int(start), int(start) + 10)[0]
    assert summary["Id"] == document["trace_id"] and summary["Duration"] == 0.5 and summary["ResponseTime"] == 0.5
    assert summary["Http"] == {
        "HttpURL": "https://shop.example/cart", "HttpStatus": 200, "HttpMethod": "GET", "UserAgent": "t", "ClientIp": "192.0.2.7"}
    assert (summary["HasFault"], summary["HasError"], summary["HasThrottle"], summary["IsPartial"]) == (False,) * 4
    assert summary["EntryPoint"] == {"Name": "checkout", "Names": ["checkout"], "Type": "AWS::ECS::Container"}
    assert [user["UserName"] for user in summary["Users"]] == ["ann"]
    assert {key: [found["AnnotationValue"] for found in values] for key, values in summary["Annotations"].items()} == {
        "tenant": [{"StringValue": "t1"}], "size": [{"NumberValue": 3}], "paid": [{"BooleanValue": True}]}
    assert {(found["Name"], found.get("Type")) for found in summary["ServiceIds"]} == {
        ("checkout", "AWS::ECS::Container"), ("orders-table", "AWS::DynamoDB::Table"), ("checkout", "client")}
    assert summary["Revision"] == 1 and "MatchedEventTime" not in summary

    page = xray.get_trace_summaries(StartTime=now() - datetime.timedelta(minutes=1), EndTime=now() + datetime.timedelta(minutes=1))
    assert [found["Id"] for found in page["TraceSummaries"]] == [document["trace_id"]]
    assert page["TracesProcessedCount"] == 1 and "NextToken" not in page and page["ApproximateTime"].tzinfo is not None

    graph = xray.get_service_graph(StartTime=now() - datetime.timedelta(minutes=1), EndTime=now() + datetime.timedelta(minutes=1))
    assert graph["ContainsOldGroupVersions"] is False
    checkout = node(graph["Services"], "checkout", "AWS::ECS::Container")
    table = node(graph["Services"], "orders-table", "AWS::DynamoDB::Table")
    assert counts(checkout) == (1, 0, 0, 0) and counts(edge(graph["Services"], checkout, table)) == (1, 0, 0, 0)
    assert checkout["Root"] is True and "AccountId" not in checkout

    services = xray.get_trace_graph(TraceIds=[document["trace_id"]])["Services"]
    assert {found["Name"] for found in services} == {"checkout", "orders-table"}
    assert all("StartTime" not in found for found in services)


def test_paginators_walk_through_more_than_a_page_of_summaries_once_each(account):
    base = int(time.time()) - 3000
    documents = [segment(name="pages", start=base + index / 2, duration=0.01) for index in range(257)]
    account.put(*documents)
    account.summaries(base, base + 1)  # waits until the writes are visible
    xray = account.boto3()
    window = {"StartTime": base, "EndTime": base + 200}
    pages = list(xray.get_paginator("get_trace_summaries").paginate(**window))
    ids = [found["Id"] for page in pages for found in page["TraceSummaries"]]
    expected = [document["trace_id"] for document in sorted(documents, key=lambda document: -document["start_time"])]
    assert ids == expected, "every trace once, newest first"
    assert max(len(page["TraceSummaries"]) for page in pages) == 100
    assert sum(page["TracesProcessedCount"] for page in pages) == 257
    assert len(xray.get_paginator("get_trace_summaries").paginate(**window, PaginationConfig={"MaxItems": 30}).build_full_result()["TraceSummaries"]) == 30
    traces = list(xray.get_paginator("batch_get_traces").paginate(TraceIds=ids[:5]))
    assert [trace["Id"] for page in traces for trace in page["Traces"]] == ids[:5]
    assert [page["Services"] for page in xray.get_paginator("get_trace_graph").paginate(TraceIds=ids[:100])]
    graph = list(xray.get_paginator("get_service_graph").paginate(**window))
    (found,) = [service for page in graph for service in page["Services"] if service.get("Type") != "client"]
    assert counts(found) == (257, 0, 0, 0)


def test_a_service_graph_of_more_than_a_page_comes_whole_with_references_that_hold(account):
    start = int(time.time()) - 100
    trace = trace_id()
    calls = [subsegment(f"host-{number:04d}.example", start + 0.1, namespace="remote") for number in range(620)]
    root = segment(trace, "hub", start, 1.0)
    documents = [root]
    for number in range(0, len(calls), 40):
        documents.append({
            **subsegment("part", start, 0.9), "type": "subsegment", "trace_id": trace, "parent_id": root["id"],
            "subsegments": calls[number:number + 40]})
    account.put(*documents)
    account.graph(start, start + 10)
    pages = list(account.boto3().get_paginator("get_service_graph").paginate(StartTime=start, EndTime=start + 10))
    assert len(pages) == 2 and len(pages[0]["Services"]) == 500
    services = [service for page in pages for service in page["Services"]]
    assert [service["ReferenceId"] for service in services] == list(range(622))
    hub = node(services, "hub")
    assert {services[found["ReferenceId"]]["Name"] for found in hub["Edges"]} == {call["name"] for call in calls}


def test_the_aws_cli_drives_every_operation(account, tmp_path):
    start = time.time() - 5
    document = segment(name="from-cli", start=start)
    assert account.cli("put-trace-segments", "--trace-segment-documents", json.dumps(document)) == {"UnprocessedTraceSegments": []}
    traces = account.cli("batch-get-traces", "--trace-ids", document["trace_id"])
    assert json.loads(traces["Traces"][0]["Segments"][0]["Document"])["name"] == "from-cli"
    account.summaries(int(start), int(start) + 1)
    window = ["--start-time", int(start), "--end-time", int(start) + 5]
    assert [found["Id"] for found in account.cli("get-trace-summaries", *window)["TraceSummaries"]] == [document["trace_id"]]
    for kind in ("TraceId", "Event", "Service"):
        found = account.cli("get-trace-summaries", "--start-time", int(start) - 10, "--end-time", int(start) + 60, "--time-range-type", kind)
        assert [summary["Id"] for summary in found["TraceSummaries"]] == [document["trace_id"]], kind
        assert ("MatchedEventTime" in found["TraceSummaries"][0]) == (kind != "TraceId")
    assert {found["Name"] for found in account.cli("get-service-graph", *window)["Services"]} == {"from-cli"}
    assert {found["Name"] for found in account.cli("get-trace-graph", "--trace-ids", document["trace_id"])["Services"]} == {"from-cli"}
    assert account.cli("get-encryption-config")["EncryptionConfig"]["Type"] == "NONE"
    records = [{"Timestamp": int(start), "SegmentsReceivedCount": 1, "SegmentsSentCount": 1, "SegmentsSpilloverCount": 0, "SegmentsRejectedCount": 0,
                "BackendConnectionErrors": {"TimeoutCount": 0}}]
    account.cli("put-telemetry-records", "--telemetry-records", json.dumps(records), "--ec2-instance-id", "", "--hostname", "h")
    failed = account.cli("get-sampling-rules", check=False)
    assert failed.returncode != 0 and "UnknownOperationException" in failed.stderr


def test_every_read_says_how_complete_it_is_and_every_answer_has_a_request_id(account):
    document = segment()
    put = account.call("PutTraceSegments", {"TraceSegmentDocuments": [json.dumps(document)]})
    requests = {
        "BatchGetTraces": {"TraceIds": [document["trace_id"]]}, "GetTraceGraph": {"TraceIds": [document["trace_id"]]},
        "GetTraceSummaries": {"StartTime": 0, "EndTime": 10}, "GetServiceGraph": {"StartTime": 0, "EndTime": 10},
    }
    seen = {put.headers["x-amzn-requestid"]}
    for operation, request in requests.items():
        answer = account.call(operation, request)
        assert answer.status == 200, answer
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", answer.headers["x-beamline-complete-to"]), operation
        assert answer.headers["content-type"] == "application/json" and "date" in answer.headers
        seen.add(answer.headers["x-amzn-requestid"])
    assert len(seen) == 5


def test_reads_that_wait_contain_everything_acknowledged_before(account):
    start = int(time.time())
    for number in range(20):
        document = segment(name="fresh", start=start - 100 + number, duration=0.5)
        sent = time.time()
        account.put(document)
        assert account.traces(document["trace_id"])[0]["Segments"][0]["id"] == document["id"]
        answer = account.call("GetServiceGraph", {"StartTime": start - 100, "EndTime": start}, FRESH)
        assert counts(node(answer.json["Services"], "fresh")) == (number + 1, 0, 0, 0)
        reached = datetime.datetime.fromisoformat(answer.headers["x-beamline-complete-to"].replace("Z", "+00:00")).timestamp()
        assert reached >= sent - 0.01


@pytest.mark.parametrize("request_body, message", [
    ({"TraceIds": [trace_id() for _ in range(6)]}, "Exceeding maximum query size: 5"),
    ({"TraceIds": ["1-bad"]}, "Invalid trace id 1-bad: incorrect id format"),
    ({"TraceIds": ["1-58406520-a006649127e371903a2de979", "1-58406520-A006649127E371903A2DE979"]}, "Containing duplicate trace ids"),
    ({"TraceIds": [trace_id()], "NextToken": "x"}, "NextToken is currently not supported"),
])
def test_batch_get_traces_refuses_with_the_known_messages(account, request_body, message):
    answer = account.call("BatchGetTraces", request_body)
    assert (answer.status, answer.error, answer.message) == (400, "InvalidRequestException", message)


@pytest.mark.parametrize("operation, request_body, message", [
    ("GetTraceSummaries", {"StartTime": 100, "EndTime": 99}, "End time cannot be earlier than start time"),
    ("GetTraceSummaries", {"StartTime": 0, "EndTime": 86401}, "Time range cannot be longer than 24 hours"),
    ("GetTraceSummaries", {"StartTime": 0, "EndTime": 86400 * 365 * 30}, "Time range cannot be longer than 24 hours"),
    ("GetServiceGraph", {"StartTime": 100, "EndTime": 99}, "End time cannot be earlier than start time"),
    ("GetServiceGraph", {"StartTime": 0, "EndTime": 86401}, "Time range cannot be longer than 24 hours"),
    ("GetServiceGraph", {"StartTime": 0, "EndTime": 86400 * 365 * 30}, "Time range cannot be longer than 24 hours"),
    ("GetTraceGraph", {"TraceIds": []}, "Zero trace ids provided"),
    ("GetTraceGraph", {"TraceIds": ["nonsense"]}, "Invalid traceId. ErrorCode: InvalidId"),
    ("GetTraceGraph", {"TraceIds": ["1-58406520-a006649127e371903a2de979"]}, "Trace id not found"),
    ("PutTraceSegments", {"TraceSegmentDocuments": []}, "Segments can not be empty"),
    ("PutTraceSegments", {}, "Segments can not be empty"),
    ("PutTraceSegments", {"TraceSegmentDocuments": ["{}"] * 51}, "Too many segment documents"),
])
def test_ranges_and_lists_are_checked_with_the_known_messages(account, operation, request_body, message):
    answer = account.call(operation, request_body)
    assert (answer.status, answer.error, answer.message) == (400, "InvalidRequestException", message)
    assert answer.json["__type"] == "InvalidRequestException" and answer.json["Message"] == message


def test_sampling_strategies_and_filters_are_checked(account):
    window = {"StartTime": 0, "EndTime": 10}
    fixed = {"Sampling": True, "SamplingStrategy": {"Name": "FixedRate", "Value": 0.5}}
    assert account.call("GetTraceSummaries", {**window, **fixed}).message == (
        "Cannot use FixedRate with input time range type: TraceId. Please try using time range type: Event")
    for value in ({}, {"Value": 1.5}):
        answer = account.call("GetTraceSummaries", {**window, "TimeRangeType": "Event", "Sampling": True, "SamplingStrategy": {"Name": "FixedRate", **value}})
        assert answer.message == "sampling rate must be specified and its value must be between [0, 1]"
    answer = account.call("GetTraceSummaries", {**window, "FilterExpression": "fault > 1"})
    assert (answer.status, answer.error) == (400, "InvalidRequestException") and answer.message.startswith("Invalid filter expression: ")
    assert account.call("GetTraceSummaries", {**window, "FilterExpression": ""}).status == 200
    assert account.call("GetTraceSummaries", {**window, "TimeRangeType": "Trace"}).status == 400


def test_a_fixed_rate_keeps_the_same_part_on_every_retry(account):
    start = int(time.time())
    account.put(*[segment(name="sampled", start=start - 50) for _ in range(200)])
    window = {"StartTime": start - 5, "EndTime": start + 60, "TimeRangeType": "Event"}
    everything = {found["Id"] for found in account.summaries(window["StartTime"], window["EndTime"], TimeRangeType="Event")}
    fixed = {"Sampling": True, "SamplingStrategy": {"Name": "FixedRate", "Value": 0.3}}
    first, second = [
        {found["Id"] for found in account.summaries(window["StartTime"], window["EndTime"], TimeRangeType="Event", **fixed)} for _ in range(2)]
    assert len(everything) == 200 and first == second and first < everything and 25 <= len(first) <= 100


def test_operations_of_later_versions_answer_unknown_operation(account):
    xray = account.boto3()
    code, _ = refused(xray.get_sampling_rules)
    assert code == "UnknownOperationException"
    assert account.post("/NoSuchThing", b"{}").status == 404
    assert account.post("/tracesegments", b"{}").error == "UnknownOperationException"


def test_unsigned_and_wrongly_signed_calls_are_told_what_is_wrong(server, account):
    import requests

    unsigned = requests.post(server.endpoint + "/TraceSegments", json={"TraceSegmentDocuments": ["{}"]}, timeout=10)
    assert unsigned.status_code == 403 and unsigned.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
    wrong = type(account)(server, account.access_key, "x" * 40, account.account)
    answer = wrong.call("GetEncryptionConfig")
    assert answer.status == 403 and answer.error == "InvalidSignatureException"
    unknown = type(account)(server, "AKIAQQQQQQQQQQQQQQQQ", "x" * 40, account.account)
    assert unknown.call("GetEncryptionConfig").error == "UnrecognizedClientException"


def test_documents_are_judged_one_by_one_with_code_message_and_id(account):
    good = segment(name="good")
    bad = {**segment(), "trace_id": "2-bad"}
    nameless = {key: value for key, value in segment().items() if key != "name"}
    answer = account.boto3().put_trace_segments(TraceSegmentDocuments=[json.dumps(bad), json.dumps(good), json.dumps(nameless), "[]", "nonsense"])
    assert answer["UnprocessedTraceSegments"] == [
        {"Id": bad["id"], "ErrorCode": "InvalidTraceId", "Message": "Invalid segment. ErrorCode: InvalidTraceId"},
        {"Id": nameless["id"], "ErrorCode": "MissingName", "Message": "Invalid segment. ErrorCode: MissingName"},
        {"ErrorCode": "ParseError", "Message": "Invalid entity. ErrorCode: ParseError"},
        {"ErrorCode": "ParseError", "Message": "Invalid entity. ErrorCode: ParseError"},
    ]
    assert len(account.traces(good["trace_id"])) == 1


def test_an_unknown_trace_is_in_neither_list(account):
    answer = account.read("BatchGetTraces", {"TraceIds": [trace_id()]})
    assert answer == {"Traces": [], "UnprocessedTraceIds": []}


def test_numbers_and_metadata_come_back_exactly_as_sent(account):
    trace = trace_id()
    text = (
        f'{{"trace_id":"{trace}","id":"{hex_id()}","name":"exact","start_time":1700000000.5,"end_time":1.7000000006E9,'
        '"metadata":{"n":{"big":12345678901234567890123,"small":1e-300,"over":1e999,"minus":-0.0,"keys":{"b":1,"a":2},"s":"\\u0000\\u00e9\\ud83d\\ude00/"}}}')
    account.put(text)
    raw = account.read("BatchGetTraces", {"TraceIds": [trace]})["Traces"][0]["Segments"][0]["Document"]
    for part in ('"big":12345678901234567890123', '"small":1e-300', '"over":1e999', '"minus":-0.0', '"keys":{"b":1,"a":2}'):
        assert part in raw
    assert json.loads(raw)["metadata"]["n"]["s"] == "\u0000é😀/"


# If this fails, one reader takes the whole server, or an operator cannot say how much a client may send.
def test_rates_of_each_class_and_the_size_of_a_request_are_settings():
    server = Server(flags=["--query-rate", "3", "--control-rate", "1", "--sampling-rate", "2", "--max-body-bytes", str(4 << 20), "--log-level", "debug"]).start()
    try:
        caller = server.new_account()
        record = {"TelemetryRecords": [{"Timestamp": time.time()}]}
        name = itertools.count()
        for call, burst in [
            (lambda: caller.call("GetGroups"), 6),
            (lambda: caller.call("CreateGroup", {"GroupName": f"g{next(name)}"}), 4),
            (lambda: caller.call("PutTelemetryRecords", record), 4),
        ]:
            answers = []
            while not answers or answers[-1].status == 200:
                assert len(answers) < 500
                answers.append(call())
            assert len(answers) > burst and answers[-1].status == 429 and answers[-1].error == "ThrottledException", answers[-1]
            assert answers[-1].headers["retry-after"] == "1"
        assert server.new_account().call("GetGroups").status == 200, "each account has its own"
        caller.put(segment())
        body = b"{" + b" " * ((4 << 20) - 2) + b"}"
        assert caller.post("/TraceSegments", body).message == "Segments can not be empty"
        assert caller.post("/TraceSegments", body + b" ").error == "RequestEntityTooLargeException"
        caller.post("/Groups", {}, {"User-Agent": "xray-agent/xray-daemon/3.3.7 exec-env/UNKNOWN OS/linux-amd64"})
        assert "user-agent=xray-agent/xray-daemon/3.3.7" in server.output.read_text()
    finally:
        server.remove()
