#!/bin/bash
# Faults of a survey in one SLURM job: the scheduler, a worker for each GPU, and the client.
#
#     sbatch slurm.sh survey.zarr faults.zarr w.pth
#
# Submitted again with the same line, an unfinished prediction goes on where it stopped.
#SBATCH --ntasks=10 --cpus-per-task=8 --mem-per-cpu=8G --gpus=8 --time=12:00:00
set -euo pipefail
survey=$1 out=$2 weights=$3
file=$PWD/scheduler-$SLURM_JOB_ID.json
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun does not take over of itself

rm -f "$file"  # of this job before it was queued again
# Any free port: another job may have its scheduler on this node.
srun --exact -n1 --gpus=0 dask scheduler --port 0 --scheduler-file "$file" &
scheduler=$!
# The limit: of its own Dask would give a worker of one thread one core's share of the memory.
srun --exact -n8 --gpus-per-task=1 dask worker --scheduler-file "$file" --nthreads 1 \
    --memory-limit 60GiB --resources GPU=1 --no-dashboard &
until [ -f "$file" ]; do
    kill -0 "$scheduler" || exit 1  # it has ended
    sleep 1
done
srun --exact -n1 --gpus=0 outcrop predict "$survey" "$out" --model faultseg3d \
    --weights "$weights" --device cuda --memory 60GB --cluster "$file" \
    --log-json "$out.log.jsonl"
