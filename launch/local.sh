#!/usr/bin/env bash
# Several processes of hisam on this machine, on the CPU:
#     launch/local.sh [--dry-run] N -- train --dataset D --ids I --config configs/shop.py --workdir RUN
# When one fails the others are ended; leaves with the first exit code that is not 0. More in README.md beside this.
set -euo pipefail

# ---- settings: the environment overrides each
HISAM=${HISAM:-hisam}                                   # the command; words split at spaces
DEVICES_PER_PROCESS=${DEVICES_PER_PROCESS:-1}           # CPU devices that JAX sees in each process
PORT=${PORT:-}                                          # where process 0 listens; empty: a free one
NOTICE=${NOTICE:-5}                                     # seconds for the others to notice a failed one; then SIGTERM
GRACE=${GRACE:-60}                                      # seconds from SIGTERM or SIGINT to SIGKILL
HISAM_JOIN_TIMEOUT=${HISAM_JOIN_TIMEOUT:-300}           # seconds in which all must have joined
HISAM_HEARTBEAT_TIMEOUT=${HISAM_HEARTBEAT_TIMEOUT:-100} # seconds of silence after which a process counts as dead
# ----

arguments=N
# shellcheck source=launch/common.bash
. "$(dirname "$0")/common.bash"
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || refuse "bash $BASH_VERSION is too old; expected 5.1 or newer"
dry="" n=""
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --dry-run) dry=yes ;;
    *) [[ -z $n && $1 =~ ^[1-9][0-9]{0,3}$ ]] || refuse "argument '$1'; expected one whole number of processes"; n=$1 ;;
  esac
  shift
done
[ -n "$n" ] || refuse "no number of processes"
[ $# -gt 1 ] || refuse "no command for hisam; expected -- and a verb"
shift
read -ra command <<<"$HISAM"
command+=("$@")

free_port() {
  local port
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 12000)) # below Linux's ephemeral ports, which any connection may take meanwhile
    (: 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
      echo "$port"
      return
    }
  done
}
[ -n "$PORT" ] || PORT=$(free_port)

settings_of() {
  settings=(
    JAX_PLATFORMS=cpu
    "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES_PER_PROCESS"
    "HISAM_COORDINATOR=127.0.0.1:$PORT" "HISAM_PROCESSES=$n" "HISAM_PROCESS_ID=$1"
    "HISAM_JOIN_TIMEOUT=$HISAM_JOIN_TIMEOUT" "HISAM_HEARTBEAT_TIMEOUT=$HISAM_HEARTBEAT_TIMEOUT"
  )
}

if [ -n "$dry" ]; then
  for ((i = 0; i < n; i++)); do
    settings_of "$i"
    line=$(printf '%q ' env "${settings[@]}" "${command[@]}")
    echo "${line% }"
  done
  echo "# when one fails, SIGTERM to the others after $NOTICE s; SIGKILL $GRACE s after any SIGTERM"
  exit 0
fi

set -m # children in groups of their own: a Ctrl-C reaches them once, through us, and is not ignored
declare -A running=()
printers=()
reaper=""

prefixed() {
  trap '' TERM INT
  local line
  while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done
}
end_by() { # SECONDS: SIGTERM to all after so long, unless it is 0, and SIGKILL after the grace
  [ -z "$reaper" ] || return 0
  {
    if [ "$1" != 0 ]; then
      sleep "$1"
      kill -TERM "${!running[@]}" || true
    fi
    sleep "$GRACE"
    kill -KILL "${!running[@]}" || true
  } >/dev/null 2>&1 &
  reaper=$!
  disown "$reaper" # else bash reports its end
}
# shellcheck disable=SC2329 # by the traps
forward() {
  [ ${#running[@]} = 0 ] || kill -s "$1" "${!running[@]}" 2>/dev/null || true
  end_by 0
}
trap 'forward TERM' TERM
trap 'forward INT' INT

for ((i = 0; i < n; i++)); do
  [ -z "$reaper" ] || break # a signal came meanwhile
  settings_of "$i"
  exec {out}> >(prefixed "$i")
  printers+=($!)
  exec {err}> >(prefixed "$i" >&2)
  printers+=($!)
  env "${settings[@]}" "${command[@]}" >&"$out" 2>&"$err" {out}>&- {err}>&- </dev/null &
  running[$!]=$i
  exec {out}>&- {err}>&-
done

# Looked at in turns, as bash forgets ended jobs and its `wait -n` then waits for another. Of several that ended in one
# turn, one with another code than 75 was the first: 75 says that another had ended.
exec {never}<> <(:)
first=0 first_turn=0 turn=0
while [ ${#running[@]} -gt 0 ]; do
  turn=$((turn + 1))
  read -rt 0.1 -u "$never" || true
  for child in "${!running[@]}"; do
    ! kill -0 "$child" 2>/dev/null || continue
    code=0
    wait "$child" 2>/dev/null || code=$?
    i=${running[$child]}
    unset "running[$child]"
    [ "$code" != 0 ] || continue
    echo "launch: process $i of $n ended with exit code $code" >&2
    if [ "$first" = 0 ] || { [ "$first" = 75 ] && [ "$first_turn" = "$turn" ]; }; then
      first=$code first_turn=$turn
    fi
    end_by "$NOTICE"
  done
done
[ -z "$reaper" ] || kill -- "-$reaper" 2>/dev/null || true
(sleep 2; kill -KILL "${printers[@]}") >/dev/null 2>&1 & # a worker left behind may hold their pipes open
reaper=$!
disown "$reaper"
wait "${printers[@]}" 2>/dev/null || true
kill -- "-$reaper" 2>/dev/null || true
exit "$first"
