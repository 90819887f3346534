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
# shellcheck disable=SC2154 # the launchers set program
count_cells() { # sets CELLS, where it is empty, to the number of cells of the sweep that verb is
  [ "${verb[0]}" = scale ] || refuse "verb '${verb[0]}'; expected scale, the one that has cells"
  [ -n "$CELLS" ] || CELLS=$("${program[@]}" "${verb[@]}" --list | wc -l)
  [ "$CELLS" != 0 ] || refuse "a sweep of no cells" # hisam has said why
}
