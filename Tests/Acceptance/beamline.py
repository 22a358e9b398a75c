"""What the acceptance tests share: running servers, signed calls as bytes, documents, and waiting.

A `Server` is one `beamline standalone` with a data folder of its own on free ports below the ephemeral ones. A `Caller`
is one access key: it signs raw requests (so that a test can send what no SDK would) and makes boto3 clients.
"""

import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("BEAMLINE", str(ROOT / ".build/release/beamline"))
EXAMPLES = Path(__file__).parent / "examples"
REGION = "us-east-1"

PATHS = {
    "PutTraceSegments": "/TraceSegments",
    "PutTelemetryRecords": "/TelemetryRecords",
    "BatchGetTraces": "/Traces",
    "GetTraceSummaries": "/TraceSummaries",
    "GetServiceGraph": "/ServiceGraph",
    "GetTraceGraph": "/TraceGraph",
    "GetEncryptionConfig": "/EncryptionConfig",
}


def wait_for(condition, timeout=15.0, what="the condition"):
    """Calls `condition` until it returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not become true within {timeout} s (last: {value!r})")
        time.sleep(0.02)


_taken = set()


def free_port(kind=socket.SOCK_STREAM):
    """A port nobody listens on, below 32768: higher ones are handed to outgoing connections."""
    for _ in range(1000):
        port = random.randrange(20000, 30000)
        if port in _taken:
            continue
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _taken.add(port)
        return port
    raise AssertionError("no free port")


def temporary_folder(prefix):
    """A folder that another user (the one PostgreSQL runs as when we are root) can pass through."""
    folder = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
    os.chmod(folder, 0o755)
    return Path(folder)


class Server:
    """One `beamline standalone`."""

    def __init__(self, data_dir=None, *, flags=()):
        self.base = None if data_dir else temporary_folder("beamline-acceptance-")
        self.data_dir = Path(data_dir) if data_dir else self.base / "data"
        self.api_port = free_port()
        self.daemon_port = free_port(socket.SOCK_DGRAM)
        self.metrics_port = free_port()
        self.flags = list(flags)
        self.process = None
        self.output = None
        self.start_seconds = None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def daemon_address(self):
        return f"127.0.0.1:{self.daemon_port}"

    def command(self):
        return [
            BINARY, "standalone", "--data-dir", str(self.data_dir), "--api", f"127.0.0.1:{self.api_port}",
            "--daemon", self.daemon_address, "--metrics", f"127.0.0.1:{self.metrics_port}", *self.flags,
        ]

    def start(self, timeout=60):
        log = self.data_dir.parent / f"{self.data_dir.name}.log"
        self.output = log
        began = time.monotonic()
        with open(log, "ab") as out:
            self.process = subprocess.Popen(self.command(), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        wait_for(self.is_ready_or_dead, timeout, "readyz")
        self.start_seconds = time.monotonic() - began
        if self.process.poll() is not None:
            raise AssertionError(f"standalone ended with {self.process.returncode}:\n{self.log_text()}")
        return self

    def log_text(self):
        return self.output.read_text(errors="replace")[-4000:] if self.output and self.output.exists() else ""

    def is_ready_or_dead(self):
        return self.process.poll() is not None or self.is_ready()

    def is_ready(self):
        return self.get("/readyz") == 200

    def get(self, path):
        """Status of an unsigned GET, or None when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return None
        except http.client.HTTPException:
            return None
        finally:
            connection.close()

    def stop(self, timeout=15):
        """SIGTERM; returns the exit code."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise AssertionError(f"standalone did not stop within {timeout} s of SIGTERM:\n{self.log_text()}")
        return self.process.returncode if self.process else None

    def kill(self):
        """kill -9 of the beamline process alone; its PostgreSQL keeps running."""
        self.process.kill()
        self.process.wait()

    def remove(self):
        self.stop()
        if self.base:
            shutil.rmtree(self.base, ignore_errors=True)

    def postgres_pid(self):
        try:
            return int((self.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError):
            return None  # not there, or being written

    def cpu_seconds(self):
        """Processor time of the beamline process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metrics(self):
        """Metric name with labels → value."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def run(self, *arguments, check=True, timeout=120, environment=None):
        """One `beamline` command; its data folder is added by the caller where the command takes one."""
        done = subprocess.run(
            [BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
            env={**os.environ, **(environment or {})})
        if check and done.returncode != 0:
            raise AssertionError(f"beamline {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def administer(self, *arguments, **options):
        """A command that works on this server's data folder."""
        return self.run(*arguments, "--data-dir", self.data_dir, **options)

    def root(self):
        """The key that the first start wrote."""
        return Caller(self, *read_credentials(self.data_dir / "credentials"), account="123456789012")

    _accounts = itertools.count(1)

    def new_account(self, number=None):
        """A fresh account and its root key: tests that use one see nobody else's traces."""
        account = number or f"{700_000_000_000 + next(Server._accounts):012d}"
        file = self.data_dir.parent / f"credentials-{account}"
        self.administer("account", "create", account, "--credentials", file)
        return Caller(self, *read_credentials(file), account=account, credentials_file=file)

    def new_key(self, account, role):
        file = self.data_dir.parent / f"credentials-{account}-{role}-{random.getrandbits(32):x}"
        self.administer("key", "create", account, "--role", role, "--credentials", file)
        return Caller(self, *read_credentials(file), account=account, credentials_file=file)

    def verify(self, start, end, account=None, check=True):
        """`beamline verify` against the tables; returns the number of observations compared."""
        extra = ["--account", account] if account else []
        done = self.administer("verify", "--from", int(start), "--to", int(end), *extra, check=check)
        if not check:
            return done
        return sum(int(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("account "))


def read_credentials(path):
    values = dict(line.split(" = ") for line in Path(path).read_text().splitlines() if " = " in line)
    return values["aws_access_key_id"].strip(), values["aws_secret_access_key"].strip()


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.headers.get("x-amzn-errortype")

    @property
    def message(self):
        return self.json.get("message")

    def __repr__(self):
        return f"<{self.status} {self.error or ''} {self.body[:300]!r}>"


class Caller:
    """One access key of one server."""

    def __init__(self, server, access_key, secret, account, credentials_file=None):
        self.server = server
        self.access_key = access_key
        self.secret = secret
        self.account = account
        self.credentials_file = credentials_file or server.data_dir / "credentials"

    def boto3(self, **config):
        return boto3.client(
            "xray", endpoint_url=self.server.endpoint, region_name=REGION, aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret, config=Config(retries={"max_attempts": 1, "mode": "standard"}, **config))

    def environment(self):
        """For the AWS CLI and for commands that read the usual variables."""
        return {
            "AWS_ENDPOINT_URL_XRAY": self.server.endpoint, "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_PAGER": "",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def cli(self, *arguments, check=True):
        """`aws xray …`; its parsed output."""
        done = subprocess.run(
            ["aws", "xray", *map(str, arguments), "--output", "json"], capture_output=True, text=True, timeout=60,
            env={**os.environ, **self.environment()})
        if not check:
            return done
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def headers(self, path, body, headers=None):
        request = AWSRequest(
            method="POST", url=self.server.endpoint + path, data=body,
            headers={"Content-Type": "application/json", **(headers or {})})
        SigV4Auth(Credentials(self.access_key, self.secret), "xray", REGION).add_auth(request)
        return dict(request.headers)

    def post(self, path, body, headers=None, timeout=30):
        """Signs and sends exactly these bytes."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.server.api_port, timeout=timeout)
        try:
            connection.request("POST", path, body, self.headers(path, body, headers))
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def call(self, operation, request=None, headers=None, timeout=30):
        """An operation by name; the answer whatever its status."""
        return self.post(PATHS.get(operation, "/" + operation), request if request is not None else {}, headers, timeout)

    def read(self, operation, request=None, headers=None):
        """An operation that must succeed; its parsed answer."""
        answer = self.call(operation, request, headers)
        assert answer.status == 200, answer
        return answer.json

    def put(self, *documents):
        """Sends documents (dicts or text) in one call; none may be refused."""
        texts = [document if isinstance(document, str) else json.dumps(document) for document in documents]
        for start in range(0, len(texts), 50):
            answer = self.read("PutTraceSegments", {"TraceSegmentDocuments": texts[start:start + 50]})
            assert answer == {"UnprocessedTraceSegments": []}, answer

    def traces(self, *ids):
        """BatchGetTraces; documents parsed."""
        traces = self.read("BatchGetTraces", {"TraceIds": list(ids)})["Traces"]
        for trace in traces:
            trace["Segments"] = [json.loads(segment["Document"]) for segment in trace["Segments"]]
        return traces

    def summaries(self, start, end, **more):
        """All pages of GetTraceSummaries, freshly committed documents included."""
        request = {"StartTime": start, "EndTime": end, **more}
        found = []
        while True:
            page = self.read("GetTraceSummaries", request, FRESH)
            found += page["TraceSummaries"]
            if "NextToken" not in page:
                return found
            request["NextToken"] = page["NextToken"]

    def graph(self, start, end):
        """`Services` of GetServiceGraph, freshly committed documents included."""
        return self.read("GetServiceGraph", {"StartTime": start, "EndTime": end}, FRESH)["Services"]


FRESH = {"x-beamline-consistency": "fresh"}


def hex_id(digits=16):
    return f"{random.getrandbits(4 * digits):0{digits}x}"


def trace_id(seconds=None):
    return f"1-{int(seconds if seconds is not None else time.time()):08x}-{hex_id(24)}"


def segment(trace=None, name="service", start=None, duration=0.25, **fields):
    """A complete segment document."""
    start = time.time() - 1 if start is None else start
    document = {"trace_id": trace or trace_id(start), "id": hex_id(), "name": name, "start_time": start}
    if duration is not None:
        document["end_time"] = round(start + duration, 6)
    return {**document, **fields}


def subsegment(name, start, duration=0.1, **fields):
    """An embedded subsegment."""
    document = {"id": hex_id(), "name": name, "start_time": start}
    if duration is not None:
        document["end_time"] = round(start + duration, 6)
    return {**document, **fields}


def node(services, name, type=None):
    """The service of that name and type, or None."""
    found = [service for service in services if service["Name"] == name and service.get("Type") == type]
    assert len(found) <= 1
    return found[0] if found else None


def edge(services, source, destination):
    """The edge between two services, or None."""
    found = [edge for edge in source["Edges"] if edge["ReferenceId"] == destination["ReferenceId"]]
    return found[0] if found else None


def counts(subject):
    """(ok, error, throttle, fault) of a service or edge."""
    statistics = subject["SummaryStatistics"]
    return (
        statistics["OkCount"], statistics["ErrorStatistics"]["OtherCount"], statistics["ErrorStatistics"]["ThrottleCount"],
        statistics["FaultStatistics"]["TotalCount"],
    )
