"""Groups: the five operations with boto3 and the AWS CLI, who becomes a member, and graphs of members only."""

import time

import botocore.exceptions
import pytest

from beamline import FRESH, Server, counts, node, segment, subsegment, trace_id, wait_for


def refused(call, **named):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**named)
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


def names(services):
    return {service["Name"] for service in services}


def test_the_life_of_a_group_with_boto3(account):
    xray = account.boto3()
    made = xray.create_group(
        GroupName="slow-checkout", FilterExpression='service("checkout") { responsetime > 2 }',
        InsightsConfiguration={"InsightsEnabled": True}, Tags=[{"Key": "team", "Value": "pay"}])["Group"]
    arn = made["GroupARN"]
    prefix, _, generated = arn.rpartition("/")
    assert prefix == f"arn:aws:xray:us-east-1:{account.account}:group/slow-checkout"
    assert len(generated) == 52 and set(generated) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
    assert made["FilterExpression"] == 'service("checkout") { responsetime > 2 }'
    assert made["InsightsConfiguration"] == {"InsightsEnabled": True, "NotificationsEnabled": False}
    assert xray.get_group(GroupName="slow-checkout")["Group"] == made == xray.get_group(GroupARN=arn)["Group"]
    assert xray.list_tags_for_resource(ResourceARN=arn)["Tags"] == [{"Key": "team", "Value": "pay"}]

    # Only what is given changes; the settings are merged member by member.
    changed = xray.update_group(GroupName="slow-checkout", InsightsConfiguration={"NotificationsEnabled": True})["Group"]
    assert changed == {**made, "InsightsConfiguration": {"InsightsEnabled": True, "NotificationsEnabled": True}}
    changed = xray.update_group(GroupARN=arn, FilterExpression="fault")["Group"]
    assert changed["FilterExpression"] == "fault" and changed["GroupARN"] == arn
    assert changed["InsightsConfiguration"]["NotificationsEnabled"] is True
    code, message = refused(xray.update_group, GroupName="slow-checkout", InsightsConfiguration={"InsightsEnabled": False})
    assert (code, message) == ("InvalidRequestException", "NotificationsEnabled requires InsightsEnabled")

    listed = [group for page in xray.get_paginator("get_groups").paginate() for group in page["Groups"]]
    assert [group["GroupName"] for group in listed] == ["Default", "slow-checkout"]
    assert listed[0] == {
        "GroupName": "Default", "GroupARN": f"arn:aws:xray:us-east-1:{account.account}:group/Default", "FilterExpression": "",
        "InsightsConfiguration": {"InsightsEnabled": False, "NotificationsEnabled": False}}

    xray.delete_group(GroupARN=arn)
    for call in (xray.get_group, xray.update_group, xray.delete_group):
        assert refused(call, GroupName="slow-checkout") == ("InvalidRequestException", "Group not found.")
        assert refused(call, GroupARN=arn) == ("InvalidRequestException", "Group not found.")
    again = xray.create_group(GroupName="slow-checkout")["Group"]
    assert again["GroupARN"] != arn and again["FilterExpression"] == ""
    assert xray.list_tags_for_resource(ResourceARN=again["GroupARN"])["Tags"] == [], "tags die with their group"


def test_groups_with_the_cli(account):
    made = account.cli("create-group", "--group-name", "errors", "--filter-expression", "error OR fault", "--tags", "Key=a,Value=b")["Group"]
    assert account.cli("get-group", "--group-name", "errors")["Group"] == made
    assert [group["GroupName"] for group in account.cli("get-groups")["Groups"]] == ["Default", "errors"]
    account.cli("update-group", "--group-name", "errors", "--filter-expression", "fault")
    assert account.cli("get-group", "--group-arn", made["GroupARN"])["Group"]["FilterExpression"] == "fault"
    account.cli("delete-group", "--group-name", "errors")
    done = account.cli("get-group", "--group-name", "errors", check=False)
    assert done.returncode != 0 and "Group not found." in done.stderr


def test_bad_groups_are_refused(account):
    def message(operation, **request):
        error, text = account.refusal(operation, request)
        assert error == "InvalidRequestException"
        return text

    account.read("CreateGroup", {"GroupName": "a" * 32, "FilterExpression": " " * 2000})
    account.read("CreateGroup", {"GroupName": "mine", "FilterExpression": "fault"})
    assert message("CreateGroup", GroupName="mine") == "Group mine already exists"
    assert message("CreateGroup", GroupName="Default") == "Group Default already exists"
    assert message("CreateGroup", GroupName="a" * 33) == "GroupName must have between 1 and 32 characters"
    assert message("CreateGroup", GroupName="b", FilterExpression=" " * 2001) == "FilterExpression must have at most 2000 characters"
    assert message("CreateGroup", GroupName="b", FilterExpression="ok AND").startswith("Invalid filter expression: ")
    assert message("UpdateGroup", GroupName="mine", FilterExpression="foo = 1").startswith("Invalid filter expression: ")
    assert message("UpdateGroup", GroupName="Default", FilterExpression="ok") == "The filter expression of group Default cannot be changed"
    assert message("DeleteGroup", GroupName="Default") == "Group Default cannot be deleted"
    assert message("GetGroup", GroupName="MINE") == "Group not found.", "names are case-sensitive"
    assert message("GetGroup") == "GroupName or GroupARN is required"
    default = f"arn:aws:xray:us-east-1:{account.account}:group/Default"
    assert message("GetGroup", GroupName="mine", GroupARN=default) == "GroupName and GroupARN must denote the same group"
    assert message("GetGroup", GroupARN="arn:aws:xray:us-east-1:999999999999:group/Default") == "Group not found."
    account.read("GetGroup", {"GroupName": "Default", "GroupARN": default})
    enabled = account.read("UpdateGroup", {"GroupName": "Default", "InsightsConfiguration": {"InsightsEnabled": True}})["Group"]
    assert enabled["InsightsConfiguration"]["InsightsEnabled"] is True and enabled["GroupARN"] == default
    assert [group["GroupName"] for group in account.read("GetGroups")["Groups"]].count("Default") == 1
    for operation in ("GetServiceGraph", "GetTimeSeriesServiceStatistics"):
        assert message(operation, StartTime=1, EndTime=2, GroupName="nobody") == "Group not found."
    assert message("GetGroups", NextToken="x") == "Invalid NextToken x"


def test_a_group_must_not_refer_to_itself(account):
    own = account.refusal("CreateGroup", {"GroupName": "me", "FilterExpression": 'group.name = "me"'})
    assert own[0] == "InvalidRequestException" and own[1].startswith("Invalid filter expression: group me would refer to itself")
    account.read("CreateGroup", {"GroupName": "a", "FilterExpression": 'group.name = "b"'})
    error, message = account.refusal("CreateGroup", {"GroupName": "b", "FilterExpression": '!(group.name = "a")'})
    assert "would refer to itself" in message
    made = account.read("CreateGroup", {"GroupName": "b", "FilterExpression": "fault"})["Group"]
    for expression in ('group.name = "a"', f'group.arn = "{made["GroupARN"]}"', 'fault OR group.name != "b"'):
        error, message = account.refusal("UpdateGroup", {"GroupName": "b", "FilterExpression": expression})
        assert "would refer to itself" in message
    account.read("UpdateGroup", {"GroupName": "b", "FilterExpression": 'error AND group.name = "nobody"'})


def test_an_account_has_at_most_25_groups(account):
    for number in range(25):
        account.read("CreateGroup", {"GroupName": f"g{number}"})
    assert len(account.read("GetGroups")["Groups"]) == 26
    answer = account.call("CreateGroup", {"GroupName": "more"})
    assert (answer.status, answer.message) == (400, "An account cannot have more than 25 groups")


def test_a_group_graph_has_members_only(account):
    account.read("CreateGroup", {"GroupName": "faults", "FilterExpression": "fault"})
    base = int(time.time()) - 600
    bad = segment(name="shop", start=base, fault=True, subsegments=[
        subsegment("db", base, namespace="remote", fault=True)])
    account.put(bad, segment(name="shop", start=base + 1), segment(name="blog", start=base + 2))
    services = account.graph(base, base + 60, GroupName="faults")
    assert names(services) == {"shop", "db"}
    shop = node(services, "shop")
    assert counts(shop) == (0, 0, 0, 1) and shop["StartTime"] == base
    assert counts(node(account.graph(base, base + 60), "shop")) == (1, 0, 0, 1)
    assert account.graph(base, base + 60, GroupName="Default") == account.graph(base, base + 60)

    # A later document of a member changes the group's graph as well; one that makes a trace match makes it a member.
    late = segment(name="mail", start=base + 3, duration=None, in_progress=True)
    account.put(late)
    assert names(account.graph(base, base + 60, GroupName="faults")) == {"shop", "db"}
    account.put({**{key: value for key, value in late.items() if key != "in_progress"}, "end_time": base + 4, "fault": True})
    account.put(segment(bad["trace_id"], "shipping", base, 0.5, parent_id=bad["subsegments"][0]["id"]))
    services = account.graph(base, base + 60, GroupName="faults")
    assert names(services) == {"shop", "mail", "shipping"}, "the call was resolved: no node db any more"
    # Membership is never removed.
    account.read("UpdateGroup", {"GroupName": "faults", "FilterExpression": "error"})
    assert names(account.graph(base, base + 60, GroupName="faults")) == {"shop", "mail", "shipping"}
    assert account.server.verify(base - 60, base + 120, account.account) > 0


def test_a_search_by_group_uses_its_filter_as_it_is_now(account):
    made = account.read("CreateGroup", {"GroupName": "bad", "FilterExpression": "fault"})["Group"]
    base = int(time.time()) - 600
    failed, fine = segment(name="web", start=base, fault=True), segment(name="web", start=base + 1)
    account.put(failed, fine)

    def found(expression):
        return {summary["Id"] for summary in account.summaries(base, base + 10, FilterExpression=expression)}

    assert found('group.name = "bad"') == {failed["trace_id"]} == found(f'group.arn = "{made["GroupARN"]}"')
    assert found('group.name != "bad"') == {fine["trace_id"]}
    assert found('group.name = "Default"') == {failed["trace_id"], fine["trace_id"]} and found('group.name = "nobody"') == set()
    account.read("UpdateGroup", {"GroupName": "bad", "FilterExpression": "!fault"})
    assert found('group.name = "bad"') == {fine["trace_id"]}


def test_a_rebuild_tests_every_trace_against_the_groups_of_now():
    server = Server().start()
    try:
        caller, base = server.root(), int(time.time()) - 600
        caller.put(segment(name="before", start=base))
        caller.summaries(base, base + 1)
        caller.read("UpdateIndexingRule", {"Name": "Default", "Rule": {"Probabilistic": {"DesiredSamplingPercentage": 0}}})
        caller.read("UpdateTraceSegmentDestination", {"Destination": "CloudWatchLogs"})
        caller.put(segment(name="hidden", start=base + 2))
        caller.read("UpdateTraceSegmentDestination", {"Destination": "XRay"})
        caller.read("CreateGroup", {"GroupName": "all"})
        caller.put(segment(name="after", start=base + 1))
        assert names(caller.graph(base, base + 60, GroupName="all")) == {"after"}
        server.administer("rebuild")
        assert names(caller.graph(base, base + 60)) == {"before", "after"}, "the rule is that of the first document"
        assert names(caller.graph(base, base + 60, GroupName="all")) == {"before", "after"}
        caller.put(segment(name="later", start=base + 3))
        assert names(caller.graph(base, base + 60, GroupName="all")) == {"before", "after", "later"}
        assert server.verify(base - 60, base + 120) > 0
    finally:
        server.remove()


def test_a_group_takes_traces_from_its_creation_on_and_stops_at_once(account):
    base = int(time.time()) - 600
    account.put(segment(name="before", start=base))
    account.summaries(base, base + 1)
    account.read("CreateGroup", {"GroupName": "all"})
    account.put(segment(name="after", start=base + 1))
    assert names(account.graph(base, base + 10, GroupName="all")) == {"after"}
    account.read("DeleteGroup", {"GroupName": "all"})
    assert account.refusal("GetServiceGraph", {"StartTime": base, "EndTime": base + 10, "GroupName": "all"})[1] == "Group not found."
    account.read("CreateGroup", {"GroupName": "all"})
    assert account.graph(base, base + 10, GroupName="all") == [], "another group of the same name"
    account.put(segment(name="later", start=base + 2))
    assert names(account.graph(base, base + 10, GroupName="all")) == {"later"}


def test_an_older_version_of_the_filter_is_told(account):
    account.read("CreateGroup", {"GroupName": "v", "FilterExpression": 'service("one")'})
    base = int(time.time()) - 600
    account.put(segment(name="one", start=base))

    def answer(start, end):
        return account.read("GetServiceGraph", {"StartTime": start, "EndTime": end, "GroupName": "v"}, FRESH)

    assert answer(base, base + 60)["ContainsOldGroupVersions"] is False
    account.read("UpdateGroup", {"GroupName": "v", "FilterExpression": 'service("two")'})
    account.put(segment(name="two", start=base + 120), segment(name="one", start=base + 121))
    found = answer(base, base + 180)
    assert found["ContainsOldGroupVersions"] is True and names(found["Services"]) == {"one", "two"}
    found = answer(base + 60, base + 180)
    assert found["ContainsOldGroupVersions"] is False and names(found["Services"]) == {"two"}
    series = account.read("GetTimeSeriesServiceStatistics", {"StartTime": base - 60, "EndTime": base + 240, "GroupName": "v"}, FRESH)
    assert series["ContainsOldGroupVersions"] is True


def test_links_of_a_group_resolve_among_its_members(account):
    account.read("CreateGroup", {"GroupName": "workers", "FilterExpression": 'service("worker")'})
    account.read("CreateGroup", {"GroupName": "everyone"})
    base = int(time.time()) - 600
    call = subsegment("SQS", base, namespace="aws", aws={"operation": "SendMessage", "queue_url": "jobs"})
    producer = segment(name="api", start=base, subsegments=[call])
    consumer = segment(name="worker", start=base + 5, links=[{"trace_id": producer["trace_id"], "id": call["id"]}])
    account.put(consumer)
    account.put(producer)

    def linked(**more):
        services = account.graph(base, base + 60, **more)
        queue, worker = node(services, "jobs", "AWS::SQS::Queue"), node(services, "worker")
        return queue is not None and any(
            found.get("EdgeType") == "link" and found["ReferenceId"] == worker["ReferenceId"] for found in queue["Edges"])

    wait_for(lambda: linked(), what="the link on the map")
    wait_for(lambda: linked(GroupName="everyone"), what="the link in the group with both traces")
    assert not linked(GroupName="workers")
    services = account.graph(base, base + 60, GroupName="workers")
    assert names(services) == {"worker"} and node(services, "worker")["Root"] is True and node(services, "worker", "client")
    account.server.verify(base - 60, base + 120, account.account)


def test_an_old_page_token_does_not_go_on_in_a_recreated_group(account):
    account.read("CreateGroup", {"GroupName": "big"})
    base = int(time.time()) - 600
    trace = trace_id()
    calls = [subsegment(f"host-{number:04d}.example", base + 0.1, namespace="remote") for number in range(520)]
    root = segment(trace, "hub", base, 1.0)
    documents = [root] + [
        {**subsegment("part", base, 0.9), "type": "subsegment", "trace_id": trace, "parent_id": root["id"], "subsegments": calls[first:first + 40]}
        for first in range(0, 520, 40)]
    account.put(*documents)
    request = {"StartTime": base, "EndTime": base + 60, "GroupName": "big"}
    first = account.read("GetServiceGraph", request, FRESH)
    assert len(first["Services"]) == 500
    second = account.read("GetServiceGraph", {**request, "NextToken": first["NextToken"]})
    assert len(second["Services"]) == 22
    account.read("DeleteGroup", {"GroupName": "big"})
    again = {**request, "NextToken": first["NextToken"]}
    assert account.refusal("GetServiceGraph", again)[1] == "Group not found."
    account.read("CreateGroup", {"GroupName": "big"})
    assert account.refusal("GetServiceGraph", again)[1] == f"Invalid NextToken {first['NextToken']}"


def test_members_are_counted_by_the_minute(account):
    account.read("CreateGroup", {"GroupName": "counted"})
    account.put(*[segment(name="web", fault=number < 2) for number in range(5)])
    label = f'beamline_group_traces{{account="{account.account}",group="counted",outcome='

    def seen():
        metrics = account.server.metrics()
        return metrics.get(label + '"total"}') == 5 and metrics
    metrics = wait_for(seen, 130, "the minute's count")
    assert metrics[label + '"fault"}'] == 2 and metrics[label + '"ok"}'] == 3
