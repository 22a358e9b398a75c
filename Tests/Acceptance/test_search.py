"""GetTraceSummaries with a filter: the sample traces and worked examples of the specification, asked through the real API,
by every clock, page by page, with boto3 and the AWS CLI."""

import json
import random
import time

import pytest

from beamline import FRESH, hex_id, segment, subsegment, trace_id, wait_for

START = 1_700_000_000
FAULT = {"fault": True}


def request(method, url, status=None, **more):
    http = {"request": {"method": method, "url": url, **more}}
    if status:
        http["response"] = {"status": status}
    return {"http": http}


def exception(kind, message):
    return {"cause": {"exceptions": [{"id": hex_id(), "type": kind, "message": message}]}}


def dynamodb(start, duration, operation, status, **more):
    return subsegment(
        "DynamoDB", start, duration, namespace="aws", aws={"operation": operation, "table_name": "orders-table"},
        http={"response": {"status": status}}, **more)


def sample_traces(base=START):
    """T1–T8 of filter-expressions.md §10, as documents by name of the trace."""
    traces = {}

    def orders(trace, number, call, start, duration, method, status, calls=(), **more):
        return segment(
            trace, "orders", base + number + start, duration, parent_id=call["id"], origin="AWS::ECS::Container",
            subsegments=list(calls), **{**request(method, "http://orders.internal/report", status), **more})

    def web(trace, number, duration, *, calls=(), **more):
        return segment(trace, "web", base + number, duration, origin="AWS::EC2::Instance", subsegments=list(calls), **more)

    def remote(number, name, start, duration, method, status, **more):
        return subsegment(
            name, base + number + start, duration, namespace="remote", **{**request(method, f"http://{name}/", status), **more})

    shop = "http://shop.example.com"
    trace = trace_id(base)
    call = remote(1, "orders", 0.05, 0.3, "GET", 200)
    traces["T1"] = [
        web(trace, 1, 0.4, calls=[call], user="alice", annotations={"tenant": "acme", "vip": True, "age": 31},
            aws={"ec2": {"instance_id": "i-01", "availability_zone": "us-west-2a"}},
            **request("GET", shop + "/api/orders/17", 200, user_agent="curl/8.0", client_ip="198.51.100.7")),
        orders(trace, 1, call, 0.1, 0.2, "GET", 200, [dynamodb(base + 1.12, 0.08, "GetItem", 200)]),
    ]
    trace = trace_id(base)
    traces["T2"] = [web(
        trace, 2, 3.0, user="bob", annotations={"tenant": "globex"}, **request("GET", shop + "/api/v2/cart", 200),
        calls=[remote(2, "pay.example.com", 0.2, 2.4, "POST", 503, **FAULT, **exception("HttpError", "upstream 503"))])]
    traces["T3"] = [web(trace_id(base), 3, 0.05, error=True, annotations={"age": 25}, **request("GET", shop + "/missing", 404))]
    traces["T4"] = [web(
        trace_id(base), 4, 0.02, error=True, throttle=True, user="alice", annotations={"tenant": "acme"},
        **request("POST", shop + "/api/orders", 429))]
    trace = trace_id(base)
    call = remote(5, "orders", 0.1, 5.3, "POST", 500, **FAULT)
    traces["T5"] = [
        web(trace, 5, 5.5, calls=[call], user="carol", **FAULT, **request("POST", shop + "/api/orders", 500)),
        orders(trace, 5, call, 0.2, 5.1, "POST", 500, [
            dynamodb(base + 5.3, 4.9, "PutItem", 500, **FAULT, **exception("InternalServerError", "storage failure"))], **FAULT),
    ]
    traces["T6"] = [{**web(trace_id(base), 6, None, user="dave", **request("GET", shop + "/export")), "in_progress": True}]
    trace = trace_id(base)
    call = remote(7, "orders", 0.2, 0.08, "POST", 202)
    traces["T7"] = [
        web(trace, 7, 0.3, calls=[call], **request("POST", shop + "/api/report", 202)),
        orders(trace, 7, call, 0.25, 6.75, "POST", 202, annotations={"step": "render", "aws.local.operation": "POST /report"}),
    ]
    trace = trace_id(base)
    service = segment(
        trace, "thumb", base + 8, 1.2, origin="AWS::Lambda", http={"response": {"status": 200}},
        resource_arn="arn:aws:lambda:us-west-2:111122223333:function:thumb")
    traces["T8"] = [service, segment(
        trace, "thumb", base + 8.3, 0.8, parent_id=service["id"], origin="AWS::Lambda::Function", error=True,
        aws={"account_id": "444455556666"}, subsegments=[subsegment(
            "S3", base + 8.4, 0.5, namespace="aws", error=True, aws={"operation": "GetObject", "bucket_name": "images"},
            http={"response": {"status": 403}}, **exception("AccessDenied", "Access Denied"))])]
    return traces


ALL = "T1 T2 T3 T4 T5 T6 T7 T8"

# filter-expressions.md §11, by number of the row.
EXAMPLES = [
    (1, "", ALL), (2, "ok", "T1 T2 T6 T7 T8"), (3, "!ok", "T3 T4 T5"), (3, "ok = false", "T3 T4 T5"), (4, "error", "T3"),
    (5, "throttle", "T4"), (6, "fault OR error", "T3 T5"), (7, 'error OR fault AND http.method = "GET"', "T3"),
    (8, "partial", "T6"), (9, "inferred", "T1 T2 T5 T8"), (10, "http.status != 200", "T3 T4 T5 T7"),
    (11, "http.status >= 400 AND http.status < 500", "T3 T4"), (12, "!http.status", "T6"), (13, "responsetime > 5", "T5"),
    (14, "duration >= 5 AND duration <= 8", "T5 T7"), (15, "responseTime <= 0.05", "T3 T4"),
    (16, "ok !partial duration < 3", "T1 T8"), (17, "ok AND responsetime < 1 OR fault", "T1 T5 T7"),
    (18, "ok AND (responsetime < 1 OR fault)", "T1 T7"), (19, 'http.url CONTAINS "/api/"', "T1 T2 T4 T5 T7"),
    (20, 'http.url BEGINSWITH "http://shop.example.com/api/" AND http.url CONTAINS "/v2/"', "T2"),
    (21, 'http.url ENDSWITH "/orders"', "T4 T5"), (22, 'http.method != "POST"', "T1 T2 T3 T6"),
    (23, '!(http.method = "POST")', "T1 T2 T3 T6 T8"), (24, "http.clientip", "T1"), (25, 'user CONTAINS ""', "T1 T2 T4 T5 T6"),
    (26, "!user", "T3 T7 T8"), (27, 'user != "alice"', "T2 T5 T6"),
    (28, 'instance.id = "i-01" OR availabilityzone = "us-west-2b"', "T1"), (29, 'resource.arn ENDSWITH ":function:thumb"', "T8"),
    (30, 'annotation.tenant = "acme"', "T1 T4"), (31, "annotation.age", "T1 T3"), (32, "!annotation.age", "T2 T4 T5 T6 T7 T8"),
    (33, "annotation.age > 29", "T1"), (34, 'annotation.age = "31"', ""), (34, 'annotation[tenant] = "ACME"', ""),
    (34, "annotation.vip = false", ""), (35, "annotation.vip", "T1"),
    (36, 'annotation[aws.local.operation] = "POST /report"', "T7"), (37, 'service("orders")', "T1 T5 T7"),
    (38, '!service("orders") AND ok', "T2 T6 T8"), (39, 'service("orders") { fault }', "T5"),
    (40, 'service("orders") { !fault }', "T1 T7"), (41, "service() { fault }", "T2 T5"),
    (42, 'service("orders") { responsetime > 1 }', "T5 T7"),
    (43, 'service("orders") { fault = true OR responsetime > 2.5 } AND http.method = "POST"', "T5 T7"),
    (44, 'service("orders-table") { ok }', "T1"), (45, 'service("DynamoDB")', ""),
    (46, 'service(id(type: "AWS::DynamoDB::Table")) { fault }', "T5"), (47, 'service("thumb") { error }', "T8"),
    (48, 'service(id(name: "thumb", type: "AWS::Lambda")) { error }', ""),
    (49, 'service(id(name: "thumb", type: "AWS::Lambda::Function")) { error }', "T8"),
    (50, 'service(id(account.id: "444455556666"))', "T8"), (51, 'service("web") { root = true AND fault = true }', "T5"),
    (52, 'service("orders") { root }', ""), (53, "service() { inferred AND error }", "T8"),
    (54, 'service("orders") { annotation.step = "render" }', "T7"), (55, 'service(id(type: "client"))', ALL),
    (56, 'edge("web", "orders")', "T1 T5 T7"), (57, 'edge("orders", "web")', ""),
    (58, 'edge("web", "orders") { responsetime > 0.29 }', "T1 T5"),
    (59, 'edge("web", "pay.example.com") { http.status = 503 }', "T2"), (60, 'edge(id(type: "client"), "web") { throttle }', "T4"),
    (61, 'edge("web","orders") { destination.annotation.step = "render" }', "T7"),
    (63, '(service(id(name:"web"))) AND (Annotation[tenant] = "globex")', "T2"),
    (64, 'rootcause.fault.service { name = "orders" }', "T5"),
    (65, 'rootcause.fault.service { last and type = "AWS::DynamoDB::Table" }', "T5"),
    (66, 'rootcause.fault.service { inferred and type = "remote" }', "T2"),
    (67, 'rootcause.fault.exception { message = "storage failure" }', "T5"),
    (68, 'rootcause.fault.entity { remote and name = "DynamoDB" }', "T5"),
    (69, 'rootcause.error.exception { last and name = "AccessDenied" }', "T8"),
    (70, "rootcause.responsetime.entity { remote and coverage > 0.9 }", "T5"),
    (71, 'rootcause.responsetime.service { first and type = "AWS::Lambda" }', "T8"),
    (72, 'rootcause.json = #[{"Services":[{"Name":"web"},{"Name":"orders","EntityPath":[{"Name":"orders"},{"Name":"DynamoDB"}]}]}]', "T5"),
    (73, 'rootcause.json = #[{"ClientImpacting":false}]', "T2 T8"),
]


def stored(account, base=START):
    """Puts the sample traces in, documents of different traces mixed; id → name."""
    traces = sample_traces(base)
    documents = [document for trace in traces.values() for document in trace]
    random.Random(7).shuffle(documents)
    for start in range(0, len(documents), 4):
        account.put(*documents[start:start + 4])
    return {trace[0]["trace_id"]: name for name, trace in traces.items()}


@pytest.fixture(scope="module")
def samples(server):
    account = server.new_account()
    return account, stored(account)


@pytest.mark.parametrize("row, expression, expected", EXAMPLES, ids=[f"{row}: {text}" for row, text, _ in EXAMPLES])
def test_worked_example(samples, row, expression, expected):
    account, names = samples
    found = account.summaries(START, START + 60, FilterExpression=expression)
    # Newest root first; the traces start a second after one another.
    assert " ".join(names[summary["Id"]] for summary in found) == " ".join(reversed(expected.split()))


def test_by_receipt_and_by_end(account):
    before = int(time.time())
    names = stored(account, before - 3_600)
    window = {"StartTime": before - 1, "EndTime": int(time.time()) + 5, "TimeRangeType": "Event"}

    def found(expression, **more):
        request = {**window, "FilterExpression": expression, **more}
        return {names[summary["Id"]] for summary in account.summaries(request.pop("StartTime"), request.pop("EndTime"), **request)}

    assert found("fault OR error") == {"T3", "T5"}
    assert found('user = "alice"') == {"T1", "T4"}
    assert found('user = "alice"', StartTime=before - 7_200, EndTime=before - 100) == set()
    # T7's orders ended at 7 + 7.0 s, its web at 7.3 s: selectors only look at what ended in the window.
    base = before - 3_600
    ends = {"TimeRangeType": "Service", "StartTime": base + 13, "EndTime": base + 16}
    assert found('service("orders")', **ends) == {"T7"}
    assert found('service("web")', **ends) == set()
    assert found("fault", TimeRangeType="Service", StartTime=base, EndTime=base + 60) == {"T5"}


@pytest.mark.parametrize("expression", [
    "ok AND", 'http.status = "200"', "fault > 1", 'service("a"', 'edge("a")', "foo = 1", "root", "rootcause.json = #{}", '"web"'])
def test_a_wrong_expression_is_refused(account, expression):
    answer = account.call("GetTraceSummaries", {"StartTime": 1, "EndTime": 2, "FilterExpression": expression})
    assert (answer.status, answer.error) == (400, "InvalidRequestException")
    assert answer.message.startswith("Invalid filter expression: ") and " at position " in answer.message


def test_pages_of_a_filter_hold_every_match_once(server):
    account = server.new_account()
    base = int(time.time()) - 3_000
    documents = [
        segment(trace_id(base + number), f"s{number % 3}", base + number, 0.5, user=f"user-{number % 4}", annotations={"number": number})
        for number in range(1_200)
    ]
    account.put(*documents)
    wanted = [document["trace_id"] for number, document in enumerate(documents) if number % 4 == 1][::-1]
    request = {"StartTime": base, "EndTime": base + 1_500, "FilterExpression": 'user = "user-1"'}
    wait_for(lambda: len(account.read("GetTraceSummaries", request, FRESH)["TraceSummaries"]) == 100, what="the first page")

    pages = list(account.boto3().get_paginator("get_trace_summaries").paginate(**request))
    assert [summary["Id"] for page in pages for summary in page["TraceSummaries"]] == wanted
    assert [len(page["TraceSummaries"]) for page in pages] == [100, 100, 100]
    # The index lets through what matches and nothing else here: that is what was looked at.
    assert sum(page["TracesProcessedCount"] for page in pages) == 300

    # The CLI follows the pages by itself.
    found = account.cli(
        "get-trace-summaries", "--start-time", base, "--end-time", base + 1_500, "--filter-expression",
        'service("s0") AND annotation.number < 600')
    expected = [document["trace_id"] for number, document in enumerate(documents) if number % 3 == 0 and number < 600][::-1]
    assert [summary["Id"] for summary in found["TraceSummaries"]] == expected

    # A token belongs to its expression.
    token = account.read("GetTraceSummaries", request, FRESH)["NextToken"]
    answer = account.call("GetTraceSummaries", {**request, "FilterExpression": 'user = "user-2"', "NextToken": token})
    assert (answer.status, answer.error) == (400, "InvalidRequestException") and "NextToken" in answer.message


def test_a_change_of_a_trace_changes_what_finds_it(account):
    trace, base = trace_id(), int(time.time()) - 60
    opened = {**segment(trace, "web", base, None), "in_progress": True}
    account.put(opened)

    def finds(expression):
        return len(account.summaries(base - 10, base + 10, FilterExpression=expression))

    assert [finds(text) for text in ("partial", "!partial", "fault", "ok", 'service("late")')] == [1, 0, 0, 1, 0]
    account.put({**opened, "in_progress": False, "end_time": base + 2, "fault": True})
    assert [finds(text) for text in ("partial", "!partial", "fault", "ok", 'service("late")')] == [0, 1, 1, 0, 0]
    account.put(segment(trace, "late", base + 0.5, 0.1, parent_id=opened["id"]))
    assert [finds(text) for text in ('service("late")', 'edge("web", "late")', 'edge("late", "web")')] == [1, 1, 0]


def test_other_accounts_are_not_searched(server):
    mine, other = server.new_account(), server.new_account()
    base = int(time.time()) - 60
    mine.put(segment(None, "web", base, 1, user="alice"))
    assert len(mine.summaries(base - 10, base + 10, FilterExpression='user = "alice"')) == 1
    assert other.summaries(base - 10, base + 10, FilterExpression='user = "alice"') == []


def test_explain_says_what_a_filter_costs(server, samples):
    account, _ = samples
    account.summaries(START, START + 60)
    done = server.administer(
        "explain", 'service("orders") { fault }', "--from", START, "--to", START + 60, "--account", account.account)
    assert 'node "orders" with fault' in done.stdout and "looked at   1 traces" in done.stdout and "matches     1" in done.stdout
    wrong = server.administer("explain", "fault AND", "--from", START, "--account", account.account, check=False)
    assert wrong.returncode != 0 and "Invalid filter expression" in wrong.stderr
