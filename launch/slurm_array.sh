#!/usr/bin/env bash
# A sweep on a SLURM cluster, an array of jobs of which each does one cell; queues itself with sbatch:
#     launch/slurm_array.sh [--dry-run] -- scale configs/scaling/shop.py --out SWEEP
# SWEEP lies on a disk that all nodes share, whose file locks work. A cell uses all GPUs of its job. More in README.md.
set -euo pipefail

# ---- settings: the environment overrides each
HISAM=${HISAM:-hisam}                   # the command, here and on the nodes; words split at spaces
CELLS=${CELLS:-}                        # cells of the sweep; empty: what `hisam scale --list` says
AT_ONCE=${AT_ONCE:-16}                  # jobs of the array that run at a time
GPUS=${GPUS:-1}                         # GPUs of each job; 0 asks for none
CPUS=${CPUS:-8}                         # cores of each job
MEMORY=${MEMORY:-64G}                   # host memory of each job
TIME=${TIME:-08:00:00}                  # limit of one start; the cell goes on after the next
PARTITION=${PARTITION:-}                # empty: the cluster's default
ACCOUNT=${ACCOUNT:-}                    # empty: yours
JOB_NAME=${JOB_NAME:-hisam-scale}       # name in the queue
LOG=${LOG:-slurm-%A_%a.log}             # output of each job; %A is the array, %a the cell's number
SETUP=${SETUP:-:}                       # run by each job first: '. /shared/venv/bin/activate'
GRACE=${GRACE:-120}                     # seconds from SIGTERM to SIGKILL, to save a checkpoint in
MAX_RESTARTS=${MAX_RESTARTS:-20}        # times that a job is queued again
# ----

# shellcheck source=launch/common.bash
. "$(dirname "$0")/common.bash"
take_verb "$@"
read -ra program <<<"$HISAM"
count_cells
whole_numbers CELLS AT_ONCE GPUS CPUS GRACE MAX_RESTARTS
command=$(printf '%q ' "${program[@]}" "${verb[@]}")

gpus=()
[ "$GPUS" = 0 ] || gpus=("--gpus-per-node=$GPUS")
options=(
  "--job-name=$JOB_NAME" "--array=1-$CELLS%$AT_ONCE" --nodes=1 --ntasks=1 ${gpus[@]+"${gpus[@]}"}
  "--cpus-per-task=$CPUS" "--mem=$MEMORY" "--time=$TIME" "--output=$LOG" --open-mode=append --requeue
  "--signal=B:TERM@$GRACE" ${PARTITION:+"--partition=$PARTITION"} ${ACCOUNT:+"--account=$ACCOUNT"}
)

job=$(
  cat <<JOB
#!/usr/bin/env bash
$(wait_part)
$SETUP
$command--only "\$SLURM_ARRAY_TASK_ID" &
child=\$!
trap 'kill -TERM "\$child"' TERM
to_the_end "\$child"
$(requeue_part "\${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID")
JOB
)
queue
