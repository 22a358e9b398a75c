"""What somebody meets who has the README alone: keys in files, keys that are lost, slips in addresses and names, backups."""

import configparser
import os
import shutil
import subprocess
import time

import pytest

from beamline import BINARY, Cluster, Server, free_port, run, segment, temporary_folder, trace_id, wait_for

OTHER = "210987654321"


def profiles(path):
    parser = configparser.RawConfigParser()
    parser.read(path)
    return {name: parser[name]["aws_access_key_id"] for name in parser.sections() if "aws_access_key_id" in parser[name]}


def exports(server):
    """What the last start printed to be pasted."""
    text = server.output.read_text().rsplit("Paste into a shell:", 1)[1]
    return dict(part.split("=", 1) for line in text.splitlines() if line.startswith("export ") for part in line.removeprefix("export ").split())


@pytest.fixture
def own():
    """A server of the test's own."""
    server = Server().start()
    yield server
    server.remove()


def start_fails(server):
    """The sentence that a start ends with."""
    done = subprocess.run(server.command(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, done.stdout
    return done.stderr


# Keys in files


def test_a_new_key_leaves_the_other_keys_of_the_file_alone(server, account):
    file = server.data_dir.parent / f"aws-{account.account}"
    before = "# kept\n[default]\naws_access_key_id = AKIAMINE\naws_secret_access_key = mine\nregion = eu-west-1\n"
    file.write_text(before)
    file.chmod(0o644)
    done = server.administer("key", "create", account.account, "--role", "read", "--credentials", file, check=False)
    assert done.returncode == 1 and "has a profile `default` already" in done.stderr and file.read_text() == before
    server.administer("key", "create", account.account, "--role", "read", "--credentials", file, "--profile", "beamline")
    assert file.read_text().startswith(before) and set(profiles(file)) == {"default", "beamline"}
    assert file.stat().st_mode & 0o777 == 0o600
    first = profiles(file)["beamline"]
    server.administer("key", "create", account.account, "--role", "write", "--credentials", file, "--profile", "beamline", "--force")
    assert file.read_text().startswith(before) and profiles(file)["beamline"] != first
    # What cannot be written makes neither key nor account.
    done = server.administer("account", "create", "199999999999", "--credentials", file, check=False)
    assert done.returncode == 1 and "already" in done.stderr
    assert "199999999999" not in server.administer("account", "list").stdout


def test_a_start_with_another_account_keeps_the_first_key(own):
    file = own.data_dir / "credentials"
    first = file.read_text()
    assert exports(own)["AWS_PROFILE"] == "default"
    own.stop()
    own.flags = ["--account", OTHER]
    own.start()
    assert file.read_text().startswith(first) and set(profiles(file)) == {"default", OTHER}
    text = own.output.read_text().rsplit("is ready after", 1)[1]
    assert "First start" not in text and f"profile `{OTHER}`" in text and exports(own)["AWS_PROFILE"] == OTHER
    done = subprocess.run(
        ["aws", "xray", "get-encryption-config"], capture_output=True, text=True, timeout=60, env={**os.environ, **exports(own), "AWS_PAGER": ""})
    assert done.returncode == 0, done.stderr
    own.stop()
    own.flags = []
    own.start()
    assert exports(own)["AWS_PROFILE"] == "default" and set(profiles(file)) == {"default", OTHER}
    # A file that is lost is not exported; the line printed instead makes a key that works.
    own.stop()
    file.unlink()
    own.start()
    assert "AWS_SHARED_CREDENTIALS_FILE" not in exports(own)
    words = own.output.read_text().rsplit("this makes one: beamline ", 1)[1].splitlines()[0].split()
    run(*words)
    assert set(profiles(file)) == {"123456789012"}
    own.stop()
    own.start()
    assert exports(own)["AWS_PROFILE"] == "123456789012"


# The master key


def test_no_server_starts_without_the_master_key_of_its_database(own):
    key, away = own.data_dir / "master.key", own.data_dir / "master.key.away"
    own.stop()
    key.rename(away)
    assert "there is no master key file" in start_fails(own) and not key.exists()
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    assert "opens none of 1 stored access key:" in start_fails(own)
    for command in (["key", "create", "123456789012"], ["account", "create", OTHER, "--credentials", own.base / "x"]):
        done = own.administer(*command, check=False)
        assert done.returncode == 1 and "opens none" in done.stderr
    assert OTHER not in own.administer("account", "list").stdout
    away.replace(key)
    own.start()
    assert own.root().call("GetGroups", {}).status == 200


def test_no_node_starts_without_the_master_key_of_its_database(database):
    cluster = Cluster(database).migrate()
    try:
        ingest = cluster.start("ingest")
        cluster.new_account(ingest)
        ingest.stop()
        missing = cluster.folder / "missing.key"
        done = run("migrate", "--database-url", cluster.url, "--master-key", missing, check=False)
        assert done.returncode == 1 and "access key stored under one" in done.stderr and not missing.exists()
        wrong = cluster.folder / "wrong.key"
        wrong.write_bytes(os.urandom(32))
        wrong.chmod(0o600)
        for role in ("ingest", "query"):
            for path, words in ((wrong, "opens none"), (missing, f"beamline migrate --master-key {missing}")):
                node = cluster.node(role)
                command = [str(path) if word == str(cluster.master_key) else word for word in node.command()]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert done.returncode != 0 and words in done.stderr, done.stderr
    finally:
        cluster.remove()


# Commands that find nothing to do


@pytest.mark.parametrize("expression, words", [
    ('group.name = "all"', "no trace"), ("", "every trace"), ("service()", ""), ("!annotation.x", ""), ("rootcause.json = #[{}]", ""),
])
def test_explain_answers_whatever_the_plan_is(server, account, expression, words):
    account.put(segment(trace_id(), start=time.time() - 10))
    done = server.administer("explain", expression, "--from", "1h", "--account", account.account)
    assert "matches" in done.stdout and words in done.stdout, done.stdout


def test_an_account_that_is_not_there_is_an_error(server):
    for command in (
        ["verify", "--from", "1h", "--account", "999999999999"], ["explain", "fault", "--from", "1h", "--account", "999999999999"],
        ["key", "list", "--account", "999999999999"], ["inbox", "--account", "999999999999"],
    ):
        done = server.administer(*command, check=False)
        assert done.returncode == 1 and "there is no account 999999999999" in done.stderr, (command, done)


def test_a_wrong_time_is_one_sentence(server):
    for command in (["verify", "--from", "yesterday"], ["verify", "--from", "1h", "--to", "2h"], ["explain", "fault", "--from", "x"]):
        done = server.administer(*command, check=False)
        assert done.returncode == 1 and "Usage" not in done.stderr and "--from" in done.stderr, done.stderr


def test_an_account_created_again_is_told_of_its_old_traces(server):
    caller = server.new_account("345678901234")
    caller.put(segment())
    caller.summaries(int(time.time()) - 60, int(time.time()) + 1)
    server.administer("account", "delete", caller.account)
    assert "traces of a deleted account" in server.administer("account", "create", caller.account).stdout


def test_the_data_of_another_user_are_not_called_missing(own):
    # Root may look into everything, so another user is asked; without root, the folder is closed to us.
    other = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    mode = own.data_dir.stat().st_mode & 0o777
    if not other:
        own.data_dir.chmod(0)
    done = subprocess.run([BINARY, "status", "--data-dir", own.data_dir], capture_output=True, text=True, timeout=30, cwd="/", **other)
    own.data_dir.chmod(mode)
    assert done.returncode == 1 and "Permission denied" in done.stderr, done.stderr


@pytest.mark.parametrize("flags, words", [
    (["--database-url", "junk"], "--database-url must be a URL"), (["--retention-days", "-1"], "--retention-days must be a whole number"),
    (["--tls-certificate", "/nope", "--tls-key", "/nope"], "/nope (--tls-certificate): the file does not exist"),
])
def test_a_slip_in_a_flag_is_one_sentence(flags, words):
    folder = temporary_folder("beamline-flags-")
    done = subprocess.run(
        [BINARY, "standalone", "--data-dir", folder / "data", "--api", f"127.0.0.1:{free_port()}", "--daemon", "off", "--metrics", "off", *flags],
        capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and words in done.stderr, done.stderr


def test_a_node_names_the_role_that_serves_an_operation(database):
    cluster = Cluster(database).migrate()
    try:
        ingest, query = cluster.start("ingest"), cluster.start("query")
        caller = cluster.new_account(ingest)
        assert caller.refusal("GetGroups", {}) == ("UnknownOperationException", "GetGroups is served by the query nodes, not by this one")
        error, message = caller.at(query).refusal("PutTraceSegments", {"TraceSegmentDocuments": ["{}"]})
        assert error == "UnknownOperationException" and "served by the ingest nodes" in message
    finally:
        cluster.remove()


# The load generator


def test_load_says_at_once_that_nobody_listens(server, account):
    began = time.monotonic()
    done = server.run(
        "load", "--endpoint", f"http://127.0.0.1:{free_port()}", "--credentials", account.credentials_file, "--duration", 30, check=False)
    assert done.returncode == 1 and "cannot connect" in done.stderr and time.monotonic() - began < 10


def test_load_does_not_try_again_what_will_be_refused_again(server, account):
    began = time.monotonic()
    done = server.run(
        "load", "--endpoint", server.endpoint, "--duration", 40, check=False,
        environment={**account.environment(), "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert done.returncode == 1 and "InvalidSignatureException" in done.stdout and time.monotonic() - began < 30


def test_a_short_check_compares_something(server, account):
    done = server.run(
        "load", "--endpoint", server.endpoint, "--credentials", account.credentials_file, "--check", "--duration", 3, "--rate", 40, timeout=120)
    compared = [int(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("check ")]
    assert len(compared) == 3 and all(compared), done.stdout


def test_a_throttled_load_ends():
    server = Server(flags=["--ingest-rate", "5"]).start()
    try:
        began = time.monotonic()
        server.run(
            "load", "--endpoint", server.endpoint, "--credentials", server.data_dir / "credentials", "--visibility", "--duration", 4, "--rate", 40,
            check=False, timeout=110)
        assert time.monotonic() - began < 90
    finally:
        server.remove()


# Backup and restore, as the README has them


def stored(server):
    caller = server.root()
    document = segment(name="kept", start=time.time() - 20)
    caller.put(document)
    assert caller.summaries(int(time.time()) - 60, int(time.time()) + 1)
    return document["trace_id"]


def read_back(server, trace):
    caller = server.root()
    found = caller.read("BatchGetTraces", {"TraceIds": [trace]})["Traces"]
    assert [one["Id"] for one in found] == [trace]
    caller.put(segment(name="after"))
    assert len(caller.summaries(int(time.time()) - 60, int(time.time()) + 1)) == 2
    assert server.verify(time.time() - 60, time.time() + 1) > 0


def test_a_stopped_folder_can_be_copied_and_started(own):
    trace = stored(own)
    own.stop()
    copy = own.base / "copy"
    subprocess.run(["cp", "-a", own.data_dir, copy], check=True)
    shutil.rmtree(own.data_dir)
    restored = Server(copy).start()
    try:
        read_back(restored, trace)
    finally:
        restored.stop()


def test_a_dump_of_a_running_standalone_goes_into_an_empty_database(own, database):
    trace = stored(own)
    dump = own.base / "beamline.dump"
    subprocess.run(
        ["pg_dump", "-h", own.data_dir / "postgres", "-U", "beamline", "-Fc", "-f", dump, "postgres"], check=True, capture_output=True, timeout=60)
    own.stop()
    url = database.url(database.create())
    subprocess.run(["pg_restore", "--no-owner", "--exit-on-error", "-d", url, dump], check=True, capture_output=True, timeout=60)
    restored = Server(own.base / "restored", flags=["--database-url", url])
    restored.data_dir.mkdir(mode=0o700)
    for name in ("master.key", "credentials"):
        shutil.copy2(own.data_dir / name, restored.data_dir / name)
    restored.start()
    try:
        caller = restored.root()
        assert caller.read("BatchGetTraces", {"TraceIds": [trace]})["Traces"]
        done = run("verify", "--from", int(time.time()) - 60, "--database-url", url)
        assert "no difference" in done.stdout
        caller.put(segment(name="after"))
        # The dump has the leases of the server that was running; they end within five seconds.
        wait_for(lambda: len(caller.summaries(int(time.time()) - 60, int(time.time()) + 1)) == 2, 15, "a new trace beside the restored one")
    finally:
        restored.stop()
