#!/usr/bin/env bash
# Pretraining on 2 nodes of 4 GPUs under SLURM; one node or one GPU: change --nodes and the two numbers of 4.
#
#   sbatch configs/slurm_pretrain.sh configs/adam_resnet50_single_gpu.yaml outputs/adam --data.source /data/my_xrays
#
# Submit from the repository's folder, on a file system that all nodes share. srun itself starts the processes, one a
# GPU, so that no launcher stands between SLURM's SIGTERM and the training, which saves a checkpoint and ends. The job
# then goes back into the queue and resumes. docs/multi-node.md explains it.

#SBATCH --job-name=eden
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:TERM@300

set -euo pipefail
config=${1:?usage: sbatch configs/slurm_pretrain.sh CONFIG OUTPUT_DIR [--dotted.key value ...]}
output=${2:?usage: sbatch configs/slurm_pretrain.sh CONFIG OUTPUT_DIR [--dotted.key value ...]}
shift 2

# What torch.distributed and accelerate read; the rank of each process follows below.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${nodes%%$'\n'*}
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
WORLD_SIZE=$SLURM_NTASKS
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export MASTER_ADDR MASTER_PORT WORLD_SIZE OMP_NUM_THREADS

command=("${PYTHON:-.venv/bin/python}" scripts/pretrain.py --config "$config" --run.output_dir "$output" "$@")
if [ -e "$output/config.yaml" ]; then
  command+=(--resume)
fi

srun --kill-on-bad-exit=1 bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' pretrain "${command[@]}" &
step=$!
stopped=false
trap 'stopped=true; kill -TERM "$step"' TERM
status=0
wait "$step" || status=$?
if $stopped; then # the first wait ended at the signal
  status=0
  wait "$step" || status=$?
  if [ "$status" = 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
