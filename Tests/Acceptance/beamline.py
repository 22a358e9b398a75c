"""What the acceptance tests share: running servers, signed calls as bytes, documents, and waiting.

A `Server` is one `beamline standalone` with a data folder of its own on free ports below the ephemeral ones. A `Cluster`
is any number of `ingest`, `aggregate` and `query` processes over one PostgreSQL. A `Caller` is one access key: it signs
raw requests (so that a test can send what no SDK would) and makes boto3 clients.
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
    "GetTimeSeriesServiceStatistics": "/TimeSeriesServiceStatistics",
    "CreateGroup": "/CreateGroup",
    "UpdateGroup": "/UpdateGroup",
    "DeleteGroup": "/DeleteGroup",
    "GetGroup": "/GetGroup",
    "GetGroups": "/Groups",
    "TagResource": "/TagResource",
    "UntagResource": "/UntagResource",
    "ListTagsForResource": "/ListTagsForResource",
    "GetTraceSegmentDestination": "/GetTraceSegmentDestination",
    "UpdateTraceSegmentDestination": "/UpdateTraceSegmentDestination",
    "GetIndexingRules": "/GetIndexingRules",
    "UpdateIndexingRule": "/UpdateIndexingRule",
    "StartTraceRetrieval": "/StartTraceRetrieval",
    "ListRetrievedTraces": "/ListRetrievedTraces",
    "GetRetrievedTracesGraph": "/GetRetrievedTracesGraph",
    "CancelTraceRetrieval": "/CancelTraceRetrieval",
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


class Process:
    """One running beamline, whatever its command. `folder` takes its output."""

    def __init__(self, folder, name):
        self.name = name
        self.output = Path(folder) / f"{name}.log"
        self.api_port = free_port()
        self.daemon_port = free_port(socket.SOCK_DGRAM)
        self.metrics_port = free_port()
        self.process = None
        self.start_seconds = None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def daemon_address(self):
        return f"127.0.0.1:{self.daemon_port}"

    def command(self):
        raise NotImplementedError

    def start(self, timeout=60):
        began = time.monotonic()
        self.launch()
        wait_for(self.is_ready_or_dead, timeout, "readyz")
        self.start_seconds = time.monotonic() - began
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log_text()}")
        return self

    def launch(self):
        """Starts it without waiting."""
        with open(self.output, "ab") as out:
            self.process = subprocess.Popen(self.command(), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        return self

    def log_text(self):
        return self.output.read_text(errors="replace")[-4000:] if self.output.exists() else ""

    def is_ready_or_dead(self):
        return self.process.poll() is not None or self.is_ready()

    def is_ready(self):
        return self.get("/readyz") == 200

    @property
    def health_port(self):
        return self.api_port

    def get(self, path):
        """Status of an unsigned GET, or None when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return None
        except http.client.HTTPException:
            return None
        finally:
            connection.close()

    def terminate(self):
        """SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self, timeout=15):
        """SIGTERM; returns the exit code."""
        if self.process and self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise AssertionError(f"{self.name} did not stop within {timeout} s of SIGTERM:\n{self.log_text()}")
        return self.process.returncode if self.process else None

    def kill(self):
        """kill -9 of the beamline process alone; the PostgreSQL of a standalone keeps running."""
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

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
        """One `beamline` command; where its data are is added by the caller."""
        return run(*arguments, check=check, timeout=timeout, environment=environment)


def run(*arguments, check=True, timeout=120, environment=None):
    """One `beamline` command."""
    done = subprocess.run(
        [BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env={**os.environ, **(environment or {})})
    if check and done.returncode != 0:
        raise AssertionError(f"beamline {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


class Server(Process):
    """One `beamline standalone`."""

    def __init__(self, data_dir=None, *, flags=()):
        self.base = None if data_dir else temporary_folder("beamline-acceptance-")
        self.data_dir = Path(data_dir) if data_dir else self.base / "data"
        super().__init__(self.data_dir.parent, self.data_dir.name)
        self.flags = list(flags)

    def command(self):
        return [
            BINARY, "standalone", "--data-dir", str(self.data_dir), "--api", f"127.0.0.1:{self.api_port}",
            "--daemon", self.daemon_address, "--metrics", f"127.0.0.1:{self.metrics_port}", *self.flags,
        ]

    def remove(self):
        self.stop()
        if self.base:
            shutil.rmtree(self.base, ignore_errors=True)

    def postgres_pid(self):
        try:
            return int((self.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError):
            return None  # not there, or being written

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


class Database:
    """A PostgreSQL of the test run's own, on a loopback port; each cluster gets a database in it."""

    def __init__(self):
        self.folder = temporary_folder("beamline-postgres-")
        self.port = free_port()
        self.binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1]
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        self.data = self.folder / "data"
        self.process = None
        self.numbers = itertools.count(1)

    def start(self):
        if not self.data.exists():
            subprocess.run(
                [self.binaries / "initdb", "-D", self.data, "-U", "beamline", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
                check=True, capture_output=True, cwd="/", **self.user)
        with open(self.folder / "log", "ab") as out:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-p", str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1",
                 "-c", "max_connections=200", "-c", "shared_buffers=128MB"],
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd="/", **self.user)
        wait_for(lambda: self.sql("SELECT 1", "postgres", check=False).returncode == 0, 30, "PostgreSQL")
        return self

    def url(self, database="postgres"):
        return f"postgresql://beamline@127.0.0.1:{self.port}/{database}"

    def sql(self, text, database, check=True):
        """The rows as lines, columns parted by |; the finished process with check=False."""
        done = subprocess.run(["psql", self.url(database), "-X", "-A", "-t", "-c", text], capture_output=True, text=True, timeout=30)
        if not check:
            return done
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def create(self):
        """A fresh, empty database; its name."""
        name = f"cluster{next(self.numbers)}"
        self.sql(f"CREATE DATABASE {name}", "postgres")
        return name

    def kill(self):
        """kill -9 of the postmaster; its backends end by themselves."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Node(Process):
    """One `beamline ingest`, `aggregate` or `query` of a cluster."""

    def __init__(self, cluster, role, name, flags):
        super().__init__(cluster.folder, name)
        self.cluster = cluster
        self.role = role
        self.flags = [str(flag) for flag in flags]

    @property
    def health_port(self):
        return self.metrics_port if self.role == "aggregate" else self.api_port

    def command(self):
        command = [
            BINARY, self.role, "--database-url", self.cluster.url, "--node-name", self.name,
            "--metrics", f"127.0.0.1:{self.metrics_port}", "--partitions", str(self.cluster.partitions), *self.cluster.log_flags, *self.flags]
        if self.role != "aggregate":
            command += ["--master-key", str(self.cluster.master_key), "--api", f"127.0.0.1:{self.api_port}"]
        if self.role == "ingest":
            command += ["--daemon", self.daemon_address]
        return command


class Cluster:
    """A database, a master key, and nodes. `log_flags` name the log: none for the one in PostgreSQL,
    `["--kafka-brokers", …]` for Kafka."""

    _accounts = itertools.count(1)

    def __init__(self, database, *, partitions=12, log_flags=()):
        self.database = database
        self.name = database.create()
        self.url = database.url(self.name)
        self.folder = temporary_folder("beamline-cluster-")
        self.master_key = self.folder / "master.key"
        self.partitions = partitions
        self.log_flags = [str(flag) for flag in log_flags]
        self.nodes = []

    def migrate(self):
        run("migrate", "--database-url", self.url, "--master-key", self.master_key)
        return self

    def node(self, role, *flags, name=None):
        """A node that is not started yet."""
        node = Node(self, role, name or f"{role}-{len(self.nodes) + 1}", flags)
        self.nodes.append(node)
        return node

    def start(self, role, *flags, name=None):
        return self.node(role, *flags, name=name).start()

    def administer(self, *arguments, **options):
        return run(*arguments, "--database-url", self.url, **options)

    def new_account(self, node):
        """A fresh account, and its root key as a caller of a node; `at` gives the same key at another one."""
        account = f"{800_000_000_000 + next(Cluster._accounts):012d}"
        file = self.folder / f"credentials-{account}"
        self.administer("account", "create", account, "--credentials", file, "--master-key", self.master_key)
        return Caller(node, *read_credentials(file), account=account, credentials_file=file)

    def sql(self, text):
        return self.database.sql(text, self.name)

    def owners(self):
        """Name of the node that owns each partition, in order; None where there is no live owner."""
        rows = self.sql(
            "SELECT coalesce(n.name, '') FROM log_positions p LEFT JOIN nodes n ON n.id = p.owner AND n.expires_at > clock_timestamp() ORDER BY partition")
        return [name or None for name in rows]

    def ends(self):
        """End of each partition of the log in PostgreSQL."""
        return [int(end) for end in self.sql("SELECT next_offset FROM log_partitions ORDER BY partition")]

    def is_even(self, *nodes):
        """Whether these nodes own all partitions, in even shares."""
        owners = self.owners()
        shares = [owners.count(node.name) for node in nodes]
        return len(owners) == self.partitions == sum(shares) and max(shares) - min(shares) <= 1

    def verify(self, start, end, account=None, check=True):
        extra = ["--account", account] if account else []
        done = self.administer("verify", "--from", int(start), "--to", int(end), *extra, check=check)
        if not check:
            return done
        return sum(int(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("account "))

    def remove(self):
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.resume()
                node.terminate()
        for node in self.nodes:
            node.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


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

    def at(self, server):
        """The same key at another server."""
        return Caller(server, self.access_key, self.secret, self.account, self.credentials_file)

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

    def graph(self, start, end, **more):
        """`Services` of GetServiceGraph, freshly committed documents included."""
        return self.read("GetServiceGraph", {"StartTime": start, "EndTime": end, **more}, FRESH)["Services"]

    def refusal(self, operation, request):
        """Error name and message of an operation that must be refused with a 4xx."""
        answer = self.call(operation, request)
        assert 400 <= answer.status < 500, answer
        return answer.error, answer.message


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
