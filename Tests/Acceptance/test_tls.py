"""The API over https: boto3 and curl, a certificate renewed while the server runs, and settings that cannot work."""

import json
import signal
import ssl
import subprocess
import time

import boto3
import pytest
from botocore.config import Config

from beamline import BINARY, REGION, Server, free_port, segment, temporary_folder, wait_for


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def new_key(path):
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)


class Authority:
    """A certificate authority of the test: root, intermediate, and server certificates signed by the intermediate."""

    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "root.pem"
        new_key(folder / "root.key")
        openssl(
            "req", "-x509", "-new", "-key", folder / "root.key", "-days", "2", "-subj", "/CN=test root", "-out", self.root)
        new_key(folder / "intermediate.key")
        self.sign("intermediate", "root", "basicConstraints=critical,CA:TRUE\n")

    def sign(self, name, issuer, extensions):
        request, extension_file = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        openssl("req", "-new", "-key", self.folder / f"{name}.key", "-subj", f"/CN=test {name}", "-out", request)
        extension_file.write_text(extensions)
        openssl(
            "x509", "-req", "-in", request, "-CA", self.folder / f"{issuer}.pem", "-CAkey", self.folder / f"{issuer}.key",
            "-CAcreateserial", "-days", "2", "-extfile", extension_file, "-out", self.folder / f"{name}.pem")

    def issue(self, name):
        """A new key and certificate for 127.0.0.1, with the chain in one file."""
        new_key(self.folder / f"{name}.key")
        self.sign(name, "intermediate", "subjectAltName=IP:127.0.0.1\n")
        chain = self.folder / "chain.pem"
        chain.write_text((self.folder / f"{name}.pem").read_text() + (self.folder / "intermediate.pem").read_text())
        (self.folder / f"{name}.key").replace(self.folder / "server.key")
        return chain, self.folder / "server.key"


class SecureServer(Server):
    """`standalone` with TLS on its API."""

    def __init__(self, authority, chain, key):
        super().__init__(flags=["--tls-certificate", str(chain), "--tls-key", str(key)])
        self.authority = authority

    @property
    def endpoint(self):
        return f"https://127.0.0.1:{self.api_port}"

    def curl(self, path, *options):
        return subprocess.run(
            ["curl", "-sS", "--cacert", str(self.authority.root), "--max-time", "10", *options, self.endpoint + path],
            capture_output=True, text=True)

    def is_ready(self):
        return self.curl("/readyz", "-o", "/dev/null", "-w", "%{http_code}").stdout == "200"

    def client(self):
        root = self.root()
        return boto3.client(
            "xray", endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id=root.access_key,
            aws_secret_access_key=root.secret, verify=str(self.authority.root),
            config=Config(retries={"max_attempts": 1, "mode": "standard"}))

    def serial(self):
        """The serial number of the certificate that a new connection gets."""
        pem = ssl.get_server_certificate(("127.0.0.1", self.api_port))
        done = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=pem, capture_output=True, text=True, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def authority():
    folder = temporary_folder("beamline-tls-")
    folder.chmod(0o755)
    return Authority(folder)


@pytest.fixture(scope="module")
def secure(authority):
    server = SecureServer(authority, *authority.issue("first"))
    server.start()
    yield server
    server.remove()


def test_boto3_sends_and_reads_over_https(secure):
    client = secure.client()
    document = segment(name="over-tls")
    answer = client.put_trace_segments(TraceSegmentDocuments=[json.dumps(document)])
    assert answer["UnprocessedTraceSegments"] == []
    traces = wait_for(lambda: client.batch_get_traces(TraceIds=[document["trace_id"]])["Traces"], what="the trace")
    assert json.loads(traces[0]["Segments"][0]["Document"])["name"] == "over-tls"


@pytest.mark.parametrize("option, version", [("--http2", "2"), ("--http1.1", "1.1")])
def test_curl_negotiates_the_version(secure, option, version):
    done = secure.curl("/healthz", option, "-w", " %{http_version} %{http_code}")
    assert done.stdout == f"{{}} {version} 200", done.stderr


def test_the_announced_address_is_https(secure):
    assert f"export AWS_ENDPOINT_URL_XRAY={secure.endpoint}" in secure.log_text()


def test_a_client_that_does_not_know_the_authority_refuses(secure):
    done = subprocess.run(["curl", "-sS", "--max-time", "10", secure.endpoint + "/healthz"], capture_output=True, text=True)
    assert done.returncode == 60


def test_sighup_brings_the_renewed_certificate_and_ignores_a_broken_one(secure, authority):
    before = secure.serial()
    client = secure.client()
    chain, _ = authority.issue("second")
    secure.process.send_signal(signal.SIGHUP)
    wait_for(lambda: secure.serial() != before, what="the new certificate")
    assert client.get_encryption_config()["EncryptionConfig"]
    assert secure.curl("/healthz").returncode == 0

    renewed = secure.serial()
    good = chain.read_text()
    chain.write_text("not a certificate")
    secure.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "keeping the old certificate" in secure.log_text(), what="the error in the log")
    assert str(chain) in secure.log_text()
    assert secure.serial() == renewed
    assert secure.curl("/healthz").returncode == 0
    chain.write_text(good)


@pytest.mark.parametrize("certificate, key, expected", [
    ("chain.pem", None, "--tls-certificate needs --tls-key"),
    (None, "server.key", "--tls-key needs --tls-certificate"),
    ("absent.pem", "server.key", "absent.pem (--tls-certificate)"),
    ("chain.pem", "absent.key", "absent.key (--tls-key)"),
    ("chain.pem", "root.key", "do not belong together"),
])
def test_wrong_settings_stop_the_start_with_one_sentence(authority, certificate, key, expected):
    authority.issue("third")
    folder = temporary_folder("beamline-tls-wrong-")
    command = [BINARY, "standalone", "--data-dir", str(folder / "data"), "--api", f"127.0.0.1:{free_port()}", "--daemon", "off", "--metrics", "off"]
    if certificate:
        command += ["--tls-certificate", str(authority.folder / certificate)]
    if key:
        command += ["--tls-key", str(authority.folder / key)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and expected in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - began < 20
    assert not (folder / "data" / "postgres").exists()
