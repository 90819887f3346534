#!/usr/bin/env bash
# One run of hisam on a Cloud TPU slice from the queue, one process a host:
#     launch/tpu_queued.sh [--dry-run] -- train --dataset D --ids I --config configs/hmat_1b.py --workdir RUN
# Asks for the slice, waits, installs on every host, runs, starts again after exit code 75 or 143 and when a spot slice
# was taken back, and gives the slice back at the end. --workdir must lie where every host sees it. More in README.md.
set -euo pipefail

# ---- settings: the environment overrides each
HISAM=${HISAM:-../hisam-venv/bin/hisam}                 # the command, in the copied checkout; words split at spaces
NAME=${NAME:-hisam}                                     # name of the queued resource and of its node
PROJECT=${PROJECT:-}                                    # empty: gcloud's default
ZONE=${ZONE:-us-west4-a}                                # zone of the slice
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-16}      # kind and size of the slice
RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite} # image of the hosts, by kind of TPU
SPOT=${SPOT:-}                                          # yes: cheaper, may be taken back at any moment
VALID_FOR=${VALID_FOR:-6h}                              # how long to stand in the queue
PACKED=${PACKED:-${TMPDIR:-/tmp}/hisam_jax.tar.gz}      # where the checkout's last commit is packed, to be copied
SETUP=${SETUP:-}                                        # run in the copied checkout on each new host; empty: see below
KEEP=${KEEP:-}                                          # yes: the slice stays after the run, and costs
MAX_RESTARTS=${MAX_RESTARTS:-20}                        # times that the run is started again
POLL=${POLL:-30}                                        # seconds between two looks at the queue
HISAM_JOIN_TIMEOUT=${HISAM_JOIN_TIMEOUT:-600}           # seconds in which all must have joined
HISAM_HEARTBEAT_TIMEOUT=${HISAM_HEARTBEAT_TIMEOUT:-100} # seconds of silence after which a process counts as dead
# ----
SETUP=${SETUP:-"sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv && \
python3.11 -m venv ../hisam-venv && ../hisam-venv/bin/pip install -q '.[tpu]'"} # the images' own Python is too old

# shellcheck source=launch/common.bash
. "$(dirname "$0")/common.bash"
take_verb "$@"
whole_numbers MAX_RESTARTS POLL HISAM_JOIN_TIMEOUT HISAM_HEARTBEAT_TIMEOUT
read -ra program <<<"$HISAM"

where=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
queue=(gcloud compute tpus queued-resources)
node=(gcloud compute tpus tpu-vm)
create=(
  "${queue[@]}" create "$NAME" "--node-id=$NAME" "${where[@]}" "--accelerator-type=$ACCELERATOR_TYPE"
  "--runtime-version=$RUNTIME_VERSION" "--valid-until-duration=$VALID_FOR" ${SPOT:+--spot}
)
look=("${queue[@]}" describe "$NAME" "${where[@]}" "--format=value(state.state)")
pack=(git -C "$(cd "$(dirname "$0")/.." && pwd)" archive --format=tar.gz "--output=$PACKED" HEAD)
copy=("${node[@]}" scp "$PACKED" "$NAME:hisam_jax.tar.gz" --worker=all "${where[@]}")
on_all=("${node[@]}" ssh "$NAME" --worker=all "${where[@]}")
delete=("${queue[@]}" delete "$NAME" "${where[@]}" --force --quiet)
unpack="rm -rf hisam_jax && mkdir hisam_jax && tar -xzf hisam_jax.tar.gz -C hisam_jax && cd hisam_jax && { $SETUP; }"
settings="HISAM_DISTRIBUTED=auto HISAM_JOIN_TIMEOUT=$HISAM_JOIN_TIMEOUT HISAM_HEARTBEAT_TIMEOUT=$HISAM_HEARTBEAT_TIMEOUT"
# gcloud does not tell the hosts' exit codes apart, so each prints its own; its name stands before every line.
start="cd hisam_jax && { env $settings PYTHONUNBUFFERED=1 $(printf '%q ' "${program[@]}" "${verb[@]}")& \
echo \$! >../hisam.pid; wait \$!; echo \"exit code \$?\"; } 2>&1 | sed -u \"s/^/[\$(hostname)] /\""
stop="kill -TERM \$(cat hisam.pid)"

if [ -n "$dry" ]; then
  show() {
    local line
    line=$(printf '%q ' "$@")
    echo "${line% }"
  }
  show "${create[@]}"
  echo "# until it says ACTIVE, every $POLL s:"
  show "${look[@]}"
  show "${pack[@]}"
  show "${copy[@]}"
  show "${on_all[@]}" "--command=$unpack"
  echo "# again after exit code 75 or 143, $MAX_RESTARTS times at most:"
  show "${on_all[@]}" "--command=$start"
  if [ -z "$KEEP" ]; then show "${delete[@]}"; else echo "# KEEP=$KEEP: the slice stays"; fi
  exit 0
fi
type gcloud >/dev/null 2>&1 || refuse "no gcloud on this machine"

asked="" code="" left=yes
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"; [ -z "$left" ] || echo "launch: the slice may still be there: ${delete[*]}" >&2' EXIT
trap 'asked=143; "${on_all[@]}" "--command=$stop" || true' TERM INT

slice() { # a slice that is ACTIVE and has hisam_jax installed
  local state
  while [ -z "$asked" ]; do
    state=$("${look[@]}" 2>/dev/null) || state=""
    case $state in
      ACTIVE) break ;;
      "") "${create[@]}" ;;
      FAILED | SUSPENDED) "${delete[@]}" ;; # taken back, or not to be had: a new one stands in the queue
      *) echo "launch: $NAME is $state" >&2 ;;
    esac
    rm -f "$scratch/installed"
    sleep "$POLL"
  done
  [ -z "$asked" ] && [ ! -e "$scratch/installed" ] || return 0
  "${pack[@]}"
  "${copy[@]}"
  "${on_all[@]}" "--command=$unpack"
  touch "$scratch/installed"
}
run() { # the first exit code that is not 0 of any host; 75 where not all told theirs: hosts have gone
  { "${on_all[@]}" "--command=$start" </dev/null 2>&1 || true; } | tee "$scratch/output" &
  local running=$! told
  while kill -0 "$running" 2>/dev/null; do wait "$running" || true; done # a signal interrupts a wait
  told=$(sed -n 's/^\[.*\] exit code \([0-9]*\)$/\1/p' "$scratch/output")
  code=$(grep -v '^0$' -m 1 <<<"$told") || code=0
  [ -n "$told" ] || code=75
}

for ((i = 0; i <= MAX_RESTARTS; i++)); do
  slice
  [ -z "$asked" ] || break
  run
  case $asked:$code in
    :75 | :143) ;;
    *) break ;;
  esac
  echo "launch: exit code $code; started again" >&2
done
if [ -z "$KEEP" ]; then "${delete[@]}"; left=""; fi
exit "${code:-${asked:-1}}"
