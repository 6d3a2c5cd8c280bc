"""A real Slurm of two nodes on this box: all below one folder, on ports of the loopback that the system gives."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.processes import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
NODES = ("n1", "n2")
CORES, GPUS = 2, 2  # of each node, whatever this box has
CONFIGURATION = """\
ClusterName=budgettune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoAddrCache,NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
MinJobAge=300
KillWait=5
Waittime=0
SchedulerParameters=sched_interval=2,batch_sched_delay=0,defer_batch
JobRequeue=1
GresTypes=gpu
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=02:00:00 State=UP
EnforcePartLimits=ALL
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN"
)


def why_not():
    """Return why no Slurm can be started here, None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "a Slurm of one's own is started as root"


def _free_ports(count):
    """Return ports of the loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Slurm:
    """A cluster that runs.

    Attributes:
        environment: in which its commands find it.
    """

    def __init__(self, folder):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
        self.environment["PATH"] += ":/usr/sbin"

    def ask(self, *words, check=True):
        """Return what a command of Slurm prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def jobs(self, job):
        """Return what is known of the tasks of an array, by number of the task."""
        shown = self.ask("scontrol", "--oneliner", "show", "job", str(job)).splitlines()
        tasks = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in shown]
        return {task["ArrayTaskId"]: task for task in tasks}

    def wait_for_end(self, job, seconds=240):
        """Wait until nothing of an array waits or runs, and return its tasks."""

        def is_over():
            ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
            return {task["JobState"] for task in self.jobs(job).values()} <= ends

        def stays_over():  # a job that begins again has ended for a moment
            return is_over() and (time.sleep(1.0) or is_over())

        wait_until(stays_over, seconds)
        return self.jobs(job)

    def start_node(self, name):
        self._start("slurmd", "-N", name, "-f", f"{self.folder}/slurm.conf")
        wait_until(lambda: "idle" in self.ask("sinfo", "--noheader", f"--nodes={name}", "--format=%T"), 60)

    def kill_node(self, name):
        """Let a node vanish: its daemon and all that it runs."""
        numbers = self.ask("squeue", "--noheader", f"--nodelist={name}", "--format=%A").split()
        for pid in [self._pid(f"slurmd-{name}"), *(pid for job in numbers for pid in processes_of(job))]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def without_controller(self):
        """Stop the controller, and start it again; what runs on the nodes runs on."""
        self._end("slurmctld")
        try:
            yield
        finally:
            self._start("slurmctld", "-f", f"{self.folder}/slurm.conf")
            wait_until(lambda: "is UP" in self.ask("scontrol", "ping", check=False), 60)

    def listening(self):
        """Return the addresses on which its daemons listen, as the kernel writes them."""
        pids = [self._pid(name) for name in ("slurmctld", *(f"slurmd-{node}" for node in NODES))]
        inodes = {str(path.readlink()) for pid in pids for path in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
        return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}

    def start(self):
        host, folder = socket.gethostname(), self.folder
        for name in ("state", "log", "run", "munge", "dev"):
            (folder / name).mkdir(mode=0o755)
        (folder / "munge" / "key").write_bytes(os.urandom(128))
        (folder / "munge" / "key").chmod(0o600)
        controller_port, *ports = _free_ports(1 + len(NODES))
        nodes = [
            NODE.format(name=name, host=host, port=port, cores=CORES, gpus=GPUS)
            for name, port in zip(NODES, ports, strict=True)
        ]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, folder=folder, controller_port=controller_port, nodes="\n".join(nodes), names=",".join(NODES)
            )
        )
        lines = []
        for number, name in enumerate(NODES):
            files = [folder / "dev" / f"gpu{GPUS * number + index}" for index in range(GPUS)]
            for file in files:
                os.mknod(file, 0o600 | 0o020000, os.makedev(1, 3))  # what /dev/null is: no GPU, but a device
            lines += [f"NodeName={name} Name=gpu File={file}" for file in files]
        (folder / "gres.conf").write_text("\n".join(lines) + "\n")
        munge, log = folder / "munge", folder / "log"
        self._start(
            *("munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket"),
            *(
                f"--pid-file={folder}/run/munged.pid",
                f"--log-file={log}/munged.log",
                f"--seed-file={munge}/seed",
            ),
        )
        self._start("slurmctld", "-f", f"{folder}/slurm.conf")
        for name in NODES:
            self.start_node(name)

    def stop(self):
        self.ask("scancel", "--user=root", check=False)
        time.sleep(0.5)
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged"):
            with suppress(OSError, ValueError):
                self._end(name)

    def _start(self, *words):
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _end(self, name):
        pid = self._pid(name)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 30)

    def _pid(self, name):
        return int((self.folder / "run" / f"{name}.pid").read_text())


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def processes_of(job):
    """Return what runs of a job: its script, what that started, and the daemon that started it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
            if f"slurmstepd: [{job}." in (process / "cmdline").read_text():
                found.append(int(process.name))
    return sorted(found)  # the daemon first, or it would tell the controller that the script has ended


@contextmanager
def running(folder):
    """Start a cluster in an empty folder, yield it, and stop it."""
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
