"""A cluster of local processes, started by deploy/cluster: what the tests of several nodes share."""

import contextlib
import http.client
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

from beamline import BINARY, ROOT, Caller, free_port, read_credentials, temporary_folder, wait_for

SCRIPT = ROOT / "deploy/cluster"
ACCOUNT = "123456789012"


def script():
    """deploy/cluster as a module."""
    loader = importlib.machinery.SourceFileLoader("deploy_cluster", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("deploy_cluster", loader))
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


def series_sum(text, name, **labels):
    """The sum over all series of that name with these labels, from a metrics page."""
    total = 0.0
    for line in text.splitlines():
        found = re.match(rf"{name}(?:\{{(.*)\}})? ([-+.e0-9]+)$", line)
        if found and all(f'{label}="{value}"' in (found.group(1) or "") for label, value in labels.items()):
            total += float(found.group(2))
    return total


def page(host, port, path):
    """The text of a page; empty when nobody answers, as while a node is started again."""
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


class Cable(threading.Thread):
    """A TCP connection to a server that can be cut without either side being told: bytes are held back until it is mended."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.target = port
        self.open = threading.Event()
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", free_port()))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=(source, sink), daemon=True).start()

    def carry(self, source, sink):
        try:
            while data := source.recv(65536):
                self.open.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        self.open.clear()

    def mend(self):
        self.open.set()

    def close(self):
        self.mend()
        self.listener.close()


class LocalCluster:
    """One run of deploy/cluster, on a data folder of its own."""

    def __init__(self, *flags, data_dir=None):
        self.base = temporary_folder("beamline-cluster-")
        self.data_dir = data_dir or self.base / "data"
        self.flags = [str(flag) for flag in flags]
        self.output = self.base / "output"
        self.process = None

    def start(self, timeout=90):
        with open(self.output, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), "--data-dir", str(self.data_dir), "--port", "0", *self.flags], stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "BEAMLINE": BINARY})
        try:
            wait_for(lambda: self.process.poll() is not None or "Paste into a shell" in self.said(), timeout, "the start of the cluster")
            assert self.process.poll() is None, f"deploy/cluster ended with {self.process.returncode}:\n{self.said()}"
        except AssertionError:
            self.remove()
            raise
        return self

    def said(self):
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    @property
    def state(self):
        return json.loads((self.data_dir / "cluster.json").read_text())

    def node(self, name):
        return next(node for node in self.state["nodes"] if node["name"] == name)

    def status(self):
        """`deploy/cluster status`: its exit code and the state of each node."""
        done = subprocess.run([sys.executable, str(SCRIPT), "status", "--json", "--data-dir", str(self.data_dir)], capture_output=True, text=True)
        return done.returncode, {node["name"]: node["state"] for node in json.loads(done.stdout)["nodes"]} if done.stdout else done.stderr

    def hold(self, name):
        """Stops a node, in order, and keeps it stopped."""
        self.command("hold", name)

    def release(self, name):
        self.command("release", name)

    def command(self, *words):
        done = subprocess.run([sys.executable, str(SCRIPT), *words, "--data-dir", str(self.data_dir)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def wait_ready(self, *names, timeout=40):
        """Until these nodes, or all of them, are ready again."""
        def ready():
            states = self.status()[1]
            return all(states[name] == "ready" for name in names or states)
        wait_for(ready, timeout, f"{', '.join(names) or 'all nodes'} ready")

    def signal(self, name, number):
        os.kill(self.node(name)["pid"], number)

    def kill(self, name):
        """Also of a node that has just been started again: until its new process is known, the old one is gone."""
        def killed():
            try:
                self.signal(name, signal.SIGKILL)
                return True
            except ProcessLookupError:
                return False
        wait_for(killed, 30, f"a process of {name}")

    @contextlib.contextmanager
    def aggregator(self, name, *, partitions, database_url=None):
        """One more aggregator, which deploy/cluster does not know of; yields a function that reads a metric of it."""
        state, port = self.state, free_port()
        command = [BINARY, "aggregate", "--node-name", name, "--metrics", f"127.0.0.1:{port}", "--partitions", str(partitions)]
        if state["kafka_brokers"]:
            command += ["--kafka-brokers", state["kafka_brokers"], "--kafka-replication", "1"]
        with open(self.base / f"{name}.log", "ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, "BEAMLINE_DATABASE_URL": database_url or state["database_url"]})
        try:
            yield lambda metric, **labels: series_sum(page("127.0.0.1", port, "/metrics"), metric, **labels)
        finally:
            process.terminate()
            process.wait(20)

    # What a `Caller` asks of a server.

    @property
    def api_port(self):
        return int(self.state["endpoint"].rsplit(":", 1)[1])

    @property
    def endpoint(self):
        return self.state["endpoint"]

    def root(self):
        return Caller(self, *read_credentials(self.data_dir / "credentials"), account=ACCOUNT)

    def administer(self, *arguments, check=True):
        """A `beamline` command on this cluster's database."""
        state = self.state
        done = subprocess.run(
            [BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=120,
            env={**os.environ, "BEAMLINE_DATABASE_URL": state["database_url"], "BEAMLINE_MASTER_KEY": state["master_key"]})
        if check and done.returncode != 0:
            raise AssertionError(f"beamline {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def verify(self, start, end):
        """`beamline verify`; returns the number of observations compared."""
        done = self.administer("verify", "--from", int(start), "--to", int(end))
        return sum(int(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("account "))

    def metrics(self, role):
        """The metrics pages of the nodes of a role, or of the node of that name."""
        return [page("127.0.0.1", node["metrics"], "/metrics") for node in self.state["nodes"] if role in (node["role"], node["name"])]

    def metric(self, role, name, **labels):
        """The sum of a metric over the nodes of a role and over all series with these labels."""
        return sum(series_sum(page, name, **labels) for page in self.metrics(role))

    def stop(self, timeout=40):
        """SIGTERM; returns the exit code."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout)
        return self.process.returncode if self.process else None

    def remove(self):
        try:
            self.stop()
        finally:
            if self.process and self.process.poll() is None:
                self.process.kill()
            shutil.rmtree(self.base, ignore_errors=True)
