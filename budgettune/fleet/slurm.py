"""A fleet on Slurm: an array of jobs that begin again when their time limit is near."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from budgettune.errors import UsageError
from budgettune.fleet.plan import FleetPlan
from budgettune.storage.url import split_password
from budgettune.text import format_duration, one_line, redact
from budgettune.worker.processes import OUT_OF_TIME_STATUS
from budgettune.worker.watchdog import HUNG_STATUS

LEAD_SECONDS = 120  # before the time limit, in which a trial is handed back; a sixth of short limits
EARLY_SECONDS = 60  # by which Slurm may send the signal before it is due; a third of short limits
WITH_PASSWORDS = ("BUDGETTUNE_STORAGE", "OPTUNA_STORAGE", "BUDGETTUNE_DASHBOARD_PASSWORD")  # none of which jobs need

NO_NODE = (
    "no node of the partition has {asked} and the memory of $SBATCH_MEM_PER_NODE, if set: ask for less "
    "(`sinfo -o '%P %c %m %G'` shows what nodes have)"
)
# What sbatch says, and what it means for somebody who asked for a fleet.
REFUSALS = {
    "Unable to contact slurm controller": "Slurm's controller does not answer: try `scontrol ping`, and again later",
    "Requested node configuration is not available": NO_NODE,
    "CPU count per node can not be satisfied": NO_NODE,
    "Invalid generic resource": "no node of this cluster has GPUs that Slurm knows of: leave out --gpus",
    "Requested time limit is invalid": "the partition gives no job {time}: ask for less --time "
    "(`sinfo -o '%P %l'` shows the limits)",
    "Invalid job array specification": "an array of this cluster is smaller than {workers}: ask for fewer --workers "
    "(`scontrol show config | grep MaxArraySize`)",
}

SCRIPT = """\
#!/bin/bash
# {workers} of the study {title}, as a Slurm array that `budgettune fleet` wrote: `sbatch FILE` starts them.
#
# The database's password does not stand here. Keep it in ~/.pgpass, which the nodes see too (mode 0600, a line
# HOST:PORT:DATABASE:USER:PASSWORD), or call sbatch with PGPASSWORD in its environment.
# `scancel JOB` ends the workers, and their trials go on wherever the study is worked on next. Partition, account and
# memory: SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_MEM_PER_NODE in the environment of sbatch, or lines here.
{directives}
# Jobs beside these on a node disturb their timings. For whole nodes take one # away:
##SBATCH --exclusive
set -uo pipefail

PYTHON={python}
export BUDGETTUNE_STORAGE={url}
# Results on their way to the database, and half-trained trials: in folders that all nodes see, for a trial may go on
# on another one.
export BUDGETTUNE_SPOOL="${{BUDGETTUNE_SPOOL:-$HOME/.local/state/budgettune/spool}}"
export BUDGETTUNE_CHECKPOINTS="${{BUDGETTUNE_CHECKPOINTS:-$BUDGETTUNE_SPOOL/half-trained}}"
(umask 077 && mkdir -p -- "$BUDGETTUNE_SPOOL" "$BUDGETTUNE_CHECKPOINTS")

# Of an array's task its own name: the number of one of them is that of the whole array, too.
job="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"

# Print the seconds that Slurm leaves this job; nothing where it has no limit.
seconds_left() {{
    local left days=0 part seconds=0
    if [ -n "${{SLURM_JOB_END_TIME:-}}" ]; then
        echo $((SLURM_JOB_END_TIME - $(date +%s)))
        return
    fi
    left=$(squeue --noheader --jobs="$job" --format=%L) || return
    [[ $left =~ ^([0-9]+-)?[0-9:]+$ ]] || return
    [[ $left = *-* ]] && days=${{left%%-*}} left=${{left#*-}}
    for part in ${{left//:/ }}; do seconds=$((60 * seconds + 10#$part)); done
    echo $((86400 * 10#$days + seconds))
}}

# No trial begins that would outlast the signal.
limit=()
left=$(seconds_left)
[ -n "$left" ] && limit=(--timeout "$((left > {margin} ? left - {margin} : 1))")

worker='' told='' again='' cancelled=''
# Once: a second time, as at the limit after the signal for it, would end the worker before its trial is handed back.
stop_worker() {{ [ -n "$worker" ] && [ -z "$told" ] && kill -TERM "$worker" 2>/dev/null && told=yes; }}
trap 'again=yes; stop_worker' USR2  # the time is nearly up
# The time is over, and the controller was away when it was nearly up; or scancel, or another job needs the node.
trap '[ "$SECONDS" -ge "${{left:-$((SECONDS + 1))}}" ] && again=yes || cancelled=yes; stop_worker' TERM

echo "job $job on ${{SLURMD_NODENAME:-$HOSTNAME}}, GPUs ${{CUDA_VISIBLE_DEVICES:-none}}," \
    "${{left:-no limit of}} seconds left, begun again ${{SLURM_RESTART_COUNT:-0}} times"
"$PYTHON" -m budgettune worker ${{limit[@]+"${{limit[@]}}"}} {words} &
worker=$!
wait "$worker"
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done  # a signal ended the wait, and not the worker
wait "$worker"  # once more: its status is remembered
status=$?

case $status in
    {out_of_time}) again=yes ;;  # what is open takes longer than was left
    # A trial hung, the GPU is lost, or something killed the worker, such as the memory limit. Each time uses up an
    # attempt of a trial; what fails at once would go on for ever.
    {hung} | 134 | 135 | 136 | 137 | 139) [ "$SECONDS" -lt 60 ] || again=yes ;;
    1[0-9][0-9]) ;;  # as it was told
    *) again='' ;;  # it has ended by itself
esac
if [ -n "$again" ] && [ -z "$cancelled" ]; then
    echo "job $job begins again"
    # A controller that is away is asked for as long as this job lives; one that is there may refuse three times.
    for ((refused = 0; refused < 3; )); do
        scontrol requeue "$job" && exit
        scontrol ping >/dev/null && refused=$((refused + 1))
        sleep $((5 + RANDOM % 10))
        [ -z "$cancelled" ] || break
    done
fi
exit "$status"
"""


def script(plan: FleetPlan, python: str = sys.executable) -> str:
    """Return the job script of a fleet, for `sbatch`; no password is in it.

    Args:
        plan: what is asked for.
        python: the interpreter that has BudgetTune, by a path that the nodes see.
    """
    limit_seconds = math.inf if plan.minutes is None else 60 * plan.minutes
    lead_seconds = int(min(LEAD_SECONDS, limit_seconds / 6))
    label = _label(plan.study)
    directives = {
        "job-name": label,
        "array": f"1-{plan.workers}",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": plan.cpus,
        "gres": f"gpu:{plan.gpus}" if plan.gpus else None,
        "time": plan.minutes,
        "signal": f"B:USR2@{lead_seconds}",  # also where the partition sets the limit
        "requeue": "",
        "open-mode": "append",
        "output": f"{label}-%A_%a.log",
    }
    given = [f"#SBATCH --{name}={value}".rstrip("=") for name, value in directives.items() if value is not None]
    return SCRIPT.format(
        workers=_workers(plan),
        title=one_line(plan.study),
        directives="\n".join(given),
        python=shlex.quote(python),
        url=shlex.quote(split_password(plan.url)[0]),
        margin=int(lead_seconds + min(EARLY_SECONDS, limit_seconds / 3)),
        words=shlex.join([*plan.words(), "--", plan.study]),
        out_of_time=OUT_OF_TIME_STATUS,
        hung=HUNG_STATUS,
    )


def submit(plan: FleetPlan, environment: Mapping[str, str] = os.environ) -> str:
    """Give the fleet to Slurm, and return in some lines which job it is, how to watch it and how to end it.

    Raises:
        UsageError: where there is no Slurm here, or it refuses.
    """
    password = split_password(plan.url)[1]
    given = {name: value for name, value in environment.items() if name not in WITH_PASSWORDS}
    if password:
        given["PGPASSWORD"] = password
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script(plan), env=given, capture_output=True, encoding="utf-8", check=False
        )
    except FileNotFoundError:
        raise UsageError(
            "no sbatch is here: run this where jobs are submitted, or take the script from --print there"
        ) from None
    if done.returncode != 0:
        raise UsageError(_refusal(plan, done.stderr))
    job = done.stdout.strip().partition(";")[0]
    return "\n".join(
        (
            f"array {job}: {_workers(plan)} of study {plan.study!r}",
            f"watch  squeue --jobs={job}",
            f"logs   {Path.cwd() / _label(plan.study)}-{job}_*.log",
            f"end    scancel {job}",
        )
    )


def _workers(plan: FleetPlan) -> str:
    return f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"


def _label(study: str) -> str:
    """Return a name for jobs and logs in which nothing means anything to Slurm or a file system."""
    return "budgettune-" + re.sub(r"[^A-Za-z0-9._-]", "_", study)[:100]


def _refusal(plan: FleetPlan, said: str) -> str:
    """Return in a sentence why sbatch took no job."""
    values = {
        "asked": plan.each,
        "time": "that long" if plan.time_seconds is None else format_duration(plan.time_seconds),
        "workers": _workers(plan),
    }
    for words, meaning in REFUSALS.items():
        if words in said:
            return meaning.format(**values)
    reasons = [line.partition("error: ")[2] or line for line in said.splitlines() if line.strip()]
    return f"sbatch took no job: {redact(one_line(reasons[-1] if reasons else 'it does not say why'))}"
