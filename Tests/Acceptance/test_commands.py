"""`verify`, `load`, health, metrics, and starting twice."""

import json
import subprocess
import time

import pytest

from beamline import BINARY, Server, counts, free_port, node, segment, subsegment, temporary_folder, trace_id, wait_for

START = 1_700_000_000


def test_verify_counts_and_finds_no_difference(server, account):
    for number in range(20):
        call = subsegment("db", START + number + 0.1, 0.1, namespace="remote")
        account.put(segment(trace_id(), "v", START + number, 0.5, subsegments=[call]))
    account.graph(START, START + 60)
    # Per trace: two nodes (v, db) and two edges (client → v, v → db).
    assert server.verify(START, START + 60, account.account) == 80
    assert server.verify(START, START + 10, account.account) == 40
    assert server.verify(START + 1000, START + 2000, account.account) == 0
    done = server.run("verify", "--from", START, "--to", START + 60, "--endpoint", server.endpoint, "--account", account.account, environment=account.environment())
    assert "80 observations compared" in done.stdout and "no difference" in done.stdout


def test_verify_finds_a_difference_and_exits_1():
    server = Server().start()
    try:
        account = server.root()
        account.put(*[segment(name="tampered", start=START + number) for number in range(3)])
        account.graph(START, START + 60)
        assert server.verify(START, START + 60) == 6
        database = find_database(server)
        assert database, "the private PostgreSQL can be reached over its socket"
        removed = psql_in(server, database, "DELETE FROM graph_blocks")
        assert removed.returncode == 0, removed.stderr
        done = server.verify(START, START + 60, check=False)
        assert done.returncode == 1 and "is missing from the graph that is served" in done.stdout
        done = server.run(
            "verify", "--from", START, "--to", START + 60, "--endpoint", server.endpoint, environment=account.environment(), check=False)
        assert done.returncode == 1 and "tampered" in done.stdout
    finally:
        server.remove()


def psql_in(server, database, statement):
    """Runs SQL in the server's own PostgreSQL, over the socket in its folder."""
    folder = next(server.data_dir.rglob("postmaster.pid")).parent
    command = ["psql", "-h", str(folder), "-U", "beamline", "-d", database, "-X", "-A", "-t", "-c", statement]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def find_database(server):
    for database in ("beamline", "postgres"):
        found = psql_in(server, database, "SELECT 1 FROM pg_tables WHERE tablename = 'graph_blocks'")
        if found.returncode == 0 and found.stdout.strip() == "1":
            return database


def test_load_sends_checks_and_reports(server, account):
    done = server.run(
        "load", "--endpoint", server.endpoint, "--credentials", account.credentials_file, "--duration", 2, "--rate", 2000, "--connections", 3,
        "--check", "--visibility", "--json", timeout=120)
    report = json.loads(done.stdout)
    assert report["good"] is True and report["documents"] >= 3500 and report["errors"] == {} and report["refusals"] == {}
    assert all(check["compared"] > 0 and check["differences"] == [] for check in report["checks"])
    assert 900 < report["document_bytes"] / report["documents"] < 1300
    assert report["probes"] > 0 and report["probes_timed_out"] == 0
    text = server.run("load", "--endpoint", server.endpoint, "--credentials", account.credentials_file, "--traces", 50, "--until-complete").stdout
    assert "acknowledged" in text and "end to end" in text
    window = (int(time.time()) - 120, int(time.time()) + 1)
    assert server.verify(*window, account.account) > 3500


def test_load_says_what_is_wrong(server, account):
    for arguments, words in (
        (["--endpoint", "https://x"], "plain HTTP"), (["--endpoint", server.endpoint, "--credentials", "/nonexistent"], "cannot read"),
        (["--documents-per-call", "51"], "from 1 to 50"),
    ):
        done = server.run("load", *arguments, check=False, environment=account.environment())
        assert done.returncode != 0 and words in done.stdout + done.stderr


def test_health_readiness_and_metrics(server, account):
    assert server.get("/healthz") == 200 and server.get("/readyz") == 200
    account.put(segment())
    account.call("PutTraceSegments", {"TraceSegmentDocuments": ["{}"]})
    values = wait_for(lambda: server.metrics(), 5)
    names = {name.split("{")[0] for name in values}
    for wanted in (
        "beamline_documents_accepted_total", "beamline_documents_refused_total", "beamline_log_append_seconds_count", "beamline_batch_records_count",
        "beamline_lag_records", "beamline_lag_seconds", "beamline_fold_seconds_count", "beamline_commit_seconds_count",
        "beamline_inbox_documents", "beamline_requests_total", "beamline_request_seconds_count", "beamline_daemon_datagrams_total",
    ):
        assert wanted in names, wanted
    assert any("resident" in name for name in names) and any("round_trips" in name for name in names)
    assert values['beamline_documents_accepted_total{source="http"}'] >= 1
    assert any(value >= 1 for name, value in values.items() if name.startswith("beamline_documents_refused_total") and "MissingId" in name)
    assert any(name.startswith("beamline_requests_total{") and "PutTraceSegments" in name and '"200"' in name for name in values)


def test_a_second_start_on_the_same_folder_is_refused_with_one_sentence(server):
    other = Server(server.data_dir)
    done = subprocess.run(other.command(), capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and "in use" in done.stderr + done.stdout and len((done.stderr + done.stdout).strip().splitlines()) == 1
    assert server.is_ready()


@pytest.mark.parametrize("flags, word", [
    (["--api", "nonsense"], "--api"), (["--account", "12"], "--account"), (["--max-trace-bytes", "-1"], "--max-trace-bytes"),
    (["--retention-days", "zero"], "--retention-days"), (["--nonsense", "1"], "--nonsense"),
])
def test_a_wrong_setting_stops_the_start_and_names_it(flags, word):
    folder = temporary_folder("beamline-settings-")
    done = subprocess.run(
        [BINARY, "standalone", "--data-dir", str(folder / "data"), *flags], capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and word in done.stderr + done.stdout
    assert not (folder / "data").exists() or not list((folder / "data").glob("*/PG_VERSION"))


def test_listeners_of_later_versions_say_so_and_the_others_can_be_off():
    server = Server(flags=["--console", f"127.0.0.1:{free_port()}", "--otlp-http", "off", "--otlp-grpc", "off"]).start()
    try:
        assert "console" in server.log_text()
        assert server.start_seconds <= 10
    finally:
        server.remove()


def test_what_the_start_prints_is_enough_to_send_and_read(server):
    text = server.output.read_text()
    settings = dict(part.split("=", 1) for line in text.splitlines() if line.startswith("export ") for part in line.removeprefix("export ").split())
    assert settings["AWS_ENDPOINT_URL_XRAY"] == server.endpoint and settings["AWS_XRAY_DAEMON_ADDRESS"] == server.daemon_address
    import os

    done = subprocess.run(
        ["aws", "xray", "get-encryption-config"], capture_output=True, text=True, timeout=60, env={**os.environ, **settings, "AWS_PAGER": ""})
    assert done.returncode == 0 and "NONE" in done.stdout, done.stderr
