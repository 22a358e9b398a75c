"""The files in deploy/ do what they say: checked against the program, and where a program for it exists, run for real."""

import configparser
import functools
import http.client
import json
import os
import random
import re
import shlex
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import OrderedDict
from pathlib import Path

import botocore.exceptions
import promql_parser
import pytest
import yaml

from beamline import BINARY, ROOT, Caller, free_port, hex_id, read_credentials, segment, temporary_folder, trace_id, wait_for
from local_cluster import ACCOUNT, LocalCluster, page, script, series_sum

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "beamline"]
ROLES = {"ingest", "aggregate", "query", "standalone", "migrate", "status"}


# Flags.

@functools.cache
def flags_of(command):
    """Every flag that `beamline COMMAND --help` names."""
    done = subprocess.run([BINARY, command, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))


def check_command(words, where):
    """A command line of ours: the command exists, and it has each of the flags."""
    command, *rest = words
    assert command in ROLES, f"{where}: {words}"
    given = [word.split("=")[0] for word in rest if word.startswith("--")]
    assert set(given) <= flags_of(command), f"{where}: beamline {command} has no {set(given) - flags_of(command)}"
    assert len(given) == len(set(given)), f"{where}: a flag is given twice"


def check_variable(name, command, where):
    assert name.startswith("BEAMLINE_")
    flag = "--" + name.removeprefix("BEAMLINE_").lower().replace("_", "-")
    assert flag in flags_of(command), f"{where}: {name} is not a setting of beamline {command}"


def interpolated(text):
    """As Compose does it, with no variable set."""
    text = re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)
    assert not re.search(r"(?<!\$)\$[{A-Z]", text), f"a variable without a default: {text}"
    return text.replace("$$", "$")


def status_of(host, port, path):
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


# Compose.

def test_compose_is_consistent():
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in SERVICES
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other] or SERVICES[other]["image"] == "beamline", f"{other} has no health check"
            if condition["condition"] == "service_completed_successfully":
                assert SERVICES[other]["restart"] == "no"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"]
        for published in map(interpolated, service.get("ports", [])):
            assert published.startswith("127.0.0.1:"), f"{name} is open to the network: {published}"
    assert [name for name, service in SERVICES.items() if service.get("ports") and not service.get("profiles")] == ["haproxy"], "one endpoint"
    assert SERVICES["ingest"]["deploy"]["replicas"] == 2 and SERVICES["aggregate"]["deploy"]["replicas"] == 2
    for name in OURS:
        service = SERVICES[name]
        check_command(list(map(interpolated, service["command"])), f"compose, {name}")
        for variable in service["environment"]:
            check_variable(variable, service["command"][0], f"compose, {name}")
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
    major = int(re.match(r"postgres:(\d+)", SERVICES["postgres"]["image"]).group(1))
    assert major >= 15
    assert tuple(map(int, re.match(r"apache/kafka:(\d+)\.(\d+)", SERVICES["kafka"]["image"]).groups())) >= (3, 8)
    kafka = SERVICES["kafka"]["environment"]
    assert kafka["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert len(kafka["CLUSTER_ID"]) == 22, "an id is 16 bytes in base64"
    assert {"--partitions=12"} <= set.intersection(*(set(SERVICES[name]["command"]) for name in ("ingest", "aggregate", "query", "daemon")))


class Names(threading.Thread):
    """A DNS server as Docker's: a name has one address per replica."""

    def __init__(self, names):
        super().__init__(daemon=True)
        self.names = names
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", free_port(socket.SOCK_DGRAM)))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                query, client = self.socket.recvfrom(4096)
            except OSError:
                return
            identity, labels, position = query[:2], [], 12
            while query[position]:
                labels.append(query[position + 1:position + 1 + query[position]].decode())
                position += query[position] + 1
            question = query[12:position + 5]
            kind = struct.unpack("!H", query[position + 1:position + 3])[0]
            name = ".".join(labels)
            addresses = self.names.get(name, []) if kind == 1 else []
            code = 0x8180 if name in self.names else 0x8183
            answer = identity + struct.pack("!HHHHH", code, 1, len(addresses), 0, 0) + question
            for address in addresses:
                answer += b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(address)
            self.socket.sendto(answer, client)

    def close(self):
        self.socket.close()


class Composed:
    """docker-compose.yml as local processes. Each container is an address of 127.0.0.0/8, so that every one of them has its own
    port 2000 and 9464; servers from Debian and PyPI stand in for the images of PostgreSQL and Kafka."""

    def __init__(self):
        self.base = temporary_folder("beamline-compose-")
        self.volume = self.base / "volume"
        self.volume.mkdir()
        tool = script()
        os.environ["BEAMLINE"] = BINARY
        self.servers = tool.Cluster(tool.arguments(["--data-dir", str(self.base / "servers")]))
        self.network = f"127.{random.randrange(1, 250)}.{random.randrange(1, 250)}."
        self.processes = []
        self.names = {}
        self.dns = Names(self.names)
        try:
            self.servers.lock()
            self.servers.start_postgresql()
            self.servers.start_broker()
        except BaseException:
            self.stop()
            raise

    def local(self, text, address=None):
        text = interpolated(str(text)).replace("/var/lib/beamline", str(self.volume)).replace("kafka:9092", self.servers.brokers)
        text = text.replace("postgresql://beamline:beamline@postgres:5432/beamline", self.servers.database_url)
        return text.replace("0.0.0.0:", f"{address}:") if address else text

    def environment(self, service, address=None):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BEAMLINE")}
        return {**clean, **{name: self.local(value, address) for name, value in SERVICES[service]["environment"].items()}}

    def run(self, service, *words):
        command = words or [self.local(word) for word in SERVICES[service]["command"]]
        return subprocess.run([BINARY, *command], env=self.environment(service), capture_output=True, text=True, timeout=60)

    def up(self, service):
        address = f"{self.network}{len(self.processes) + 2}"
        output = open(self.base / f"{service}-{address}.log", "ab")
        process = subprocess.Popen(
            [BINARY, *(self.local(word, address) for word in SERVICES[service]["command"])], env=self.environment(service, address),
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        health = 2000 if any("--api=" in word for word in SERVICES[service]["command"]) else 9464
        wait_for(lambda: process.poll() is not None or status_of(address, health, "/readyz") == 200, 30, f"{service} ready")
        assert process.poll() is None, Path(output.name).read_text()
        self.names.setdefault(service, []).append(address)
        return address

    def endpoint(self):
        address = f"{self.network}1"
        environment = {**self.environment("haproxy", address), "DNS_SERVER": self.dns.address}
        output = open(self.base / "haproxy.log", "ab")
        configuration = SERVICES["haproxy"]["volumes"][0].split(":")[0]
        self.processes.append(subprocess.Popen(
            ["/usr/sbin/haproxy", "-db", "-f", str(ROOT / configuration)], env=environment, stdout=output, stderr=subprocess.STDOUT))
        wait_for(lambda: status_of(address, 2000, "/readyz") == 200, 30, "the endpoint")
        return address

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        self.dns.close()
        self.servers.stop()
        subprocess.run(["rm", "-rf", str(self.base)])


class Endpoint:
    """For a `Caller`."""

    def __init__(self, host, port, data_dir):
        self.endpoint, self.api_port, self.data_dir = f"http://{host}:{port}", port, data_dir


@pytest.fixture
def composed():
    composed = Composed()
    yield composed
    composed.stop()


def test_every_command_of_compose_runs_and_the_cluster_scales(composed):
    done = composed.run("migrate")
    assert done.returncode == 0, done.stderr
    assert composed.run("migrate").returncode == 0, "it may run at each start"
    credentials = composed.volume / "credentials"
    done = composed.run("admin", "account", "create", ACCOUNT, "--credentials", str(credentials))
    assert done.returncode == 0, done.stderr
    for service in ("ingest", "aggregate", "query"):
        for _ in range(SERVICES[service]["deploy"]["replicas"]):
            composed.up(service)
    composed.up("daemon")
    host = composed.endpoint()
    client = Caller(Endpoint(host, 2000, composed.volume), *read_credentials(credentials), account=ACCOUNT).boto3()

    documents = [segment() for _ in range(20)]
    for document in documents:
        assert client.put_trace_segments(TraceSegmentDocuments=[json.dumps(document)])["UnprocessedTraceSegments"] == []
    for document in documents:
        assert len(client.batch_get_traces(TraceIds=[document["trace_id"]])["Traces"]) == 1
    taken = [series_sum(page(address, 9464, "/metrics"), "beamline_documents_accepted_total") for address in composed.names["ingest"]]
    assert sum(taken) == 20 and min(taken) > 0, "both ingest nodes take part"

    # `--scale ingest=3`: a further address of the name.
    third = composed.up("ingest")
    wait_for(lambda: servers_up(page(host, 8404, "/metrics"), "ingest") == 3, 20, "three ingest nodes in HAProxy")
    wait_for(lambda: client.put_trace_segments(TraceSegmentDocuments=[json.dumps(segment())]) and series_sum(page(third, 9464, "/metrics"), "beamline_documents_accepted_total") > 0,
             20, "a document through the new node")

    # The daemon's datagrams arrive through the node of the profile `daemon`.
    document = segment()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b'{"format": "json", "version": 1}\n' + json.dumps(document).encode(), (composed.names["daemon"][0], 2000))
    wait_for(lambda: client.batch_get_traces(TraceIds=[document["trace_id"]])["Traces"], 15, "the trace of the datagram")

    done = composed.run("admin")
    assert done.returncode == 0, done.stdout + done.stderr


def servers_up(text, proxy):
    return series_sum(text, "haproxy_server_status", proxy=proxy, state="UP")


# HAProxy, with real nodes.

class Writers:
    """boto3 clients that write through one endpoint until they are told to stop, and remember what was acknowledged."""

    def __init__(self, caller, count=3):
        self.caller = caller
        self.acknowledged = {}
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.errors = []
        self.threads = [threading.Thread(target=self.write) for _ in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)

    def write(self):
        client = self.caller.boto3(read_timeout=8)
        while not self.stopping.is_set():
            documents = [segment(name="written") for _ in range(3)]
            while not self.stopping.is_set():
                try:
                    answer = client.put_trace_segments(TraceSegmentDocuments=[json.dumps(document) for document in documents])
                except (botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError) as error:
                    self.errors.append(str(error))
                    continue
                assert answer["UnprocessedTraceSegments"] == []
                with self.lock:
                    self.acknowledged.update({document["trace_id"]: document["id"] for document in documents})
                break

    def more(self, number, timeout=30):
        wanted = len(self.acknowledged) + number
        wait_for(lambda: len(self.acknowledged) >= wanted, timeout, f"{number} more acknowledged documents (errors: {self.errors[-3:]})")


@pytest.fixture(params=["kafka", "postgresql"])
def cluster(request):
    cluster = LocalCluster("--partitions", "4", *(["--no-kafka"] if request.param == "postgresql" else [])).start()
    yield cluster
    cluster.remove()


def test_what_the_cluster_prints_is_enough_for_the_commands(cluster):
    lines = [line.removeprefix("export ") for line in cluster.said().splitlines() if line.startswith("export ")]
    exports = dict(part.split("=", 1) for line in lines for part in shlex.split(line))
    for command in ("status", "doctor"):
        done = subprocess.run([BINARY, command], capture_output=True, text=True, timeout=60, env={**os.environ, **exports})
        assert done.returncode == 0, done.stdout + done.stderr


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_cluster_uses_next_to_no_processor_time(cluster):
    nodes = [node for node in cluster.state["nodes"] if node["role"] in ("ingest", "aggregate", "query")]

    def used(seconds):
        before = {node["name"]: processor_seconds(node["pid"]) for node in nodes}
        time.sleep(seconds)  # what is measured is what happens meanwhile
        return {node["name"]: (processor_seconds(node["pid"]) - before[node["name"]]) / seconds for node in nodes}

    # Something may still be settling in the first of them.
    shares = {}
    for _ in range(5):
        shares = used(1)
        if all(share < 0.1 for share in shares.values()):
            return
    raise AssertionError(f"shares of one core: {shares}")


def test_an_ingest_node_is_killed_and_another_hangs_and_nothing_is_lost(cluster):
    assert cluster.status() == (0, {node["name"]: "ready" for node in cluster.state["nodes"]})
    expected = {"postgresql", "ingest-1", "ingest-2", "aggregate-1", "aggregate-2", "query-1", "haproxy"}
    assert {node["name"] for node in cluster.state["nodes"]} - {"kafka"} == expected
    caller = cluster.root()
    began = time.time()
    with Writers(caller) as writers:
        writers.more(60)
        for name in ("ingest-1", "ingest-2"):
            starts = cluster.node(name)["starts"]
            cluster.kill(name)
            writers.more(60)
            wait_for(lambda: cluster.node(name)["starts"] > starts and cluster.status()[0] == 0, 30, f"{name} is back")
        # A node that hangs is taken out as well; the requests it holds are cut and sent again.
        cluster.signal("ingest-1", signal.SIGSTOP)
        try:
            writers.more(60)
        finally:
            cluster.signal("ingest-1", signal.SIGCONT)
        writers.more(30)
    client = caller.boto3()
    ids = list(writers.acknowledged)
    for first in range(0, len(ids), 5):
        found = {trace["Id"]: [part["Id"] for part in trace["Segments"]] for trace in client.batch_get_traces(TraceIds=ids[first:first + 5])["Traces"]}
        for trace in ids[first:first + 5]:
            assert found.get(trace) == [writers.acknowledged[trace]], f"acknowledged trace {trace} is not there once"
    cluster.administer("verify", "--from", int(began) - 60, "--to", int(time.time()) + 60)


@pytest.fixture(scope="module")
def small_cluster():
    cluster = LocalCluster("--partitions", "2", "--no-kafka", "--ingest", "2", "--aggregators", "1", "--query", "2").start()
    yield cluster
    cluster.remove()


@pytest.mark.parametrize("prefix", ["", f"/account/{ACCOUNT}"])
def test_writes_go_to_ingest_and_reads_to_query_nodes(small_cluster, prefix):
    caller = small_cluster.root()

    def handled(role, operation):
        return small_cluster.metric(role, "beamline_requests_total", operation=operation)

    routes = [
        ("/TraceSegments", "PutTraceSegments", "ingest", {"TraceSegmentDocuments": [json.dumps(segment())]}),
        ("/TelemetryRecords", "PutTelemetryRecords", "ingest", {"TelemetryRecords": []}),
        ("/TraceSummaries", "GetTraceSummaries", "query", {"StartTime": 1, "EndTime": 2}),
        ("/Traces", "BatchGetTraces", "query", {"TraceIds": [trace_id()]}),
    ]
    for path, operation, role, body in routes:
        other = "query" if role == "ingest" else "ingest"
        before, elsewhere = handled(role, operation), handled(other, operation)
        answer = caller.post(prefix + path, body)
        assert answer.status == 200, answer
        assert (handled(role, operation), handled(other, operation)) == (before + 1, elsewhere), f"{operation} is served by {role} nodes"


@pytest.mark.parametrize("path", ["/GetSamplingRules", "/SamplingTargets", "/v1/traces", f"/account/{ACCOUNT}/GetSamplingRules"])
def test_sampling_and_otlp_go_to_ingest_nodes(small_cluster, path):
    """By HAProxy's own count, because not every release answers them."""
    def sessions(proxy):
        stats = next(node for node in small_cluster.state["nodes"] if node["role"] == "haproxy")
        return series_sum(page("127.0.0.1", stats["metrics"], "/metrics"), "haproxy_backend_http_requests_total", proxy=proxy)

    before = sessions("ingest"), sessions("query")
    small_cluster.root().post(path, {})
    assert (sessions("ingest"), sessions("query")) == (before[0] + 1, before[1])


def test_paths_that_only_look_like_writes_go_to_query_nodes(small_cluster):
    for path in ("/TraceSegments/x", "/account/12345678901/TraceSegments", "/x/TraceSegments", "/tracesegments"):
        def refused():
            return small_cluster.metric("query", "beamline_requests_total", operation="Unknown")
        before = refused()
        assert small_cluster.root().post(path, {}).status in (400, 403, 404)
        assert refused() == before + 1, path


def test_a_query_node_is_killed_and_reads_go_on(small_cluster):
    caller = small_cluster.root()
    document = segment()
    caller.put(document)
    starts = small_cluster.node("query-1")["starts"]
    small_cluster.kill("query-1")
    for _ in range(20):
        answer = caller.call("BatchGetTraces", {"TraceIds": [document["trace_id"]]})
        assert answer.status == 200 and len(answer.json["Traces"]) == 1
    wait_for(lambda: small_cluster.node("query-1")["starts"] > starts and small_cluster.status()[0] == 0, 30, "query-1 is back")


def test_the_health_check_of_the_image(small_cluster):
    def check(*ports):
        return subprocess.run(["bash", str(DEPLOY / "healthcheck"), *map(str, ports)], capture_output=True, text=True)

    nobody = free_port()
    for node in small_cluster.state["nodes"]:
        if node["role"] in ("ingest", "query"):
            assert check(node["api"], node["metrics"]).returncode == 0
        if node["role"] == "aggregate":
            assert check(nobody, node["metrics"]).returncode == 0, "no API port: the metrics port decides"
        if node["role"] == "haproxy":
            assert check(node["metrics"]).stderr.strip() == f"port {node['metrics']}: 404"
    done = check(nobody)
    assert done.returncode == 1 and "nothing listens" in done.stderr


def test_the_cluster_stops_and_starts_again_with_its_data():
    cluster = LocalCluster("--partitions", "2", "--aggregators", "1", "--ingest", "1", "--no-kafka")
    try:
        cluster.start()
        document = segment()
        cluster.root().put(document)
        processes = [node["pid"] for node in cluster.state["nodes"]]
        second = subprocess.run([str(DEPLOY / "cluster"), "--data-dir", str(cluster.data_dir), "--no-kafka"], capture_output=True, text=True, env={**os.environ, "BEAMLINE": BINARY})
        assert second.returncode == 1 and "a cluster runs already" in second.stderr
        assert cluster.stop() == 0, cluster.said()
        assert not [process for process in processes if os.path.exists(f"/proc/{process}")], "everything was stopped"
        code, words = cluster.status()
        assert code == 1 and "no cluster runs" in words
        cluster.output.unlink()
        cluster.start()
        assert cluster.root().traces(document["trace_id"])
        # Nothing outlives a kill -9 of the script itself.
        processes = [node["pid"] for node in cluster.state["nodes"]]
        cluster.process.kill()
        cluster.process.wait()
        wait_for(lambda: not [process for process in processes if os.path.exists(f"/proc/{process}")], 30, "the nodes end with the script")
        cluster.output.unlink()
        cluster.start()
        assert cluster.root().traces(document["trace_id"])
        for name in ("credentials", "master.key", "cluster.json", "database-password"):
            assert (cluster.data_dir / name).stat().st_mode & 0o077 == 0, f"{name} is secret"
    finally:
        cluster.remove()


@pytest.mark.parametrize("flags, words", [
    (["--ingest", "9"], "--ingest must be from 1 to 8"),
    (["--partitions", "0"], "--partitions must be from 1"),
    (["--nonsense"], "unrecognized arguments"),
])
def test_wrong_flags_of_the_cluster_are_refused(flags, words):
    done = subprocess.run([str(DEPLOY / "cluster"), *flags], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr


# Kubernetes.

MANIFESTS = [
    (path, document) for path in sorted([*(DEPLOY / "kubernetes").glob("*.yaml"), *(DEPLOY / "haproxy").glob("*.yaml")])
    for document in yaml.safe_load_all(path.read_text()) if document["kind"] != "Kustomization"]
SETTINGS = dict(line.split("=", 1) for line in (DEPLOY / "kubernetes/settings.env").read_text().splitlines())


def manifests(*kinds):
    return [document for _, document in MANIFESTS if document["kind"] in kinds]


def pod(document):
    return document["spec"]["template"]["spec"]


def pods():
    return [document for document in manifests("Deployment", "Job")]


def selected(selector):
    """The workloads whose pods have these labels."""
    assert selector
    return [document for document in pods() if selector.items() <= document["spec"]["template"]["metadata"]["labels"].items()]


def container_ports(document):
    return {port["name"]: port["containerPort"] for container in pod(document)["containers"] for port in container.get("ports", [])}


def test_kustomize_reads_every_manifest():
    for folder in ("kubernetes", "haproxy"):
        kustomization = yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text())
        files = {path.name for path in (DEPLOY / folder).glob("*.yaml")} - {"kustomization.yaml"}
        assert files == {resource for resource in kustomization["resources"] if not resource.startswith("../")}
        for resource in kustomization["resources"]:
            assert (DEPLOY / folder / resource).exists()
        for generator in kustomization["configMapGenerator"]:
            for file in generator.get("files", []) + generator.get("envs", []):
                assert (DEPLOY / folder / file).is_file() and "/" not in file, "kustomize reads files of its own folder only"
    names = [(document["kind"], document["metadata"]["name"]) for _, document in MANIFESTS]
    assert len(names) == len(set(names))
    assert {"Deployment", "Job", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"} == {kind for kind, _ in names}


def test_selectors_find_what_they_mean():
    for document in manifests("Deployment"):
        assert selected(document["spec"]["selector"]["matchLabels"]) == [document]
    for service in manifests("Service"):
        targets = selected(service["spec"]["selector"])
        assert len(targets) == 1
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in container_ports(targets[0])
    for budget in manifests("PodDisruptionBudget"):
        assert len(selected(budget["spec"]["selector"]["matchLabels"])) == 1
    deployments = {document["metadata"]["name"]: document for document in manifests("Deployment")}
    assert {budget["metadata"]["name"] for budget in manifests("PodDisruptionBudget")} == set(deployments)
    for autoscaler in manifests("HorizontalPodAutoscaler"):
        target = deployments[autoscaler["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "an apply would fight the autoscaler"
        for metric_source in autoscaler["spec"]["metrics"]:
            if metric_source["type"] == "Resource":
                assert metric_source["resource"]["name"] in pod(target)["containers"][0]["resources"]["requests"]
            else:
                assert metric_source["pods"]["metric"]["name"] in METRICS
    aggregate = next(a for a in manifests("HorizontalPodAutoscaler") if a["metadata"]["name"] == "beamline-aggregate")
    assert aggregate["spec"]["maxReplicas"] == int(SETTINGS["PARTITIONS"]), "more workers than partitions are idle"


def test_pods_are_restricted_and_their_probes_answer():
    for document in pods():
        spec, name = pod(document), document["metadata"]["name"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        # Service links would be variables BEAMLINE_… that the program refuses.
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert {"requests", "limits"} <= container["resources"].keys()
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
            if document["kind"] == "Job":
                continue
            for probe in ("livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["port"] in container_ports(document), f"{name}: {probe}"
            assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "a node that waits for its database must not be restarted"
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        annotations = document["spec"]["template"]["metadata"].get("annotations", {})
        if annotations:
            assert int(annotations["prometheus.io/port"]) in container_ports(document).values() or annotations["prometheus.io/port"] == "9464"


def test_the_arguments_in_kubernetes_are_the_programs():
    for document in pods():
        for container in pod(document)["containers"]:
            variables = {variable["name"] for variable in container["env"]}
            if container.get("envFrom"):
                variables |= set(SETTINGS)
                generated = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())["configMapGenerator"]
                assert [source["configMapRef"]["name"] for source in container["envFrom"]] == [generator["name"] for generator in generated]
            texts = container.get("args", []) + [variable.get("value", "") for variable in container["env"]]
            for reference in re.findall(r"\$\(([A-Z_]+)\)", " ".join(texts)):
                assert reference in variables, f"{container['name']}: $({reference})"
            if container["image"] != "beamline":
                continue
            check_command(container["args"], f"kubernetes, {container['name']}")
            for name in variables:
                if name.startswith("BEAMLINE_"):
                    check_variable(name, container["args"][0], f"kubernetes, {container['name']}")
            ports = container_ports(document)
            for flag, port in (("--api", "api"), ("--metrics", "metrics")):
                given = [word.split(":")[-1] for word in container["args"] if word.startswith(flag + "=")]
                assert given == [str(ports[port])] if port in ports else not given, f"{container['name']}: {flag}"


def test_the_secrets_in_kubernetes_are_those_of_the_instructions():
    used = set()
    for document in pods():
        for container in pod(document)["containers"]:
            for variable in container["env"]:
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    reference = variable["valueFrom"]["secretKeyRef"]
                    used.add((reference["name"], reference["key"]))
            mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
            for volume in pod(document).get("volumes", []):
                if "secret" in volume:
                    path = next(word.split("=")[1] for word in container["args"] if word.startswith("--master-key="))
                    assert os.path.dirname(path) == mounts[volume["name"]]
                    used.add((volume["secret"]["secretName"], os.path.basename(path)))
                    # The program refuses a key file that others can read; root's group may (fsGroup).
                    assert volume["secret"]["defaultMode"] == 0o440
                    assert pod(document)["securityContext"]["fsGroup"] == pod(document)["securityContext"]["runAsGroup"]
    text = (DEPLOY / "kubernetes/kustomization.yaml").read_text()
    created = set()
    for name, source, key in re.findall(r"create secret generic (\S+)[\s#\\]+--from-(file|literal)=([^=\s]+)", text):
        created.add((name, key))
    assert used == created and len(used) == 2


# systemd.

def units():
    return sorted((DEPLOY / "systemd").glob("*.service"))


def parsed(unit):
    class Repeated(OrderedDict):
        def __setitem__(self, key, value):
            if key in self and isinstance(value, list):
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Repeated, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string(unit.read_text())
    return parser


@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.name)
def test_a_unit_is_restricted_and_its_command_is_the_programs(unit):
    service = parsed(unit)["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/usr/local/bin/beamline"
    check_command(words, unit.name)
    assert service["User"] == "beamline"
    for setting, value in {
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes",
        "MemoryDenyWriteExecute": "yes", "RestrictNamespaces": "yes", "CapabilityBoundingSet": "", "UMask": "0077",
    }.items():
        assert service[setting] == value, f"{unit.name}: {setting}"
    if words[0] == "standalone":
        assert service["KillMode"] == "mixed", "SIGTERM must not reach its PostgreSQL"
    else:
        assert "EnvironmentFile" in service
    assert service["Restart"] == "always" if service["Type"] == "simple" else "Restart" not in service


def test_every_role_has_a_unit_and_example_settings_are_the_programs():
    commands = {shlex.split(parsed(unit)["Service"]["ExecStart"])[1] for unit in units()}
    assert commands == {"standalone", "migrate", "ingest", "aggregate", "query"}
    for file, roles in (("standalone.env.example", ["standalone"]), ("cluster.env.example", ["ingest", "aggregate", "query"])):
        lines = (DEPLOY / "systemd" / file).read_text().splitlines()
        names = [found.group(1) for line in lines if (found := re.match(r"#?(BEAMLINE_[A-Z_]+)=", line))]
        assert names
        for name in names:
            for role in roles:
                check_variable(name, role, file)


def test_systemd_accepts_the_units(tmp_path):
    if subprocess.run(["which", "systemd-analyze"], capture_output=True).returncode != 0:
        return  # not a machine with systemd; the tests above have parsed them
    for unit in units():
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/local/bin/beamline ", f"{BINARY} "))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in units())], capture_output=True, text=True)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if any(unit.name.split("@")[0].split(".")[0] in line for unit in units())]
    assert complaints == [] and done.returncode == 0, done.stdout + done.stderr


# The image.

def debian_package(library):
    """The package a shared library belongs to; None for one that is not Debian's."""
    for path in {library, os.path.realpath(library), library.removeprefix("/usr"), "/usr" + library}:
        done = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.split(":")[0]
    return None


def test_the_image_has_the_libraries_that_the_program_needs():
    text = (DEPLOY / "Dockerfile").read_text()
    builder, image = text.split("\nFROM debian:")
    installed = set(re.search(r"--no-install-recommends \\\n(.*?)\n    &&", image, re.S).group(1).replace("\\", "").split())
    needed = subprocess.run(["objdump", "-p", BINARY], capture_output=True, text=True, check=True).stdout
    direct = set(re.findall(r"NEEDED\s+(\S+)", needed))
    resolved = dict(re.findall(r"(\S+) => (/\S+)", subprocess.run(["ldd", BINARY], capture_output=True, text=True, check=True).stdout))
    packages = {}
    for library in direct:
        if library not in resolved or "/swift" in resolved[library]:
            continue  # the loader; Swift's own, which are part of the program in the image (--static-swift-stdlib)
        package = debian_package(resolved[library])
        assert package, f"{resolved[library]} belongs to no package"
        packages[package] = library
    base = {"libc6", "libgcc-s1"}  # of the base image
    assert "--static-swift-stdlib" in builder
    assert set(packages) - base <= installed, f"the image lacks {set(packages) - base - installed}"
    assert {name for name in installed if name.startswith("lib") or name.startswith("zlib")} <= set(packages), "the image has a library that nothing needs"
    # What is built with is what is run with.
    development = set(re.search(r"--no-install-recommends \\\n(.*?)\n    &&", builder, re.S).group(1).replace("\\", "").split())
    for package in development - {"pkg-config"}:
        depends = subprocess.run(["dpkg-query", "-W", "-f", "${Depends}", package], capture_output=True, text=True, check=True).stdout
        assert any(re.search(rf"\b{re.escape(name)}\b", depends) for name in installed), f"nothing of {package} ({depends}) is in the image"
    assert image.index("USER beamline") < image.index("ENTRYPOINT") and "HEALTHCHECK" in image
    for source in re.findall(r"^COPY (?:--chmod=\d+ )?(?!--from)(\S+) ", text, re.M):
        assert (ROOT / source).exists()
        assert f"!{source}" in (ROOT / ".dockerignore").read_text()


# Dashboards and alerts.

def declared_metrics():
    """Every metric the sources give a name, with its kind and labels."""
    found = {}
    for path in (ROOT / "Sources").rglob("*.swift"):
        text = path.read_text()
        for name in re.finditer(r'"(beamline_[a-z0-9_]+)"', text):
            before = text[max(0, name.start() - 80):name.start()]
            after = text[name.end():name.end() + 500]
            kinds = re.findall(r"\b(counter|gauge|histogram|sampled)\($|\b(counter|gauge|histogram|sampled)\(\s*$", before.rstrip())
            if not kinds:
                continue
            kind = next(filter(None, kinds[-1]))
            call = after[:after.find('"beamline_')] if '"beamline_' in after else after
            labels = re.search(r"labels: \[([^\]]*)\]", call)
            found[name.group(1)] = (kind, set(re.findall(r'"([a-z_]+)"', labels.group(1))) if labels else set())
    return found


METRICS = declared_metrics()
# Of others: Prometheus itself, HAProxy (asked below), the node exporter.
FOREIGN = {"up", "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "haproxy_server_status"}
TARGET_LABELS = {"job", "instance"}


def expressions():
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"], re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
    dashboard = json.loads((DEPLOY / "grafana/beamline.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"].replace("$__rate_interval", "1m"), re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])


def series_of(expression):
    """(metric name, labels it is matched by) of each selector."""
    text = re.sub(r'"[^"]*"', '""', expression)
    for name, matchers in re.findall(r"\b([a-z_]+(?:_[a-z]+)+|up)\b(?!\s*\()(?:\{([^}]*)\})?", text):
        if name.startswith(("beamline_", "haproxy_", "node_")) or name == "up":
            yield name, set(re.findall(r"(\w+)\s*[!=]", matchers))


@pytest.mark.parametrize("where, expression, shown", list(expressions()), ids=lambda value: value if isinstance(value, str) and value.split()[0] in ("alert", "panel") else "")
def test_an_expression_asks_for_metrics_that_exist(where, expression, shown):
    promql_parser.parse(expression)
    selectors = list(series_of(expression))
    assert selectors
    known = set(TARGET_LABELS)
    for name, matched in selectors:
        if name in FOREIGN:
            known |= {"proxy", "server", "state", "fstype", "mountpoint"}
            continue
        base, suffix = name, None
        for ending in ("_bucket", "_sum", "_count"):
            if name.endswith(ending) and name.removesuffix(ending) in METRICS:
                base, suffix = name.removesuffix(ending), ending
        assert base in METRICS, f"{where}: nothing counts {name}"
        kind, labels = METRICS[base]
        assert (kind == "histogram") == (suffix is not None), f"{where}: {name} is a {kind}"
        if suffix == "_bucket":
            labels = labels | {"le"}
        if base.endswith("_total"):
            assert re.search(rf"(rate|increase)\({name}", expression), f"{where}: a counter says something by its rate"
        assert matched <= labels | TARGET_LABELS, f"{where}: {name} has no label {matched - labels}"
        known |= labels
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= known, f"{where}: {grouped}"
    aggregated = re.match(r"\s*(?:histogram_quantile\([0-9.]+, )?(?:sum|max|min|avg|count)(?: by \(([^)]*)\))?", expression)
    kept = {label.strip() for label in (aggregated.group(1) or "").split(",")} if aggregated else known
    assert set(shown) <= kept, f"{where}: {set(shown) - kept} is aggregated away"


def test_the_dashboard_shows_what_was_asked_for():
    dashboard = json.loads((DEPLOY / "grafana/beamline.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    shown = {name.removesuffix("_bucket") for where, expression, _ in expressions() if where.startswith("panel") for name, _ in series_of(expression)}
    assert {
        "beamline_documents_accepted_total", "beamline_documents_refused_total", "beamline_log_append_seconds", "beamline_lag_records",
        "beamline_lag_seconds", "beamline_lease_moves_total", "beamline_commit_seconds", "beamline_batch_records", "beamline_retractions_total",
        "beamline_inbox_documents", "beamline_request_seconds", "beamline_resident_bytes",
    } <= shown
    cells = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24 and cells.setdefault((x, y), panel["id"]) == panel["id"], f"panel {panel['title']} covers another"


def test_alerts_are_complete():
    rules = [rule for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])
        for text in rule["annotations"].values():
            assert text.count("{{") == text.count("}}")
    configuration = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert configuration["rule_files"] == ["alerts.yml"]
    for job in configuration["scrape_configs"]:
        for source in job.get("dns_sd_configs", []):
            assert set(source["names"]) <= set(SERVICES)
            for name in source["names"]:
                assert f"--metrics=0.0.0.0:{source['port']}" in SERVICES[name]["command"]
        for source in job.get("static_configs", []):
            for target in source["targets"]:
                assert target.split(":")[0] in SERVICES
    assert all(job["job_name"].startswith("beamline") for job in configuration["scrape_configs"]), "the alert on `up` knows them by this"


def test_haproxy_counts_what_the_alerts_ask_for(small_cluster):
    stats = next(node for node in small_cluster.state["nodes"] if node["role"] == "haproxy")

    def counted():
        text = page("127.0.0.1", stats["metrics"], "/metrics")
        return servers_up(text, "ingest"), servers_up(text, "query")
    # It looks twice a second; a test before may have killed a node.
    wait_for(lambda: counted() == (2, 2), 10, "two ingest and two query nodes up")
