"""Load that is remembered: threads that send small traces, and a check that everything acknowledged is there once."""

import http.client
import json
import threading

from beamline import counts, node, segment, subsegment, trace_id, wait_for

START = 1_700_000_000


class Senders:
    """Threads that send small traces and remember which were acknowledged. Whatever fails is sent again until it is."""

    def __init__(self, *accounts, threads=4, pause=0.0):
        """`accounts`: one key, at each server that is sent to; the threads take turns. `pause`: seconds a thread rests after
        each call, so that a long run stays small enough to be read back whole."""
        self.pause = pause
        self.account = accounts[0]
        self.accounts = accounts
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.acknowledged = {}
        self.failures = 0
        self.statuses = {}
        self.threads = [threading.Thread(target=self.send, args=(number,)) for number in range(threads)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)

    def batch(self, number, round):
        documents = {}
        for index in range(5):
            trace, start = trace_id(START), START + (round * 5 + index) % 3000 / 10
            call = subsegment("callee.internal", start + 0.01, 0.08, namespace="remote")
            documents[trace] = [
                segment(trace, f"caller-{number}", start, 0.1, subsegments=[call]),
                segment(trace, "callee", start + 0.02, 0.05, parent_id=call["id"], fault=index == 0),
            ]
        return documents

    def send(self, number):
        round = 0
        while not self.stopping.wait(self.pause):
            documents = self.batch(number, round)
            round += 1
            body = json.dumps({"TraceSegmentDocuments": [json.dumps(part) for parts in documents.values() for part in parts]}).encode()
            while True:
                try:
                    answer = self.accounts[round % len(self.accounts)].post("/TraceSegments", body, timeout=10)
                except (OSError, http.client.HTTPException):
                    answer = None
                with self.lock:
                    status = answer.status if answer else "no answer"
                    self.statuses[status] = self.statuses.get(status, 0) + 1
                if answer and answer.status == 200:
                    assert answer.json["UnprocessedTraceSegments"] == []
                    with self.lock:
                        self.acknowledged.update({trace: {part["id"] for part in parts} for trace, parts in documents.items()})
                    break
                self.failures += 1
                round += 1  # another server may be up
                if self.stopping.wait(0.05):
                    return

    def count(self):
        with self.lock:
            return len(self.acknowledged)

    def more(self, number, timeout=30):
        """Waits until so many more traces are acknowledged."""
        wanted = self.count() + number
        wait_for(lambda: self.count() >= wanted, timeout, f"{number} more acknowledged traces ({self.statuses})")

    def check(self, server, reader=None):
        """Everything acknowledged is there, once; counts equal the traces; verify agrees; nothing was answered by a 500."""
        assert self.count() > 0 and 500 not in self.statuses, self.statuses
        account = reader or self.account
        ids = list(self.acknowledged)
        for first in range(0, len(ids), 5):
            found = {trace["Id"]: [part["id"] for part in trace["Segments"] if not part.get("inferred")] for trace in account.traces(*ids[first:first + 5])}
            for trace in ids[first:first + 5]:
                assert trace in found, f"acknowledged trace {trace} is lost"
                assert sorted(found[trace]) == sorted(self.acknowledged[trace]), f"trace {trace} is not as it was sent"
        summaries = account.summaries(START, START + 400)
        stored = [found["Id"] for found in summaries]
        assert len(stored) == len(set(stored)) and set(ids) <= set(stored)
        services = account.graph(START, START + 400)
        whole = sum(1 for found in summaries if any(service["Name"] == "callee" for service in found["ServiceIds"]))
        callers = [service for service in services if service["Name"].startswith("caller-") and service.get("Type") != "client"]
        assert sum(sum(counts(service)) for service in callers) == len(stored), "callers are counted once each"
        assert sum(counts(node(services, "callee"))) == whole
        assert server.verify(START, START + 400) == sum(
            service.get("SummaryStatistics", {"TotalCount": 0})["TotalCount"] + sum(edge["SummaryStatistics"]["TotalCount"] for edge in service["Edges"])
            for service in services)
