#!/bin/bash
#SBATCH --job-name=lkm-train
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Train a model for longer than the time limit of a job:
#
#   sbatch train.sh own --data frames.extxyz --run.directory runs/own
#
# Five minutes before the time limit Slurm sends SIGTERM to this script, which passes it on; lkm-train
# finishes its step, saves its state and ends with status 3. The job is then put back into the queue
# and continues. Words after the script are those of `lkm-train fit`. Set COMMAND to run another
# resumable command, for example COMMAND="lkm-train learn" or COMMAND="lkm-calc md".

command=${COMMAND:-lkm-train fit}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

$command "$@" &
child=$!
passed_on=0
trap 'kill -TERM "$child"; passed_on=1' TERM INT

wait "$child"
status=$?
while [ "$passed_on" -eq 1 ]; do # a signal ended `wait`, not yet the command
  passed_on=0
  wait "$child"
  again=$?
  [ "$again" -eq 127 ] || status=$again # 127: it had ended already
done

if [ "$status" -eq 3 ]; then
  echo "Stopped before the end; back into the queue."
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
