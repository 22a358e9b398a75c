"""Accounts are walls; keys and roles decide; the commands that administer them."""

import itertools
import json
import os
import stat
import time

import pytest

from beamline import PATHS, Caller, read_credentials, segment, trace_id, wait_for


@pytest.fixture(scope="module")
def two(server):
    """Two accounts; the first has a trace at a known time."""
    first, second = server.new_account(), server.new_account()
    document = segment(name="secret", start=1_700_000_000)
    first.put(document)
    first.summaries(1_700_000_000, 1_700_000_001)
    for name in ("doomed-1", "doomed-2", "doomed-3", "doomed-4", "doomed-5", "doomed-6"):
        first.read("CreateGroup", {"GroupName": name})
    token = first.read("StartTraceRetrieval", {"TraceIds": [document["trace_id"]], "StartTime": 0, "EndTime": 1})["RetrievalToken"]
    document = {**document, "token": token, "arn": f"arn:aws:xray:us-east-1:{first.account}:group/Default"}
    return first, second, document


numbers, doomed = itertools.count(1), itertools.count(1)


REQUESTS = {
    "PutTraceSegments": lambda document: {"TraceSegmentDocuments": [json.dumps(segment())]},
    "PutTelemetryRecords": lambda document: {"TelemetryRecords": [{"Timestamp": 1}]},
    "BatchGetTraces": lambda document: {"TraceIds": [document["trace_id"]]},
    "GetTraceSummaries": lambda document: {"StartTime": 1_700_000_000, "EndTime": 1_700_000_010},
    "GetServiceGraph": lambda document: {"StartTime": 1_700_000_000, "EndTime": 1_700_000_010},
    "GetTraceGraph": lambda document: {"TraceIds": [document["trace_id"]]},
    "GetEncryptionConfig": lambda document: {},
    "GetTimeSeriesServiceStatistics": lambda document: {"StartTime": 1_700_000_000, "EndTime": 1_700_000_010},
    "CreateGroup": lambda document: {"GroupName": f"made-{next(numbers)}"},
    "UpdateGroup": lambda document: {"GroupName": "Default", "InsightsConfiguration": {"InsightsEnabled": True}},
    "DeleteGroup": lambda document: {"GroupName": f"doomed-{next(doomed)}"},
    "GetGroup": lambda document: {"GroupName": "Default"},
    "GetGroups": lambda document: {},
    "TagResource": lambda document: {"ResourceARN": document["arn"], "Tags": [{"Key": "a", "Value": "b"}]},
    "UntagResource": lambda document: {"ResourceARN": document["arn"], "TagKeys": ["a"]},
    "ListTagsForResource": lambda document: {"ResourceARN": document["arn"]},
    "GetTraceSegmentDestination": lambda document: {},
    "UpdateTraceSegmentDestination": lambda document: {"Destination": "XRay"},
    "GetIndexingRules": lambda document: {},
    "UpdateIndexingRule": lambda document: {"Name": "Default", "Rule": {"Probabilistic": {"DesiredSamplingPercentage": 1}}},
    "StartTraceRetrieval": lambda document: {"TraceIds": [], "StartTime": 0, "EndTime": 1},
    "ListRetrievedTraces": lambda document: {"RetrievalToken": document["token"]},
    "GetRetrievedTracesGraph": lambda document: {"RetrievalToken": document["token"]},
    "CancelTraceRetrieval": lambda document: {"RetrievalToken": document["token"]},
}


def test_every_operation_is_listed_here():
    assert set(REQUESTS) == set(PATHS)


@pytest.mark.parametrize("operation", sorted(REQUESTS))
def test_another_account_cannot_be_addressed(two, operation):
    first, second, document = two
    request = REQUESTS[operation](document)
    answer = second.post(f"/account/{first.account}{PATHS[operation]}", request)
    assert (answer.status, answer.error) == (403, "AccessDeniedException"), answer
    own = first.post(f"/account/{first.account}{PATHS[operation]}", request)
    assert own.status == 200, own
    missing = second.post(f"/account/999999999999{PATHS[operation]}", request)
    assert (missing.status, missing.error) == (403, "AccessDeniedException")


def test_another_accounts_traces_are_not_there(two):
    first, second, document = two
    assert second.traces(document["trace_id"]) == []
    assert second.summaries(1_700_000_000, 1_700_000_010) == [] and second.graph(1_700_000_000, 1_700_000_010) == []
    assert second.call("GetTraceGraph", {"TraceIds": [document["trace_id"]]}).message == "Trace id not found"
    assert len(first.summaries(1_700_000_000, 1_700_000_010)) == 1


def test_the_same_trace_id_in_two_accounts_is_two_traces(server):
    first, second = server.new_account(), server.new_account()
    trace = trace_id()
    document = segment(trace, "mine", 1_700_000_000)
    first.put(document)
    second.put({**document, "name": "theirs"})
    assert first.traces(trace)[0]["Segments"][0]["name"] == "mine"
    assert second.traces(trace)[0]["Segments"][0]["name"] == "theirs"
    assert {found["Name"] for found in second.graph(1_700_000_000, 1_700_000_010)} == {"theirs"}


def test_a_page_token_of_another_account_or_request_is_refused(server):
    first, second = server.new_account(), server.new_account()
    for caller in (first, second):
        caller.put(*[segment(name="t", start=1_700_000_000 + number / 1000, duration=0.1) for number in range(150)])
        caller.summaries(1_700_000_000, 1_700_000_001)
    window = {"StartTime": 1_700_000_000, "EndTime": 1_700_000_010}
    token = first.read("GetTraceSummaries", window)["NextToken"]
    assert len(token) <= 1024
    assert len(first.read("GetTraceSummaries", {**window, "NextToken": token})["TraceSummaries"]) == 50
    forged = token[:-2] + ("AA" if not token.endswith("AA") else "BB")
    for caller, request in (
        (second, {**window, "NextToken": token}), (first, {**window, "EndTime": 1_700_000_011, "NextToken": token}),
        (first, {**window, "NextToken": forged}), (first, {**window, "NextToken": token[:20]}), (first, {**window, "NextToken": "é\n"}),
    ):
        answer = caller.call("GetTraceSummaries", request)
        assert (answer.status, answer.error) == (400, "InvalidRequestException")
        assert answer.message == f"Invalid NextToken {request['NextToken']}"
    assert first.call("GetServiceGraph", {**window, "NextToken": token}).message == f"Invalid NextToken {token}"


READS = {
    "BatchGetTraces", "GetTraceSummaries", "GetServiceGraph", "GetTraceGraph", "GetTimeSeriesServiceStatistics", "GetGroup",
    "GetGroups", "ListTagsForResource"}


@pytest.mark.parametrize("role, allowed", [
    ("write", {"PutTraceSegments", "PutTelemetryRecords"}),
    ("read", READS),
    ("read-plus", READS | {
        "GetEncryptionConfig", "GetIndexingRules", "GetTraceSegmentDestination", "StartTraceRetrieval", "ListRetrievedTraces",
        "GetRetrievedTracesGraph", "CancelTraceRetrieval"}),
    ("admin", set(PATHS)),
])
def test_a_role_allows_its_operations_and_no_other(server, two, role, allowed):
    first, _, document = two
    key = server.new_key(first.account, role)
    for operation, request in REQUESTS.items():
        answer = key.call(operation, request(document))
        if operation in allowed:
            assert answer.status == 200, (operation, answer)
        else:
            assert (answer.status, answer.error) == (403, "AccessDeniedException"), (operation, answer)
            assert f"is not authorized to perform: xray:{operation}" in answer.message


def test_a_disabled_key_or_account_stops_working_within_thirty_seconds_and_comes_back(server):
    account, suspended = server.new_account(), server.new_account()
    key, removed = server.new_key(account.account, "write"), server.new_key(account.account, "read")
    probe = {"TelemetryRecords": [{"Timestamp": 1}]}
    assert key.call("PutTelemetryRecords", probe).status == 200
    assert removed.call("BatchGetTraces", {"TraceIds": [trace_id()]}).status == 200
    suspended.put(segment())

    server.administer("key", "disable", key.access_key)
    server.administer("key", "delete", removed.access_key)
    server.administer("account", "disable", suspended.account)
    wait_for(lambda: key.call("PutTelemetryRecords", probe).error == "UnrecognizedClientException", 30, "the disabled key to be refused")
    wait_for(lambda: removed.call("BatchGetTraces", {}).error == "UnrecognizedClientException", 30, "the deleted key to be refused")
    wait_for(lambda: suspended.call("GetEncryptionConfig").error == "AccessDeniedException", 30, "the suspended account to be refused")
    account.put(segment())
    listed = server.administer("key", "list", "--account", account.account).stdout
    assert f"{key.access_key}  {account.account}  write  disabled" in listed and account.access_key in listed and removed.access_key not in listed
    assert f"{suspended.account}  suspended" in server.administer("account", "list").stdout

    server.administer("key", "enable", key.access_key)
    server.administer("account", "enable", suspended.account)
    wait_for(lambda: key.call("PutTelemetryRecords", probe).status == 200, 30, "the enabled key to work")
    wait_for(lambda: suspended.call("GetEncryptionConfig").status == 200, 30, "the account to be back")


def test_credential_files_are_private_and_secrets_are_not_listed(server):
    account = server.new_account()
    for file in (account.credentials_file, server.data_dir / "credentials", server.data_dir / "master.key"):
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600, file
    assert account.secret not in server.administer("key", "list").stdout
    shown = server.administer("key", "create", account.account, "--role", "read").stdout
    assert "aws_access_key_id" in shown and "aws_secret_access_key" in shown


def test_mistakes_in_administration_end_with_one_sentence(server):
    for arguments in (
        ["account", "create", "12345"], ["account", "create", "123456789012"], ["key", "create", "999999999998"],
        ["key", "disable", "AKIAQQQQQQQQQQQQQQQQ"], ["account", "delete", "999999999998"],
    ):
        done = server.administer(*arguments, check=False)
        assert done.returncode != 0 and done.stderr.strip() and "Fatal" not in done.stderr, (arguments, done)
