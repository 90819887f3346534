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
$SETUP
$command--only "\$SLURM_ARRAY_TASK_ID" &
child=\$!
trap 'kill -TERM "\$child"' TERM
code=0
wait "\$child" || code=\$?
while kill -0 "\$child" 2>/dev/null; do # a signal interrupts a wait
  code=0
  wait "\$child" || code=\$?
done
if [ "\$code" = 75 ] || [ "\$code" = 143 ]; then
  if [ "\${SLURM_RESTART_COUNT:-0}" -lt $MAX_RESTARTS ]; then
    echo "launch: exit code \$code; queued again" >&2
    scontrol requeue "\${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID" && sleep 60 # the requeue ends this script
  else
    echo "launch: exit code \$code after $MAX_RESTARTS restarts; not queued again" >&2
  fi
fi
exit "\$code"
JOB
)

if [ -n "$dry" ]; then
  line=$(printf '%q ' sbatch "${options[@]}")
  printf "%s<<'JOB'\n%s\nJOB\n" "$line" "$job"
  exit 0
fi
type sbatch >/dev/null 2>&1 || refuse "no sbatch on this machine; expected a login node of a SLURM cluster"
exec sbatch "${options[@]}" <<<"$job"
