"""Calls from web pages of other origins: preflights and real requests as a browser sends them (`--cors-allowed-origins`)."""

import http.client
import json
import time

import pytest

from beamline import Answer, Server, segment

PAGE = "https://console.example.com"
OTHER = "http://localhost:3000"
REAL = {"access-control-allow-origin": PAGE, "vary": "Origin", "access-control-expose-headers": "x-amzn-RequestId, x-amzn-ErrorType, Date"}


@pytest.fixture(scope="module")
def open_server():
    server = Server(flags=["--cors-allowed-origins", f"{PAGE}, {OTHER}"]).start()
    yield server
    server.remove()


def send(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def preflight(server, path, origin):
    """As the AWS SDK for JavaScript makes a browser ask."""
    asked = "amz-sdk-invocation-id,amz-sdk-request,authorization,content-type,x-amz-content-sha256,x-amz-date,x-amz-user-agent"
    return send(server, "OPTIONS", path, headers={
        "Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked})


def shared(answer):
    """The headers that CORS adds."""
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-") or name == "vary"}


# If this fails, a page that the operator allowed cannot send traces or read them.
def test_a_page_of_an_allowed_origin_sends_and_reads(open_server):
    caller = open_server.root()
    for origin in [PAGE, OTHER]:
        asked = preflight(open_server, "/TraceSegments", origin)
        assert (asked.status, asked.body) == (204, b"")
        assert asked.headers["access-control-allow-origin"] == origin
    allowed = [name.strip() for name in asked.headers["access-control-allow-headers"].split(",")]
    assert {"authorization", "content-type", "content-encoding", "x-amz-date", "x-amz-user-agent", "amz-sdk-request"} <= set(allowed)
    assert asked.headers["access-control-allow-methods"] == "POST, OPTIONS" and asked.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in asked.headers

    document = segment(name="page", start=time.time() - 1)
    sent = caller.post("/TraceSegments", {"TraceSegmentDocuments": [json.dumps(document)]}, {"Origin": PAGE})
    assert sent.status == 200 and shared(sent) == REAL
    assert preflight(open_server, "/Traces", PAGE).status == 204
    read = caller.post("/Traces", {"TraceIds": [document["trace_id"]]}, {"Origin": PAGE})
    assert read.status == 200 and shared(read) == REAL
    assert [trace["Id"] for trace in read.json["Traces"]] == [document["trace_id"]]
    refused = caller.post("/Traces", {"TraceIds": ["nonsense"]}, {"Origin": PAGE})
    assert refused.error == "InvalidRequestException" and shared(refused) == REAL


# If this fails, whoever runs a page on an allowed origin needs no key.
def test_an_allowed_origin_still_has_to_sign(open_server):
    unsigned = send(open_server, "POST", "/TraceSegments", b"{}", {"Origin": PAGE})
    assert (unsigned.status, unsigned.error) == (403, "MissingAuthenticationTokenException") and shared(unsigned) == REAL
    headers = open_server.root().headers("/Traces", b'{"TraceIds":["1-5759e988-bd862e3fe1be46a994272793"]}', {"Origin": PAGE})
    changed = send(open_server, "POST", "/Traces", b'{"TraceIds":["1-5759e988-bd862e3fe1be46a994272794"]}', headers)
    assert (changed.status, changed.error) == (403, "InvalidSignatureException") and shared(changed) == REAL


# If this fails, a page that nobody allowed can use keys it got hold of from somebody's browser.
def test_other_origins_get_nothing(open_server):
    for origin in ["https://evil.example.com", "null", PAGE + ".evil.example", PAGE + ":444"]:
        asked = preflight(open_server, "/TraceSegments", origin)
        assert asked.status == 403 and shared(asked) == {"vary": "Origin"}
        answered = open_server.root().post("/Groups", {}, {"Origin": origin})
        assert answered.status == 200 and shared(answered) == {"vary": "Origin"}


# If this fails, a server opens itself to web pages although nobody asked for it.
def test_without_the_setting_there_is_no_cors(server):
    assert preflight(server, "/TraceSegments", PAGE).status == 403
    answered = server.root().post("/Groups", {}, {"Origin": PAGE})
    assert answered.status == 200 and shared(answered) == {}
