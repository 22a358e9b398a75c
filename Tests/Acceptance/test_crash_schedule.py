"""Faults drawn at random, one after the other, against a cluster under load: what the crash matrix checks one by one, mixed.

`deploy/test --crash 50 --seed 7` runs 50 of them; without flags it is a few, for CI. The same seed draws the same schedule
(what a fault meets still depends on the machine). Afterwards everything acknowledged is stored once, and
`beamline verify` finds no difference.
"""

import contextlib
import os
import random
import signal
import threading
import time

import pytest

from beamline import wait_for
from local_cluster import LocalCluster
from senders import Senders

# Taken out of the environment: the program refuses a BEAMLINE_… that is no setting of its own.
CRASHES = int(os.environ.pop("BEAMLINE_CRASHES", "") or 4)
SEED = int(os.environ.pop("BEAMLINE_CRASH_SEED", "") or random.SystemRandom().randrange(1_000_000))
PARTITIONS = 4
NODES = ["ingest-1", "ingest-2", "aggregate-1", "aggregate-2", "query-1"]


class Fault:
    """One thing done to one target."""

    def __init__(self, action, target, seconds=0.0):
        self.action, self.target, self.seconds = action, target, seconds

    def __str__(self):
        return f"{self.action} {self.target}" + (f" for {self.seconds:.1f} s" if self.seconds else "")

    def strike(self, cluster):
        if self.action == "hang":
            pid = running(cluster, self.target)
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(self.seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        elif self.action == "restart":
            running(cluster, self.target)
            cluster.hold(self.target)
            time.sleep(self.seconds)
            cluster.release(self.target)
        else:
            number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}[self.action]
            os.kill(running(cluster, self.target), number)


class Step:
    """Faults that strike at once, and the pause after them. A step that does not settle is followed before all is well again."""

    def __init__(self, faults, *, raises=False, settles, pause):
        self.faults, self.raises, self.settles, self.pause = faults, raises, settles, pause

    def __str__(self):
        done = "partitions are raised" if self.raises else " and ".join(map(str, self.faults))
        return f"{done}, {'all is well' if self.settles else 'at once'} + {self.pause:.1f} s"


def draw_fault(dice, kafka, taken=()):
    kinds = ["kill", "hang", "terminate"] * 3 + ["postgresql"] * 2 + ["broker"] * (2 if kafka else 0)
    while True:
        kind = dice.choice(kinds)
        if kind == "postgresql":
            fault = Fault("kill", "postgresql")
        elif kind == "broker":
            fault = Fault("restart", "kafka", dice.uniform(0.5, 4))
        else:
            fault = Fault(kind, dice.choice(NODES), dice.uniform(4, 6) if kind == "hang" else 0.0)
        if fault.target not in taken:
            return fault


def draw_schedule(seed, count, kafka):
    """`count` steps; in one of them the partitions are raised, about a fifth of the others have two faults."""
    dice = random.Random(f"{seed} {count} {kafka}")
    raised = dice.randrange(count)
    steps = []
    for number in range(count):
        faults = []
        if number != raised:
            for _ in range(2 if dice.random() < 0.2 else 1):
                faults.append(draw_fault(dice, kafka, [fault.target for fault in faults]))
        steps.append(Step(faults, raises=number == raised, settles=dice.random() < 0.5, pause=dice.uniform(0.2, 1.5)))
    return steps


def is_running(pid):
    """Whether there is such a process, and it is more than an exit code nobody has fetched."""
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def running(cluster, name):
    """The id of a node's process, once it runs (again)."""
    return wait_for(lambda: is_running(cluster.node(name)["pid"]) and cluster.node(name)["pid"], 40, f"{name} runs")


def owned(cluster):
    return cluster.metric("aggregate", "beamline_partitions_owned")


def raise_partitions(cluster):
    """One aggregator that asks for twice as many comes, has a share, and leaves again."""
    with cluster.aggregator("third", partitions=2 * PARTITIONS) as third:
        wait_for(lambda: third("beamline_partitions_owned") > 0, 60, "the third aggregator has a share")


def strike(cluster, step):
    if step.raises:
        return raise_partitions(cluster)
    troubles = []

    def one(fault):
        try:
            fault.strike(cluster)
        except BaseException as trouble:  # shown by the test's own thread
            troubles.append(trouble)

    threads = [threading.Thread(target=one, args=(fault,)) for fault in step.faults]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if troubles:
        raise troubles[0]


def settle(cluster, senders, partitions):
    cluster.wait_ready(timeout=60)
    wait_for(lambda: owned(cluster) == partitions, 60, "an owner for each partition")
    senders.more(20, 60)


@pytest.mark.parametrize("log", ["postgresql", "kafka"])
def test_a_schedule_of_random_faults_loses_and_doubles_nothing(log):
    print(f"\nseed {SEED}: {CRASHES} faults, log in {log}", flush=True)
    steps = draw_schedule(SEED, CRASHES, log == "kafka")
    cluster = LocalCluster("--partitions", PARTITIONS, *(["--no-kafka"] if log == "postgresql" else []))
    try:
        cluster.start()
        partitions = PARTITIONS
        with Senders(cluster.root(), threads=3, pause=0.05) as senders:
            senders.more(20)
            for number, step in enumerate(steps, 1):
                print(f"{number:4} {step}", flush=True)
                strike(cluster, step)
                partitions *= 2 if step.raises else 1
                if step.settles:
                    settle(cluster, senders, partitions)
                time.sleep(step.pause)
            settle(cluster, senders, partitions)
        senders.check(cluster)
        documents = sum(map(len, senders.acknowledged.values()))
        print(f"seed {SEED}: {documents} documents of {senders.count()} traces acknowledged and stored once; verify finds no difference; "
              f"answers {senders.statuses}", flush=True)
    except BaseException:
        print(f"failed with seed {SEED}", flush=True)
        raise
    finally:
        cluster.remove()
