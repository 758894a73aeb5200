#!/usr/bin/env bash
# Preparing a large source on 16 machines under SLURM, and a last job that makes what is missing and checks it all.
#
#   sbatch configs/slurm_prepare.sh /data/my_xrays /data/prepared --side 256
#   sbatch --array=1 --dependency=afterany:JOB configs/slurm_prepare.sh /data/my_xrays /data/prepared --side 256
#
# Submit from the repository's folder, on a file system that all machines share; docs/multi-node.md explains it.

#SBATCH --job-name=eden-prepare
#SBATCH --array=1-16
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%A-%a.log

set -euo pipefail
exec "${PYTHON:-.venv/bin/python}" scripts/prepare_images.py \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
