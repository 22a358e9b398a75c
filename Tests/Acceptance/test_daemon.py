"""The UDP daemon port, by hand and with an application that uses aws-xray-sdk."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

from beamline import segment, subsegment, trace_id, wait_for

HEADER = b'{"format": "json", "version": 1}\n'


def send(server, *datagrams):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in datagrams:
            sender.sendto(datagram, ("127.0.0.1", server.daemon_port))


def datagrams(server, outcome):
    return server.metrics().get(f'beamline_daemon_datagrams_total{{outcome="{outcome}"}}', 0)


def test_datagrams_reach_the_listeners_account(server):
    root = server.root()
    document = segment(name="over-udp")
    send(server, HEADER + json.dumps(document).encode())
    wait_for(lambda: root.traces(document["trace_id"]), 10, "the trace sent by UDP")
    part = {**subsegment("part", document["start_time"], 0.1), "type": "subsegment", "trace_id": document["trace_id"], "parent_id": document["id"]}
    send(server, b'{"version":1,"format":"JSON"}\n' + json.dumps(part).encode() + b"\n")
    wait_for(lambda: "subsegments" in root.traces(document["trace_id"])[0]["Segments"][0], 10, "the subsegment sent by UDP")


def test_bad_datagrams_are_counted_and_do_no_harm(server):
    received, refused = datagrams(server, "received"), datagrams(server, "refused")
    bad = [
        b"x", b"no header at all", b"{}\n{}", b'{"format":"json","version":2}\n{}', b'{"format":"xml","version":1}\n{}', HEADER,
        HEADER + b"not json", HEADER + b'{"name":"no id"}', b'{"format":"json","version":"1"}\n{}', b"\xff\xfe\n{}", HEADER + b"[" * 20000,
    ]
    send(server, *bad)
    wait_for(lambda: datagrams(server, "received") >= received + len(bad), 10, "all datagrams to be received")
    wait_for(lambda: datagrams(server, "refused") >= refused + len(bad), 10, "all bad datagrams to be counted as refused")
    document = segment(name="after-bad-datagrams")
    send(server, HEADER + json.dumps(document).encode())
    wait_for(lambda: server.root().traces(document["trace_id"]), 10, "a good datagram after bad ones")


def test_the_largest_datagram_fits(server):
    document = segment(name="large")
    document["metadata"] = {"app": {"padding": ""}}
    document["metadata"]["app"]["padding"] = "x" * (65_507 - len(HEADER) - len(json.dumps(document)))
    datagram = HEADER + json.dumps(document).encode()
    assert len(datagram) == 65_507
    send(server, datagram)
    wait_for(lambda: server.root().traces(document["trace_id"]), 10, "a datagram of 65,507 bytes")


APPLICATION = textwrap.dedent('''
    import json, sys, time
    from aws_xray_sdk.core import xray_recorder
    from aws_xray_sdk.core import patch_all

    xray_recorder.configure(service="sdk-app", sampling=(sys.argv[1] == "sampled"), context_missing="RUNTIME_ERROR", daemon_address=None)
    ids = []
    for number in range(3):
        with xray_recorder.in_segment("sdk-app") as segment:
            segment.put_annotation("number", number)
            segment.put_metadata("key", {"nested": [1, 2, None]}, "space")
            segment.set_user("user-1")
            segment.put_http_meta("url", "http://app.example/checkout")
            segment.put_http_meta("method", "POST")
            segment.put_http_meta("status", 200 if number < 2 else 500)
            with xray_recorder.in_subsegment("downstream.example", namespace="remote") as call:
                call.put_http_meta("url", "http://downstream.example/")
                call.put_http_meta("status", 200)
            for part in range(40):  # more than the streaming threshold: subsegments go ahead on their own
                with xray_recorder.in_subsegment("part"):
                    pass
            try:
                with xray_recorder.in_subsegment("failing"):
                    raise ValueError("boom")
            except ValueError:
                pass
            ids.append(segment.trace_id)
    print(json.dumps(ids))
''')


def run_application(server, tmp_path, mode):
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    address = f"tcp:127.0.0.1:{server.api_port} udp:{server.daemon_address}"
    return subprocess.run(
        [sys.executable, str(script), mode], capture_output=True, text=True, timeout=60,
        env={**os.environ, "AWS_XRAY_DAEMON_ADDRESS": address})


def test_an_application_with_the_x_ray_sdk_just_works(server, tmp_path):
    root = server.root()
    began = time.time()
    done = run_application(server, tmp_path, "always")
    assert done.returncode == 0, done.stderr
    ids = json.loads(done.stdout)

    def whole():
        traces = root.traces(*ids)
        parts = [segment.get("subsegments", []) for trace in traces for segment in trace["Segments"] if segment["name"] == "sdk-app"]
        return traces if len(parts) == 3 and all(len(found) == 42 for found in parts) else None

    wait_for(whole, 10, "three traces with 42 subsegments each")
    summaries = {found["Id"]: found for found in root.summaries(int(began) - 1, int(began) + 60)}
    for number, found in enumerate(summaries[id] for id in ids):
        assert found["EntryPoint"]["Name"] == "sdk-app" and found["IsPartial"] is False
        assert found["Annotations"]["number"][0]["AnnotationValue"] == {"NumberValue": number}
        assert [user["UserName"] for user in found["Users"]] == ["user-1"]
        assert found["Http"]["HttpURL"] == "http://app.example/checkout" and found["HasFault"] == (number == 2)


def test_unsigned_sampling_calls_of_the_sdk_are_answered_and_the_sdk_falls_back(server, tmp_path):
    import requests

    for path, body in (("/GetSamplingRules", b"{}"), ("/GetSamplingRules", b""), ("/SamplingTargets", b'{"SamplingStatisticsDocuments":[]}')):
        answer = requests.post(server.endpoint + path, data=body, timeout=10)
        assert answer.status_code in (403, 404) and answer.headers["x-amzn-ErrorType"], path
    done = run_application(server, tmp_path, "sampled")
    assert done.returncode == 0, done.stderr
    assert server.is_ready()
