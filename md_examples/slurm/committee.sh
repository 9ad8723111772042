#!/bin/bash
#SBATCH --job-name=lkm-committee
#SBATCH --array=1-4
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
# Train the members of a committee side by side, as `lkm-train fit --members 4` does one by one:
#
#   sbatch committee.sh runs/own own --data frames.extxyz
#
# The first word is the folder of the committee, the others are those of `lkm-train fit`. The members
# are runs/own/member-1 to member-4, with the seeds 0 to 3.

member=$SLURM_ARRAY_TASK_ID
folder=$1
shift
exec bash "${LKM_SLURM:-$SLURM_SUBMIT_DIR}/train.sh" "$@" \
  --run.directory "$folder/member-$member" --run.seed "$((member - 1))"
