"""A Ray cluster of several nodes on this box, on the loopback alone: for tests, and for measurements.

It lives in a process of its own, `python -m benchmarks.support.ray_cluster`, which takes orders as lines: what Ray does
to a process that loads it (warnings, signals, threads) stays there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# With the second, addresses of the loopback stay such; Ray takes them for the box's own otherwise, and listens on all.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
MEMORY = 80_000_000  # of each node's object store, which a fleet does not use


class RayCluster:
    """What `running` yields: the address of a cluster, and orders to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address, self.dashboard, self.session = self.order("where")

    def order(self, *words: object) -> Any:
        """Send an order, and return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # Ray may print, too
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError("the Ray cluster has ended")

    def add(self, name: str, cpus: int = 1, gpus: int = 0) -> None:
        """Start a node whose processes find its name in the variable NODE."""
        self.order("add", name, cpus, gpus)

    def lose(self, name: str) -> None:
        """End a node as a power cut does: no process of it has time for anything."""
        self.order("lose", name)

    def listening(self) -> list[str]:
        """Return the addresses that processes of the cluster listen on."""
        return list(self.order("listening"))


@contextlib.contextmanager
def running(*, dashboard: bool = False, **environment: str) -> Iterator[RayCluster]:
    """Start a cluster whose head has one CPU and the name `head`, yield it, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *["--dashboard"] * dashboard],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **ENVIRONMENT, **environment},
    )
    try:
        yield RayCluster(process)
    finally:
        process.communicate(timeout=60)  # the end of its orders


def _serve(orders: Iterator[str], *, dashboard: bool) -> None:
    import psutil
    from ray.cluster_utils import Cluster

    def node(name: str, cpus: int, gpus: int, **more: Any) -> dict[str, Any]:
        return {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "object_store_memory": MEMORY,
            "node_ip_address": "127.0.0.1",
            "env_vars": {"NODE": name},
            **more,
        }

    def processes(of: Any) -> list[psutil.Process]:
        found = []
        for started in of.all_processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(started[0].process.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

    head = node("head", 1, 0, include_dashboard=dashboard, dashboard_host="127.0.0.1", dashboard_port=0)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {"head": cluster.head_node}
    for line in orders:
        order, *words = json.loads(line)
        answer: Any = None
        if order == "where":
            answer = cluster.address, getattr(cluster, "webui_url", None), cluster.head_node.get_session_dir_path()
        elif order == "add":
            nodes[words[0]] = cluster.add_node(**node(*words))
        elif order == "lose":
            lost = nodes.pop(words[0])
            doomed = processes(lost)
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for process in doomed:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(number)
            cluster.remove_node(lost, allow_graceful=False)
        elif order == "listening":
            found = {process.pid: process for each in nodes.values() for process in processes(each)}
            sockets = [socket for process in found.values() for socket in process.net_connections("inet")]
            answer = sorted({socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN})
        print("answer " + json.dumps(answer), flush=True)
    cluster.shutdown()
    time.sleep(0.1)


if __name__ == "__main__":
    _serve(iter(sys.stdin), dashboard="--dashboard" in sys.argv)
