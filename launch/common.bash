# What the launchers share; each sources it behind its settings.
# shellcheck shell=bash

usage="launch/$(basename "$0") [--dry-run]${arguments:+ $arguments} -- VERB ..." # arguments: set by the launcher

refuse() { # MESSAGE: one line, exit code 2
  echo "hisam: error: $1 (usage: $usage)" >&2
  exit 2
}
# shellcheck disable=SC2034 # the launchers read dry and verb
take_verb() { # "$@" of a launcher of no other arguments: sets dry, and verb to hisam's verb and its flags
  dry=""
  [ "${1:-}" != --dry-run ] || { dry=yes; shift; }
  { [ "${1:-}" = -- ] && [ $# -gt 1 ]; } || refuse "no command for hisam; expected -- and a verb"
  shift
  verb=("$@")
}
whole_numbers() { # NAME...: settings that must be whole numbers
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[0-9]{1,6}$ ]] || refuse "field '$name': value '${!name}'; expected a whole number"
  done
}
wait_part() { # a function for a job's script
  cat <<'PART'
to_the_end() { # waits for a process, however many signals come meanwhile; leaves its exit code in $code
  code=0
  wait "$1" || code=$?
  while kill -0 "$1" 2>/dev/null; do
    code=0
    wait "$1" || code=$?
  done
}
PART
}
# shellcheck disable=SC2154 # the launchers set MAX_RESTARTS
requeue_part() { # JOB: the end of a job's script, which queues it again where $code says that it can go on
  cat <<PART
if [ "\$code" = 75 ] || [ "\$code" = 143 ]; then
  if [ "\${SLURM_RESTART_COUNT:-0}" -lt $MAX_RESTARTS ]; then
    echo "launch: exit code \$code; queued again" >&2
    scontrol requeue "$1" && sleep 60 # the requeue ends this script
  else
    echo "launch: exit code \$code after $MAX_RESTARTS restarts; not queued again" >&2
  fi
fi
exit "\$code"
PART
}
# shellcheck disable=SC2154 # the launchers set job and options
queue() { # gives job to sbatch with options, or says how
  local line
  if [ -n "$dry" ]; then
    line=$(printf '%q ' sbatch "${options[@]}")
    printf "%s<<'JOB'\n%s\nJOB\n" "$line" "$job"
    exit 0
  fi
  type sbatch >/dev/null 2>&1 || refuse "no sbatch on this machine; expected a login node of a SLURM cluster"
  exec sbatch "${options[@]}" <<<"$job"
}
# shellcheck disable=SC2154 # the launchers set program
count_cells() { # sets CELLS, where it is empty, to the number of cells of the sweep that verb is
  [ "${verb[0]}" = scale ] || refuse "verb '${verb[0]}'; expected scale, the one that has cells"
  [ -n "$CELLS" ] || CELLS=$("${program[@]}" "${verb[@]}" --list | wc -l)
  [ "$CELLS" != 0 ] || refuse "a sweep of no cells" # hisam has said why
}
