"""What a fleet on Ray refuses before Ray is loaded, and what it makes of Ray's own errors. No cluster, and no Ray."""

import socket
import sys
from types import SimpleNamespace

import pytest

from budgettune.errors import UsageError
from budgettune.fleet import ray_tasks
from budgettune.fleet.plan import FleetPlan
from budgettune.spec.study_spec import load_spec
from budgettune.study.handle import create_study
from budgettune.worker.signals import StopFlag

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.11.7
This process on node address: 10.0.0.1:6379 was started with:
    Ray: 2.40.0
    Python: 3.11.7
"""
UNIMPORTED = """The remote function failed to import on the worker.

Traceback (most recent call last):
ModuleNotFoundError: No module named 'budgettune'"""


def plan(**asked):
    return FleetPlan(study="mine", url="postgresql://anna:s3cret@db/x", workers=8, **asked)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--address", "ray://10.0.0.1:10001"], "from elsewhere, submit it: ray job submit"),
        (["--address", "http://10.0.0.1:8265"], "from elsewhere, submit it: ray job submit"),
        (["--address", "local"], "as HOST:PORT, such as 10.0.0.1:6379"),
        (["--address", "127.0.0.1:70000"], "no Ray cluster at 127.0.0.1:70000"),
        (["--storage", "WITH A PASSWORD"], "put the URL into BUDGETTUNE_STORAGE"),
        ([], "pip install 'budgettune[ray]'"),
    ],
)
def test_what_cannot_work_is_said_before_ray_is_loaded(run, monkeypatch, postgresql_url, words, sentence):
    create_study(load_spec("digits"), postgresql_url)
    monkeypatch.setenv("BUDGETTUNE_STORAGE", postgresql_url)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with_password = postgresql_url.replace("postgres:@", "postgres:s3cret@")
    words = [with_password if word == "WITH A PASSWORD" else word for word in words]
    status, out, err = run("fleet", "digits", "--on", "ray", *words)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert sentence in err
    assert "s3cret" not in err


def test_ray_address_is_taken_from_the_environment_and_nobody_there_is_said_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match=f"no Ray cluster at 127.0.0.1:{port} .*ray status"):
        ray_tasks.run(plan(), None, StopFlag(), say=print)


@pytest.mark.parametrize(
    ("address", "error", "sentence"),
    [
        ("10.0.0.1:6379", RuntimeError(MISMATCH), "differ in versions (Ray: 2.60.0, Python: 3.11.7, Ray: 2.40.0, "),
        ("auto", ConnectionError("Could not find any running Ray instance."), "no Ray cluster runs on this box"),
        (
            "10.0.0.1:6379",
            RuntimeError("No node info found matching attributes: '10.0.0.9'"),
            "this box is no node of the Ray cluster at 10.0.0.1:6379: join it",
        ),
        (
            "10.0.0.1:80",
            RuntimeError("Failed to connect to GCS. Last connection error: …"),
            "no answer of a Ray cluster",
        ),
        ("10.0.0.1:6379", ValueError("all is lost"), "at 10.0.0.1:6379 cannot be joined: all is lost"),
    ],
)
def test_why_a_cluster_cannot_be_joined_is_said_with_what_to_do(address, error, sentence):
    wrapped = ConnectionError("Failed to connect to Ray cluster")
    wrapped.__cause__ = error
    assert sentence in ray_tasks.refusal(wrapped, address)


def test_why_a_task_ended_is_said_in_a_sentence_without_a_password():
    class FromTask(Exception):
        cause = ValueError("no room\nat postgresql://anna:s3cret@db/x")

    assert "install it on every node" in ray_tasks.reason(RuntimeError(UNIMPORTED))
    assert ray_tasks.reason(FromTask("a traceback")) == "its task ended: ValueError: no room"
    assert "s3cret" not in ray_tasks.reason(RuntimeError("postgresql://anna:s3cret@db/x is away"))


def test_how_many_workers_there_is_room_for():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 16.0}, {}]
    assert [ray_tasks.room_on(node, plan(gpus=1, cpus=2)) for node in nodes] == [2, 1, 0, 0]
    assert [ray_tasks.room_on(node, plan(cpus=2)) for node in nodes] == [4, 1, 8, 0]


def test_a_worker_that_no_node_has_room_for_is_refused_unless_nodes_are_started_in_groups():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}, "Labels": {"ray.io/node-id": "1"}},
        {"Alive": False, "Resources": {"GPU": 4.0}, "Labels": {}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},  # as an older Ray has it
    ]
    cluster, said = SimpleNamespace(nodes=lambda: nodes), []
    with pytest.raises(
        UsageError, match="has 1 CPU and 4 GPUs for a worker: they have 8 CPUs and 2 GPUs; ask for less"
    ):
        ray_tasks._say_room(plan(gpus=4), cluster, said.append)
    nodes[0]["Labels"]["ray.io/node-group"] = "head"
    ray_tasks._say_room(plan(gpus=4), cluster, said.append)
    assert said == ["room for 0 of 8 workers; the others begin when there is more"]
