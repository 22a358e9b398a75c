"""Broken on purpose, under load: afterwards every acknowledged document is there, once, and `verify` finds no difference."""

import os
import random
import signal
import subprocess
import time

import pytest

from beamline import Server, counts, node, segment, temporary_folder, wait_for
from senders import START, Senders



@pytest.fixture
def broken():
    server = Server().start()
    yield server
    server.remove()


def test_kill_9_of_the_process_under_load(broken):
    with Senders(broken.root()) as senders:
        for _ in range(3):
            senders.more(100)
            broken.kill()
            broken.start()
        senders.more(50)
    senders.check(broken)


def test_kill_9_of_its_postgresql_under_load(broken):
    with Senders(broken.root()) as senders:
        for _ in range(2):
            senders.more(100)
            postgres = broken.postgres_pid()
            os.kill(postgres, signal.SIGKILL)
            wait_for(lambda: broken.postgres_pid() not in (None, postgres), 30, "a new PostgreSQL")
            senders.more(50, 40)
    assert broken.process.poll() is None
    senders.check(broken)


def test_kill_9_of_both_at_once_under_load(broken):
    with Senders(broken.root()) as senders:
        senders.more(100)
        os.kill(broken.postgres_pid(), signal.SIGKILL)
        broken.kill()
        broken.start()
        senders.more(50)
    senders.check(broken)


def test_kill_9_of_a_backend_of_postgresql_under_load(broken):
    """One backend dies and PostgreSQL restarts all of them: every session of ours is cut."""
    with Senders(broken.root()) as senders:
        senders.more(100)
        children = subprocess.run(["ps", "-ww", "--ppid", str(broken.postgres_pid()), "-o", "pid=,args="], capture_output=True, text=True).stdout
        backends = [int(line.split()[0]) for line in children.splitlines() if "idle" in line or "INSERT" in line or "SELECT" in line or "[local]" in line]
        assert backends, children
        os.kill(random.choice(backends), signal.SIGKILL)
        senders.more(100, 40)
    senders.check(broken)


def test_sigterm_under_load(broken):
    with Senders(broken.root()) as senders:
        senders.more(200)
        began = time.monotonic()
        assert broken.stop(12) == 0, broken.log_text()
        assert time.monotonic() - began <= 10.5
        assert broken.postgres_pid() is None, "its PostgreSQL was stopped with it"
        broken.start()
        senders.more(50)
    senders.check(broken)


def test_after_kill_9_a_second_start_takes_the_running_postgresql_over(broken):
    account = broken.root()
    document = segment(start=START)
    account.put(document)
    broken.kill()
    broken.start()
    assert account.traces(document["trace_id"])
    assert broken.stop() == 0
    broken.start()
    assert account.traces(document["trace_id"])


@pytest.fixture
def small_disk():
    """A file system of its own that can be filled: 400 MB of memory."""
    folder = temporary_folder("beamline-disk-")
    sudo = [] if os.getuid() == 0 else ["sudo", "-n"]
    subprocess.run([*sudo, "mount", "-t", "tmpfs", "-o", "size=400m,mode=0777", "none", str(folder)], check=True)
    yield folder
    subprocess.run([*sudo, "umount", "-l", str(folder)], check=False)
    folder.rmdir()


def fill(folder):
    """Takes all the space that is left; returns the file to remove."""
    filler = folder / "filler"
    with open(filler, "ab", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                pass
    return filler


def test_a_full_disk_is_refused_with_503_and_recovers(small_disk):
    server = Server(small_disk / "data").start()
    try:
        with Senders(server.root()) as senders:
            senders.more(100)
            filler = fill(small_disk)

            def refused():
                # A log may still have preallocated room: keep the disk full until a call is refused.
                fill(small_disk)
                return senders.statuses.get(503)

            wait_for(refused, 60, "a call refused with 503")
            assert server.process.poll() is None and server.get("/healthz") == 200
            assert set(senders.statuses) <= {200, 503, "no answer"}, senders.statuses
            filler.unlink()
            senders.more(100, 60)
        assert server.process.poll() is None
        senders.check(server)
    finally:
        server.stop()


def test_in_progress_traces_survive_a_kill_between_start_and_completion(broken):
    account = broken.root()
    documents = [segment(name="long", start=START + number / 10, duration=5) for number in range(50)]
    account.put(*[{**{key: value for key, value in document.items() if key != "end_time"}, "in_progress": True} for document in documents])
    broken.kill()
    broken.start()
    account.put(*documents)
    assert counts(node(account.graph(START, START + 60), "long")) == (50, 0, 0, 0)
    assert all(found["IsPartial"] is False and found["Revision"] == 2 for found in account.summaries(START, START + 60))
    assert broken.verify(START, START + 60) == 100
