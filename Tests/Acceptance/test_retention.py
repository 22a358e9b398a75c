"""Retention while clients read page by page and late documents arrive: nothing older answers, nothing younger is lost, and a page
token that had still to give something of a day that is gone says so."""

import threading
import time

from beamline import FRESH, segment, subsegment, trace_id, wait_for

DAY = 86_400
GONE = "no longer kept"


def summaries_walk(caller, window, token=None, **more):
    """The ids of all pages from a token on, or why a page was refused."""
    found, request = [], {"StartTime": window[0], "EndTime": window[1], **more}
    while True:
        answer = caller.call("GetTraceSummaries", {**request, **({"NextToken": token} if token else {})}, FRESH)
        if answer.status != 200:
            assert answer.error == "InvalidRequestException", answer
            return None, answer.message
        found += [summary["Id"] for summary in answer.json["TraceSummaries"]]
        token = answer.json.get("NextToken")
        if not token:
            return found, None


def graph_walk(caller, window, token=None):
    """The names of the services of all pages from a token on, or why a page was refused."""
    found, request = [], {"StartTime": window[0], "EndTime": window[1]}
    while True:
        answer = caller.call("GetServiceGraph", {**request, **({"NextToken": token} if token else {})}, FRESH)
        if answer.status != 200:
            assert answer.error == "InvalidRequestException", answer
            return None, answer.message
        found += [service["Name"] for service in answer.json["Services"] if service.get("Type") != "client"]
        token = answer.json.get("NextToken")
        if not token:
            return found, None


class Reader(threading.Thread):
    """Walks again and again, and remembers what each walk came to."""

    def __init__(self, walk):
        super().__init__(daemon=True)
        self.walk, self.outcomes, self.stopping, self.trouble = walk, [], threading.Event(), None

    def run(self):
        try:
            while not self.stopping.is_set():
                self.outcomes.append(self.walk())
        except Exception as error:  # shown by finish()
            self.trouble = error

    def finish(self):
        self.stopping.set()
        self.join(60)
        assert self.trouble is None, self.trouble
        return self.outcomes


def date_receipts_back(cluster, days):
    """As if every document had been received when its trace began: nobody can send into the past."""
    for day in days:
        cluster.sql(f"SELECT day_partition_create('trace_documents', {day})")
    cluster.sql("UPDATE traces SET event_second = root_second + 1, first_day = (root_second + 1) / 86400")
    cluster.sql("UPDATE trace_documents d SET day = t.first_day FROM traces t WHERE t.account = d.account AND t.trace_id = d.trace_id")
    cluster.sql("UPDATE search_segments SET receipt_first = root_first, receipt_last = root_last + 1")
    cluster.sql("UPDATE graph_blocks SET received_day = minute / 1440")


# If this fails, retention tears pages out of a walk that then ends as if it were whole, or takes what is to be kept.
def test_days_are_dropped_while_clients_read_and_late_documents_arrive(cluster):
    ingest, query = cluster.start("ingest"), cluster.start("query")
    aggregator = cluster.start("aggregate")
    wait_for(lambda: cluster.is_even(aggregator), what="an owner for each partition")
    writer = cluster.new_account(ingest)
    caller = writer.at(query)

    # With a retention of one day, everything received before this second goes; at midnight it moves.
    wait_for(lambda: DAY - time.time() % DAY > 120, 130, "no midnight in sight")
    border = (int(time.time()) // DAY - 1) * DAY
    starts = {"old": [border - 1_900 + 12 * number for number in range(150)], "young": [border + 5 * number for number in range(300)]}
    ids = {}
    for age, seconds in starts.items():
        documents = [segment(trace_id(start), f"{age}-{number}", start, 0.5) for number, start in enumerate(seconds)]
        ids[age] = [document["trace_id"] for document in documents]
        writer.put(*documents)
    both, kept = (border - 3_600, border + 3_600), (border, border + 3_600)
    assert set(summaries_walk(caller, both)[0]) == set(ids["old"] + ids["young"])
    assert aggregator.stop() == 0
    date_receipts_back(cluster, [border // DAY - 1, border // DAY])

    # Walks that have begun: their first pages, which are all of the day that stays, have been read.
    def first(operation, window, **more):
        return caller.read(operation, {"StartTime": window[0], "EndTime": window[1], **more}, FRESH)["NextToken"]

    filtered = {"FilterExpression": "responsetime > 0.1"}
    tokens = [
        (summaries_walk, {**more, **clock}, first("GetTraceSummaries", both, **more, **clock), both)
        for more in [{}, filtered] for clock in [{}, {"TimeRangeType": "Event"}, {"TimeRangeType": "Service"}]
    ] + [(graph_walk, {}, first("GetServiceGraph", both), both)]
    kept_tokens = [
        (summaries_walk, {}, first("GetTraceSummaries", kept), 200), (summaries_walk, filtered, first("GetTraceSummaries", kept, **filtered), 200),
        (graph_walk, {}, first("GetServiceGraph", kept), 50),
    ]

    readers = [Reader(lambda: summaries_walk(caller, both)), Reader(lambda: summaries_walk(caller, kept)), Reader(lambda: graph_walk(caller, both))]
    for reader in readers:
        reader.start()
    wait_for(lambda: all(reader.outcomes for reader in readers) or [reader for reader in readers if reader.trouble], 30, "whole walks")
    late = {"old": ids["old"][:20], "young": ids["young"][::10]}
    lasting = set(late["old"])
    aggregator = cluster.start("aggregate", "--retention-days", "1")
    for age, traces in late.items():
        # What comes late for a trace that is gone lies in a minute of its own.
        shift = -3_000 if age == "old" else 0.1
        for trace in traces:
            start = starts[age][ids[age].index(trace)] + shift
            writer.put(segment(trace, f"late-{age}", start, 0.1, subsegments=[subsegment("work", start, 0.05)]))
    wait_for(lambda: caller.traces(ids["old"][-1]) == [], 60, "the old day is gone")
    wait_for(lambda: set(summaries_walk(caller, both)[0] or []) == set(ids["young"]), 30, "only the young answer")
    time_of_removal = [len(reader.outcomes) for reader in readers]
    wait_for(lambda: all(len(reader.outcomes) > count + 1 for reader, count in zip(readers, time_of_removal)), 30, "walks after the removal")

    # Whoever was reading got everything, or was told.
    old, young = set(ids["old"]), set(ids["young"])
    whole, partly, graphs = [reader.finish() for reader in readers]
    for found, refusal in whole:
        if refusal:
            assert refusal.endswith(GONE), refusal
        else:
            assert len(found) == len(set(found)) and young <= set(found)
            assert old - lasting <= set(found) or not (old - lasting) & set(found), "neither everything nor what is kept"
    for found, refusal in partly:
        assert not refusal and set(found) == young and len(found) == len(young)
    for found, refusal in graphs:
        if refusal:
            assert refusal.endswith(GONE), refusal
        else:
            names = set(found)
            assert {f"young-{number}" for number in range(300)} <= names
            assert len(names & {f"old-{number}" for number in range(30, 150)}) in (0, 120)
    for walk, more, token, window in tokens:
        found, refusal = walk(caller, window, token, **more)
        assert found is None and refusal == f"Invalid NextToken {token}: a part of what it points to is {GONE}", (more, found, refusal)
    for walk, more, token, count in kept_tokens:
        found, refusal = walk(caller, kept, token, **more)
        assert not refusal and len(found) >= count, (more, refusal)

    # Nothing older answers: not even the earlier documents of a trace that something came late for. Only the minutes of the map
    # that such a document changed before they went stay, as a whole, until it goes.
    quiet = (starts["old"][30] // 60 * 60, border)
    assert caller.graph(*quiet) == [] and cluster.verify(*quiet) == 0
    for trace in late["old"]:
        [found] = caller.traces(trace)
        assert [document["name"] for document in found["Segments"]] == ["late-old"]
    # Nothing younger is lost, and what came late is there.
    for position, trace in enumerate(ids["young"]):
        if position % 25 == 0 or trace in late["young"]:
            [found] = caller.traces(trace)
            names = sorted(document["name"] for document in found["Segments"])
            assert names == sorted([f"young-{position}"] + (["late-young"] if trace in late["young"] else []))
    assert cluster.verify(border, border + 3_600) > 0
    late_old = (border - 7_200, border - 3_600)
    assert {service["Name"] for service in caller.graph(*late_old)} == {"late-old"} and cluster.verify(*late_old) > 0
