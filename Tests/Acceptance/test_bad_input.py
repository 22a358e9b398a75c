"""Whatever is sent, no request causes a 500, a crash, unbounded memory, or makes other clients wait."""

import gzip
import http.client
import json
import random
import socket
import threading
import time
import zlib

import pytest

from beamline import FRESH, PATHS, counts, hex_id, node, segment, subsegment, trace_id, wait_for

MEBIBYTE = 1 << 20


@pytest.fixture(autouse=True)
def alive(server):
    """After every test the same process still answers, quickly, and its memory is in bounds."""
    process = server.process.pid
    yield
    assert server.process.poll() is None and server.process.pid == process, server.log_text()
    assert server.is_ready()
    assert resident_bytes(server) < 700 * MEBIBYTE


def resident_bytes(server):
    for line in open(f"/proc/{server.process.pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024


def only_one(account, text, code, kind="segment", id=None):
    """The one document `text` is refused so."""
    answer = account.read("PutTraceSegments", {"TraceSegmentDocuments": [text]})
    message = f"Invalid {kind}. ErrorCode: {code}" + (", Cause: null" if kind == "subsegment" else "")
    expected = {"ErrorCode": code, "Message": message, **({"Id": id} if id is not None else {})}
    assert answer["UnprocessedTraceSegments"] == [expected], text[:100]


BODIES = {
    "not JSON": b"nonsense", "an array": b"[]", "a string": b'"x"', "two values": b"{}{}", "cut off": b'{"TraceSegmentDocuments":["',
    "NaN": b'{"StartTime":NaN,"EndTime":1}', "infinity": b'{"StartTime":Infinity,"EndTime":1}', "BOM": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"TraceSegmentDocuments":["\xff\xfe"]}', "lone surrogate": b'{"TraceSegmentDocuments":["\\ud800"]}',
    "nested 10,000 deep": b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "an unclosed nest": b'{"a":' * 100_000,
    "a string where a list belongs": b'{"TraceSegmentDocuments":"x","TraceIds":"x","StartTime":[],"EndTime":1}',
}


@pytest.mark.parametrize("operation", ["PutTraceSegments", "BatchGetTraces", "GetTraceSummaries", "GetServiceGraph", "GetTraceGraph"])
@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_body_that_cannot_be_read_is_a_serialization_error(account_of_module, operation, name):
    answer = account_of_module.post(PATHS[operation], BODIES[name])
    assert (answer.status, answer.error) == (400, "SerializationException"), answer


@pytest.fixture(scope="module")
def account_of_module(server):
    return server.new_account()


def test_numbers_out_of_range_are_refused_with_400(account_of_module):
    for number in ("1e999", "-1", "253402300800", "-1e400", "1" * 400):
        answer = account_of_module.post("/ServiceGraph", f'{{"StartTime":{number},"EndTime":1}}'.encode())
        assert answer.status == 400, (number, answer)


def test_a_million_keys_and_duplicate_keys_are_read(account_of_module):
    many = b"{" + b",".join(b'"k%d":%d' % (number, number) for number in range(1_000_000 // 2)) + b"}"
    assert len(many) < 8 * MEBIBYTE
    answer = account_of_module.post("/TraceSegments", many)
    assert (answer.status, answer.message) == (400, "Segments can not be empty")
    short = b"{" + b",".join(b'"%x":1' % number for number in range(800_000)) + b"}"
    if len(short) < 8 * MEBIBYTE:
        assert account_of_module.post("/TraceSegments", short).status == 400
    document = segment(name="last-wins")
    body = b'{"TraceSegmentDocuments":[],"TraceSegmentDocuments":[' + json.dumps(json.dumps(document)).encode() + b"]}"
    assert account_of_module.post("/TraceSegments", body).json == {"UnprocessedTraceSegments": []}


def test_odd_documents_are_refused_or_survive(account):
    only_one(account, "[" * 10_000 + "]" * 10_000, "ParseError", "entity")
    only_one(account, '{"a":' * 10_000 + "1" + "}" * 10_000, "ParseError")
    only_one(account, "\ufeff{}", "ParseError", "entity")
    only_one(account, '{"name":"\\ud800"}', "ParseError")
    only_one(account, "{} {}", "ParseError")
    only_one(account, "", "ParseError", "entity")
    only_one(account, "{}", "MissingId")
    big = segment(metadata={"a": {"padding": "x" * 65_536}})
    only_one(account, json.dumps(big), "InvalidSegment", id=big["id"])
    nul = segment(name="nul\u0000name", user="u\u0000", annotations={"k\u0000": "v\u0000"}, start=1_700_000_000)
    account.put(nul)
    assert account.traces(nul["trace_id"])[0]["Segments"][0] == nul
    (summary,) = account.summaries(1_700_000_000, 1_700_000_001)
    assert summary["EntryPoint"]["Name"] == "nul\u0000name" and summary["Users"][0]["UserName"] == "u\u0000"
    assert summary["Annotations"]["k\u0000"][0]["AnnotationValue"] == {"StringValue": "v\u0000"}
    assert node(account.graph(1_700_000_000, 1_700_000_010), "nul\u0000name") is not None
    nan = json.dumps(segment(annotations={"n": 1})).replace('"n": 1', '"n": NaN')
    only_one(account, nan, "ParseError")
    huge = segment(start=1_700_000_100)
    account.put(json.dumps({**huge, "annotations": {"n": 1}}).replace('"n": 1', '"n": 1e999'))
    assert account.summaries(1_700_000_100, 1_700_000_101)[0]["Annotations"] == {}
    many = {**segment(start=1_700_000_200), "metadata": {"m": {f"{number:x}": 0 for number in range(6000)}}}
    account.put(many)
    assert len(account.traces(many["trace_id"])[0]["Segments"][0]["metadata"]["m"]) == 6000
    distant = [segment(start=start, duration=1) for start in (1e-6, 253402300000, 1e15)]
    for document in distant:
        answer = account.read("PutTraceSegments", {"TraceSegmentDocuments": [json.dumps(document)]})
        if not answer["UnprocessedTraceSegments"]:
            assert account.traces(document["trace_id"])


@pytest.mark.parametrize("number, change, code, kind", [
    (4, {"type": "other"}, "UnknownType", "entity"), (5, {"id": None}, "MissingId", "segment"), (5, {"id": 5}, "MissingId", "segment"),
    (6, {"id": "xyz"}, "InvalidId", "segment"), (7, {"name": ""}, "MissingName", "segment"), (8, {"trace_id": None}, "MissingTraceId", "segment"),
    (9, {"trace_id": "1-2-3"}, "InvalidTraceId", "segment"), (10, {"start_time": "1700000000"}, "MissingStartTime", "segment"),
    (11, {"in_progress": True}, "InProgressSegmentHasEndTime", "segment"), (12, {"end_time": None}, "MissingEndTime", "segment"),
    (11, {"type": "subsegment", "parent_id": "1" * 16, "in_progress": True}, "InProgressSubsegmentHasEndTime", "subsegment"),
    (13, {"type": "subsegment"}, "MissingParentId", "subsegment"), (14, {"parent_id": "q"}, "InvalidParentId", "segment"),
    (15, {"subsegments": [5]}, "ParseError", "entity"),
    (7, {"subsegments": [{"id": "1" * 16, "start_time": 1, "end_time": 2}]}, "MissingName", "subsegment"),
])
def test_validation_of_one_document(account_of_module, number, change, code, kind):
    """segments.md §14, by number."""
    document = {**segment(), **change}
    id = document["id"] if isinstance(document["id"], str) else None
    only_one(account_of_module, json.dumps(document), code, kind, id)


def test_gzip_is_accepted_and_bombs_are_stopped(server, account):
    document = segment(name="zipped")
    body = gzip.compress(json.dumps({"TraceSegmentDocuments": [json.dumps(document)]}).encode())
    assert account.post("/TraceSegments", body, {"Content-Encoding": "gzip"}).json == {"UnprocessedTraceSegments": []}
    assert account.traces(document["trace_id"])
    for body in (b"not gzip", body[:-10], b""):
        answer = account.post("/TraceSegments", body, {"Content-Encoding": "gzip"})
        assert answer.status == 400, answer
    assert account.post("/TraceSegments", b"{}", {"Content-Encoding": "br"}).error == "MalformedHttpRequestException"

    before = resident_bytes(server)
    squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)
    block = b" " * MEBIBYTE
    bomb = b"".join(squeeze.compress(block) for _ in range(768)) + squeeze.flush()
    assert len(bomb) < 8 * MEBIBYTE
    began = time.monotonic()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(account.post("/TraceSegments", bomb, {"Content-Encoding": "gzip"}))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert {(answer.status, answer.error) for answer in answers} == {(413, "RequestEntityTooLargeException")}
    assert time.monotonic() - began < 5 and resident_bytes(server) - before < 250 * MEBIBYTE


def test_bodies_up_to_the_limit_and_one_byte_over(account):
    document = json.dumps(json.dumps(segment()))
    head = f'{{"TraceSegmentDocuments":[{document}],"padding":"'.encode()
    exact = head + b"x" * (8 * MEBIBYTE - len(head) - 2) + b'"}'
    assert len(exact) == 8 * MEBIBYTE
    assert account.post("/TraceSegments", exact).status == 200
    try:
        answer = account.post("/TraceSegments", exact + b" ")
        assert (answer.status, answer.error) == (413, "RequestEntityTooLargeException")
    except OSError:
        pass  # the server may close while we still send


def raw(server, data, wait=True, timeout=30):
    """Sends bytes as they are; returns what comes back until the server closes or stops."""
    with socket.create_connection(("127.0.0.1", server.api_port), timeout=timeout) as connection:
        connection.sendall(data)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
                if not wait:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def test_wrong_framing_is_refused_or_closed(server, account):
    headers = account.headers("/TraceSegments", b"{}")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name.lower() != "content-length")
    host = f"Host: 127.0.0.1:{server.api_port}\r\n"
    start = "POST /TraceSegments HTTP/1.1\r\n"
    for framing in (
        "Content-Length: nonsense\r\n", "Content-Length: -1\r\n", "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 99999999999999999999\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
    ):
        answer = raw(server, (start + host + lines + framing + "Connection: close\r\n\r\n{}").encode(), timeout=5)
        assert answer == b"" or answer.split()[1][:1] == b"4", (framing, answer[:200])
    # Less than announced and then nothing more: the client hung up, so nobody is answered and nothing leaks.
    with socket.create_connection(("127.0.0.1", server.api_port)) as connection:
        connection.sendall((start + host + lines + "Content-Length: 1000\r\n\r\n{}").encode())
    # More than announced: the rest is read as another request, which it is not.
    answer = raw(server, (start + host + lines + "Content-Length: 2\r\n\r\n{}garbage garbage\r\n\r\n").encode(), timeout=5)
    assert answer.split()[1] == b"400"
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\r\n" * 100 + b"x", b"POST / HTTP/9.9\r\n\r\n", b"A" * 200_000):
        answer = raw(server, junk, timeout=2)
        assert answer == b"" or answer.split()[1][:1] in (b"4", b"5") and answer.split()[1] != b"500", (junk[:20], answer[:100])


def test_headers_without_end_are_cut_off(server):
    answer = raw(server, b"POST /TraceSegments HTTP/1.1\r\n" + b"".join(b"X-H%d: %s\r\n" % (n, b"y" * 1000) for n in range(500)) + b"\r\n", timeout=10)
    assert answer == b"" or answer.split()[1][:1] == b"4"


def test_chunked_bodies_are_read(server, account):
    document = segment(name="chunked")
    body = json.dumps({"TraceSegmentDocuments": [json.dumps(document)]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=10)
    headers = {name: value for name, value in account.headers("/TraceSegments", body).items() if name.lower() != "content-length"}
    connection.request("POST", "/TraceSegments", iter([body[:10], body[10:]]), headers, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    assert account.traces(document["trace_id"])


def test_slow_senders_get_408_and_others_do_not_wait(server, account):
    headers = account.headers("/TraceSegments", b"{}" * 100)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /TraceSegments HTTP/1.1\r\nHost: 127.0.0.1:{server.api_port}\r\n{lines}Content-Length: 200\r\n\r\n".encode()
    slow = [socket.create_connection(("127.0.0.1", server.api_port), timeout=40) for _ in range(50)]
    began = time.monotonic()
    for connection in slow:
        connection.sendall(head + b"{")
    worst = 0
    while time.monotonic() - began < 3:
        called = time.monotonic()
        account.put(segment())
        worst = max(worst, time.monotonic() - called)
    assert worst < 1.0, f"a normal client waited {worst} s"
    for connection in slow:
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        assert answer.startswith(b"HTTP/1.1 408"), answer[:100]
        connection.close()
    assert 15 <= time.monotonic() - began <= 35


def test_ten_thousand_idle_connections_disturb_nobody(server, account):
    before = resident_bytes(server)
    idle = []
    try:
        for _ in range(10_000):
            idle.append(socket.create_connection(("127.0.0.1", server.api_port), timeout=10))
        began = time.monotonic()
        for _ in range(50):
            account.put(segment())
        assert time.monotonic() - began < 5
        assert resident_bytes(server) - before < 400 * MEBIBYTE
    finally:
        for connection in idle:
            connection.close()
    wait_for(lambda: account.call("GetEncryptionConfig").status == 200, 10)


def test_forged_page_tokens_are_refused(account):
    window = {"StartTime": 1_700_000_000, "EndTime": 1_700_000_010}
    for token in ("", "x", "A" * 1024, "A" * 5000, "\u0000", "../..", "é" * 200):
        for operation in ("GetTraceSummaries", "GetServiceGraph"):
            answer = account.call(operation, {**window, "NextToken": token})
            if token == "":
                assert answer.status in (200, 400)
            else:
                assert (answer.status, answer.error) == (400, "InvalidRequestException"), (operation, token, answer)
                assert "NextToken" in answer.message


def test_cycles_and_self_parents_end(server, account):
    start = 1_700_000_000
    trace, loop, alone = trace_id(start), trace_id(start), trace_id(start)
    a, b, c = hex_id(), hex_id(), hex_id()

    def part(id, parent, kind="subsegment", trace=trace, **fields):
        return {**segment(trace, "n", start, 0.5, **fields), "id": id, "parent_id": parent, **({"type": kind} if kind == "subsegment" else {})}

    account.put(part(a, b), part(b, c), part(c, a))
    assert account.traces(trace)[0]["Segments"] == []
    account.put(part(a, b, "segment", loop), part(b, c, "segment", loop), part(c, a, "segment", loop))
    assert len(account.traces(loop)[0]["Segments"]) == 3
    account.put(part(a, a, "segment", alone), part(b, b, "subsegment", alone))
    assert len(account.traces(alone)[0]["Segments"]) == 1
    assert len(account.summaries(start, start + 1)) == 2
    assert account.graph(start, start + 10)
    server.verify(start, start + 10, account.account)


def test_a_hundred_thousand_children(server):
    """In one trace, on a server without a limit for the size of traces."""
    from beamline import Server

    big = Server(flags=["--max-trace-bytes", "0"]).start()
    try:
        account, start = big.root(), 1_700_000_000
        trace = trace_id(start)
        root = segment(trace, "crowd", start, 100.0)
        account.put(root)
        children = [f'{{"id":"{number + 1:016x}","name":"c","start_time":{start + 1},"end_time":{start + 2}}}' for number in range(100_000)]
        documents = []
        for first in range(0, len(children), 780):
            documents.append(
                f'{{"type":"subsegment","trace_id":"{trace}","parent_id":"{root["id"]}","id":"{hex_id()}","name":"p","start_time":{start},"end_time":{start + 3},'
                f'"subsegments":[{",".join(children[first:first + 780])}]}}')
        assert max(map(len, documents)) <= 65_536
        began = time.monotonic()
        account.put(*documents)
        found = account.traces(trace)
        while sum(len(part.get("subsegments", [])) for part in found[0]["Segments"][0].get("subsegments", [])) < 100_000:
            assert time.monotonic() - began < 60, "100,000 children were not readable within a minute"
            found = account.traces(trace)
        assert counts(node(account.graph(start, start + 200), "crowd")) == (1, 0, 0, 0)
        (summary,) = account.summaries(start, start + 1)
        assert summary["Duration"] == 100.0
        assert big.process.poll() is None
    finally:
        big.remove()


def test_random_bytes_never_cause_a_500(account_of_module):
    random.seed(20240501)
    good = json.dumps({"TraceSegmentDocuments": [json.dumps(segment(subsegments=[subsegment("x", time.time())]))]}).encode()
    for round in range(300):
        body = bytearray(good)
        for _ in range(random.randrange(1, 8)):
            position = random.randrange(len(body))
            choice = random.random()
            if choice < 0.4:
                body[position] = random.randrange(256)
            elif choice < 0.7:
                del body[position:position + random.randrange(1, 20)]
            else:
                body[position:position] = random.choice([b"{", b"]", b'"', b"\\", b"\\u0000", b"null", b"1e999", b"\x00", b"\xf0"])
            if not body:
                break
        path = random.choice(list(PATHS.values()))
        answer = account_of_module.post(path, bytes(body))
        assert answer.status in (200, 400), (round, path, answer)
