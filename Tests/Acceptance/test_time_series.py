"""GetTimeSeriesServiceStatistics with boto3 and the AWS CLI."""

import datetime
import time

from beamline import FRESH, segment, subsegment


def minute_ago(minutes):
    return int(time.time()) // 60 * 60 - 60 * minutes


def series(account, start, end, **more):
    return account.read("GetTimeSeriesServiceStatistics", {"StartTime": start, "EndTime": end, **more}, FRESH)


def totals(answer, kind="EdgeSummaryStatistics"):
    return [(int(point["Timestamp"]), point.get(kind, {}).get("TotalCount", 0)) for point in answer["TimeSeriesServiceStatistics"]]


def test_minutes_and_five_minutes(account):
    start = minute_ago(30) // 300 * 300
    account.put(*[segment(name="web", start=start + second, duration=0.2, fault=second > 100) for second in (0, 1, 59, 60, 130, 300)])
    answer = series(account, start, start + 600)
    assert totals(answer) == [(start + 360, 1), (start + 180, 1), (start + 120, 1), (start + 60, 3)]
    newest = answer["TimeSeriesServiceStatistics"][0]
    assert newest["EdgeSummaryStatistics"]["FaultStatistics"] == {"OtherCount": 1, "TotalCount": 1}
    assert newest["ResponseTimeHistogram"] == [{"Value": 0.2, "Count": 1}] and "ServiceSummaryStatistics" not in newest
    assert answer["ContainsOldGroupVersions"] is False and "NextToken" not in answer
    assert totals(series(account, start, start + 600, Period=300)) == [(start + 600, 1), (start + 300, 5)]
    assert totals(series(account, start + 60, start + 61)) == [(start + 60, 3)], "labels are the ends of the minutes"
    assert totals(series(account, start, start + 60)) == []


def test_selectors_count_nodes_edges_and_clients(account):
    start = minute_ago(30)
    account.put(
        segment(name="web", start=start, duration=0.2, origin="AWS::EC2::Instance", subsegments=[
            subsegment("orders", start, 0.1, namespace="remote", fault=True)]),
        segment(name="other", start=start + 60))

    def count(expression, kind):
        answer = series(account, start, start + 300, EntitySelectorExpression=expression)
        assert len(answer["TimeSeriesServiceStatistics"]) == 2, "a minute with other traffic is listed"
        return [total for _, total in totals(answer, kind)]

    service, edge = "ServiceSummaryStatistics", "EdgeSummaryStatistics"
    assert count('service("web")', service) == [0, 1] and count('service("web")', edge) == [0, 0]
    assert count('service(id(name: "web", type: "AWS::EC2::Instance"))', service) == [0, 1]
    assert count('service(id(name: "web", type: "AWS::ECS::Container"))', service) == [0, 0]
    assert count('id(type: "remote")', service) == [0, 1]
    assert count('service(id(type: "client"))', service) == [1, 1]
    assert count('edge("web", "orders")', edge) == [0, 1]
    assert count('edge(id(type: "client"), "web")', edge) == [0, 1]
    for bad in ("ok", 'service("a") { ok }', 'service("a") AND service("b")', "service()", "x" * 500):
        assert account.refusal("GetTimeSeriesServiceStatistics", {
            "StartTime": start, "EndTime": start + 60, "EntitySelectorExpression": bad})[1] == "Invalid entity selector expression"


def test_forecasts(account):
    start = minute_ago(10)
    account.put(*[segment(name="web", start=start + number, fault=number == 7) for number in range(20)])
    expression = 'service("web")'
    (point,) = series(account, start, start + 120, EntitySelectorExpression=expression, ForecastStatistics=True)["TimeSeriesServiceStatistics"]
    # 20 requests at 1 %: 0.2 + 3 · sqrt(0.198) + 1, rounded up.
    assert point["ServiceForecastStatistics"] == {"FaultCountHigh": 3, "FaultCountLow": 0}
    assert point["ServiceSummaryStatistics"]["FaultStatistics"]["TotalCount"] == 1
    for more in ({}, {"EntitySelectorExpression": 'edge("a", "b")'}):
        assert account.refusal("GetTimeSeriesServiceStatistics", {
            "StartTime": start, "EndTime": start + 60, "ForecastStatistics": True, **more,
        }) == ("InvalidRequestException", "EntitySelectorExpression is required for forecast")


def test_a_day_of_minutes_comes_in_pages(account):
    end = minute_ago(1)
    start = end - 86_400
    account.put(*[segment(name="web", start=start + 60 * minute, duration=0.001) for minute in range(1_200)])
    series(account, end - 60, end)  # waits until the writes are visible
    xray = account.boto3()
    pages = list(xray.get_paginator("get_time_series_service_statistics").paginate(StartTime=start, EndTime=end))
    assert [len(page["TimeSeriesServiceStatistics"]) for page in pages] == [1_000, 200]
    times = [point["Timestamp"] for page in pages for point in page["TimeSeriesServiceStatistics"]]
    assert times == sorted(times, reverse=True) and len(set(times)) == 1_200
    token = pages[0]["NextToken"]
    refusal = account.refusal("GetTimeSeriesServiceStatistics", {"StartTime": start, "EndTime": end, "Period": 300, "NextToken": token})
    assert refusal == ("InvalidRequestException", f"Invalid NextToken {token}")
    assert "24 hours" in account.refusal("GetTimeSeriesServiceStatistics", {"StartTime": start - 1, "EndTime": end})[1]
    assert account.refusal("GetTimeSeriesServiceStatistics", {"StartTime": start, "EndTime": end, "Period": 90})[1] == "Time period must be one of [60, 300]"


def test_a_group_and_the_cli(account):
    account.read("CreateGroup", {"GroupName": "faults", "FilterExpression": "fault"})
    start = minute_ago(20)
    account.put(segment(name="web", start=start), segment(name="web", start=start + 1, fault=True))
    assert totals(series(account, start, start + 120)) == [(start + 60, 2)]
    assert totals(series(account, start, start + 120, GroupName="faults")) == [(start + 60, 1)]
    shown = account.cli(
        "get-time-series-service-statistics", "--start-time", start, "--end-time", start + 120, "--group-name", "faults",
        "--entity-selector-expression", 'service("web")', "--period", 60)
    (point,) = shown["TimeSeriesServiceStatistics"]
    assert point["ServiceSummaryStatistics"]["TotalCount"] == 1
    # Version 1 of the CLI prints a number, later ones a date.
    shown_at = str(point["Timestamp"])
    seconds = float(shown_at) if shown_at.replace(".", "").isdigit() else datetime.datetime.fromisoformat(shown_at).timestamp()
    assert seconds == start + 60
