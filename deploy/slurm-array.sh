#!/bin/bash
# Workers of one study as a Slurm array: each task claims open trials until none is left.
#
#   export BUDGETTUNE_STORAGE=postgresql://budgettune@db.example/budgettune    # its password in ~/.pgpass
#   budgettune study create fashion-mnist --skip-if-exists
#   sbatch --array=1-8 deploy/slurm-array.sh fashion-mnist
#
# Edit: partition, GPUs, time, and where budgettune is installed.
#SBATCH --job-name=budgettune
#SBATCH --array=1-4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --time=08:00:00
# Shared nodes disturb timings: ask for whole ones where you can.
##SBATCH --exclusive
# Two minutes before the end the worker is told to hand its trial back; --requeue lets it begin again.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=budgettune-%A-%a.log
set -euo pipefail

: "${BUDGETTUNE_STORAGE:?set it to the URL of the database before sbatch}"
VENV=${VENV:-$HOME/budgettune}
# Results wait here while the database is away; all nodes must see it, for the next task may run on another.
export BUDGETTUNE_SPOOL=${BUDGETTUNE_SPOOL:-$HOME/.budgettune-spool}

# exec: the signal must reach the worker, not a shell that waits for it.
exec "$VENV/bin/budgettune" worker --threads "${SLURM_CPUS_PER_TASK:-1}" --processes 1 -- "${1:?name a study}"
