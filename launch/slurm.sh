#!/usr/bin/env bash
# One run of hisam over several GPU nodes of a SLURM cluster; queues itself with sbatch:
#     launch/slurm.sh [--dry-run] -- train --dataset D --ids I --config configs/hmat_1b.py --workdir RUN
# One process a GPU, as JAX's detection of SLURM gives each task the one GPU of its SLURM_LOCALID. More in README.md.
set -euo pipefail

# ---- settings: the environment overrides each
HISAM=${HISAM:-hisam}                                   # the command on the nodes; words split at spaces
NODES=${NODES:-2}                                       # machines
GPUS_PER_NODE=${GPUS_PER_NODE:-8}                       # GPUs, and processes, of each
CPUS_PER_GPU=${CPUS_PER_GPU:-8}                         # cores of each process, for its share of the data
MEMORY_PER_GPU=${MEMORY_PER_GPU:-64G}                   # host memory of each process
TIME=${TIME:-24:00:00}                                  # limit of one start; the run goes on after the next
PARTITION=${PARTITION:-}                                # empty: the cluster's default
ACCOUNT=${ACCOUNT:-}                                    # empty: yours
JOB_NAME=${JOB_NAME:-hisam}                             # name in the queue
LOG=${LOG:-slurm-%j.log}                                # all output, each line with its process; %j is the job
SETUP=${SETUP:-:}                                       # run by each process first: '. /shared/venv/bin/activate'
GRACE=${GRACE:-120}                                     # seconds from SIGTERM to SIGKILL, to save a checkpoint in
MAX_RESTARTS=${MAX_RESTARTS:-20}                        # times that the run is queued again
HISAM_JOIN_TIMEOUT=${HISAM_JOIN_TIMEOUT:-600}           # seconds in which all must have joined
HISAM_HEARTBEAT_TIMEOUT=${HISAM_HEARTBEAT_TIMEOUT:-100} # seconds of silence after which a process counts as dead
# ----

# shellcheck source=launch/common.bash
. "$(dirname "$0")/common.bash"
take_verb "$@"
whole_numbers NODES GPUS_PER_NODE CPUS_PER_GPU GRACE MAX_RESTARTS HISAM_JOIN_TIMEOUT HISAM_HEARTBEAT_TIMEOUT
read -ra program <<<"$HISAM"
command=$(printf '%q ' "${program[@]}" "${verb[@]}")

options=(
  "--job-name=$JOB_NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS_PER_NODE" "--gpus-per-node=$GPUS_PER_NODE"
  "--cpus-per-task=$CPUS_PER_GPU" "--mem-per-gpu=$MEMORY_PER_GPU" "--time=$TIME" "--output=$LOG" --open-mode=append
  --requeue "--signal=B:TERM@$GRACE" ${PARTITION:+"--partition=$PARTITION"} ${ACCOUNT:+"--account=$ACCOUNT"}
)

# srun gives the highest exit code of its tasks; what decides is the first one, so tasks write theirs down.
job=$(
  cat <<JOB
#!/usr/bin/env bash
export HISAM_DISTRIBUTED=auto HISAM_JOIN_TIMEOUT=$HISAM_JOIN_TIMEOUT HISAM_HEARTBEAT_TIMEOUT=$HISAM_HEARTBEAT_TIMEOUT
export HISAM_CODES=\$PWD/.hisam-codes-\$SLURM_JOB_ID
$(wait_part)
task() {
  $SETUP
  $command&
  child=\$!
  trap 'kill -TERM "\$child"' TERM
  to_the_end "\$child"
  [ "\$code" = 0 ] || echo "\$code" >>"\$HISAM_CODES"
  exit "\$code"
}
export -f to_the_end task

rm -f "\$HISAM_CODES"
srun --label --cpus-per-task=$CPUS_PER_GPU --kill-on-bad-exit=1 --wait=$GRACE bash -c task &
step=\$!
trap 'scancel --signal=TERM "\$SLURM_JOB_ID"' TERM # B:TERM came to this script alone; on to the tasks
to_the_end "\$step"
[ ! -s "\$HISAM_CODES" ] || read -r code <"\$HISAM_CODES"
rm -f "\$HISAM_CODES"
$(requeue_part "\$SLURM_JOB_ID")
JOB
)
queue
