# shellcheck shell=bash
# What the launch scripts share; they source it. Nothing here runs by itself.
set -euo pipefail

ASCEND_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$ASCEND_DIR")
GRACE=10 # seconds in which the others may end by themselves once one has failed

CARDS="" PORT=8118 LOG_DIR=logs JOIN_TIMEOUT=600 PATIENCE=60 DRY_RUN=false ARGUMENTS=()
SETUP=()                 # what was done to the environment, as --dry-run shows it
NAMES=() PIDS=() LOGS=() # of what was launched; those that have ended leave PIDS
SIGNAL=""

die() {
  echo "error: $*" >&2
  exit 2
}

number() { # --option VALUE ...: refuses what is no whole number above 0
  [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "$1 is '${2:-}', expected a whole number above 0"
}

text() { # --option VALUE ...
  [[ -n ${2:-} && $2 != --* ]] || die "$1 needs a value; see $(basename "$0") --help"
}

own_option() { return 1; } # a script's own options: as shared_option, false where it does not know the option

parse() {
  while (($#)); do
    TAKEN=2 # words of an option
    own_option "$@" || shared_option "$@"
    shift "$TAKEN"
  done
  ((${#ARGUMENTS[@]})) || die "nothing to run: put it after --, as in: $(basename "$0") -- pretrain --data DATA --output OUTPUT"
}

shared_option() {
  case $1 in
    --cards) number "$@" && CARDS=$2 ;;
    --port)
      number "$@" && PORT=$2
      ((PORT >= 1024 && PORT <= 65535)) || die "--port is $PORT, expected 1024 to 65535"
      ;;
    --log-dir) text "$@" && LOG_DIR=$2 ;;
    --join-timeout) number "$@" && JOIN_TIMEOUT=$2 ;;
    --patience) number "$@" && PATIENCE=$2 ;;
    --dry-run) DRY_RUN=true TAKEN=1 ;;
    -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --)
      shift
      [[ ${1:-} == pretrain || ${1:-} == finetune ]] ||
        die "after -- come the arguments of msllm pretrain or msllm finetune, which train on several cards; got '${1:-}'"
      ARGUMENTS=("$@")
      TAKEN=$(($# + 1))
      ;;
    *) die "unknown option '$1'; see $(basename "$0") --help" ;;
  esac
}

# The number of cards that a job may use: those of ASCEND_RT_VISIBLE_DEVICES, else those in /dev.
count_cards() {
  local dev=${1:-/dev} cards
  if [[ -n ${ASCEND_RT_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -r -a cards <<<"$ASCEND_RT_VISIBLE_DEVICES"
  else
    mapfile -t cards < <(compgen -G "$dev/davinci[0-9]*")
  fi
  echo ${#cards[@]}
}

need_cards() {
  [[ -n $CARDS ]] || CARDS=$(count_cards)
  ((CARDS)) || die "no Ascend card here (no /dev/davinci0); give --cards N to start N processes nevertheless"
}

setup() { # a line of shell: does it, and remembers it for --dry-run
  SETUP+=("$1")
  eval "$1"
}

# Makes PYTHON the name of the interpreter, and lets it find msllm and CANN.
prepare() {
  local wanted=${PYTHON:-} file
  if [[ -z $wanted ]]; then
    wanted=python
    command -v python >/dev/null || wanted=python3
  fi
  command -v "$wanted" >/dev/null || die "'$wanted' is not a program; set PYTHON to the Python that has MindSpore"
  # msrun runs the `python` or `python3` of PATH; of any other program it makes an argument of python.
  case ${wanted##*/} in
    python | python3) ;;
    *) die "PYTHON is '$wanted', and msrun starts only a program called python or python3; name one, such as that of a virtual environment" ;;
  esac
  if [[ $wanted == */* ]]; then
    setup "export PATH=$(quote "$(cd "$(dirname "$wanted")" && pwd)"):\"\$PATH\""
  fi
  PYTHON=${wanted##*/}
  if [[ -z ${ASCEND_HOME_PATH:-} ]]; then
    for file in "${ASCEND_INSTALL_PATH:-/usr/local/Ascend}"/{cann,ascend-toolkit}/set_env.sh; do
      if [[ -r $file ]]; then
        set +eu # it reads variables that are not set, and its commands may fail
        setup "source $(quote "$file")"
        set -eu
        break
      fi
    done
  fi
  setup "export PYTHONPATH=$(quote "$REPO")\${PYTHONPATH:+:\$PYTHONPATH}"
}

# Sets COMMAND to that of msrun on one node: NODES NODE_RANK MASTER, of which one node needs only the first.
msrun_command() {
  COMMAND=(msrun "--worker_num=$(($1 * CARDS))" "--local_worker_num=$CARDS")
  (($1 == 1)) || COMMAND+=("--master_addr=$3" "--node_rank=$2")
  COMMAND+=("--master_port=$PORT" "--cluster_time_out=$JOIN_TIMEOUT" "--log_dir=$LOG_DIR" --join=True
    --tail_worker_log=0 "$PYTHON" -m msllm "${ARGUMENTS[@]}")
}

quote() { # words as a shell would need them
  local word line=""
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# Starts a command: NAME LOG COMMAND..., LOG being a file or - for the terminal. With --dry-run, prints it.
# It gets a process group of its own: a Ctrl-C at the terminal is for this script, which passes it on.
launch() {
  local name=$1 log=$2 line
  shift 2
  if $DRY_RUN; then
    line=$(quote "$@")
    [[ $log == - ]] || line+=" >$(quote "$log") 2>&1 &"
    printf '%s\n' "$line"
    return
  fi
  set -m
  if [[ $log == - ]]; then "$@" </dev/null & else "$@" </dev/null >"$log" 2>&1 & fi
  set +m
  NAMES+=("$name") PIDS+=($!) LOGS+=("$log")
}

# Before the first launch: shows the environment with --dry-run, makes the folder of logs and takes signals without.
begin() {
  if $DRY_RUN; then
    printf '%s\n' "${SETUP[@]}"
    return
  fi
  mkdir -p "$LOG_DIR" || die "$LOG_DIR cannot take logs; give another --log-dir"
  trap 'SIGNAL=INT' INT
  trap 'SIGNAL=TERM' TERM
  trap 'SIGNAL=HUP; exec >/dev/null 2>&1' HUP # the terminal has gone, an ssh from the first node for example
}

# Waits for all that was launched; when one fails, ends the others and says which it was and its last line.
finish() {
  local i code
  while ((${#PIDS[@]})); do
    pause
    for i in "${!PIDS[@]}"; do
      [[ -z $SIGNAL ]] || interrupted
      ! running "$i" || continue
      code=0
      wait "${PIDS[i]}" 2>/dev/null || code=$? # bash would say itself how it was killed
      unset 'PIDS[i]'
      ((code == 0)) || [[ -n $SIGNAL ]] || failed "$i" "$code"
    done
  done
  [[ -z $SIGNAL ]] || interrupted
}

running() { kill -0 "${PIDS[$1]}" 2>/dev/null; }

any_running() {
  local i
  for i in "${!PIDS[@]}"; do
    ! running "$i" || return 0
  done
  return 1
}

# No sleep: that is a process too, of which bash says how a signal ended it. The pipe never has anything to read.
pause() { read -r -t 0.1 -u "$IDLE" || true; }
exec {IDLE}<> <(:)

failed() { # INDEX EXIT_CODE
  local how="exit code $2" line
  (($2 <= 128)) || how="killed by SIG$(kill -l $(($2 - 128)))"
  line=$(last_line "$1")
  ((${#PIDS[@]} == 0)) || line+="; the others are stopped"
  # An error of msllm brings its own next step.
  [[ $line == *"error: "* ]] || line+="; start again with --resume auto"
  echo "error: ${NAMES[$1]} failed: $how$line" >&2
  end_all "$GRACE"
  exit 1
}

last_line() { # INDEX; of msrun, which writes to the terminal, an error of its workers
  local log=${LOGS[$1]} line
  if [[ $log == - ]]; then
    line=$(grep -H '^error: ' "$LOG_DIR"/worker_*.log 2>/dev/null | tail -n 1) || true
    echo "${line:+, $line}; see the logs in $LOG_DIR"
  else
    line=$(tr -d '\r' <"$log" | grep -v '^[[:space:]]*$' | tail -n 1) || true
    echo ", the last line of $log: ${line:-(empty)}"
  fi
}

interrupted() {
  local signal=$SIGNAL
  SIGNAL=""
  echo "SIG$signal: the workers save a checkpoint and end, within $PATIENCE s; once more ends them at once" >&2
  end_all "$PATIENCE"
  exit $((128 + $(kill -l "$signal")))
}

# Asks all to end, and ends them after some seconds or at one more signal.
end_all() {
  local i until=$((SECONDS + $1))
  for i in "${!PIDS[@]}"; do send TERM "${PIDS[i]}"; done
  while any_running && ((SECONDS < until)) && [[ -z $SIGNAL ]]; do pause; done
  for i in "${!PIDS[@]}"; do send KILL "${PIDS[i]}"; done
  trap - INT TERM HUP
}

# Sends a signal to a process launched here and its group. msrun puts each worker into a session of its own, and does
# not pass signals on: SIGTERM goes to those workers, who save a checkpoint, and msrun ends after them.
send() {
  local workers worker
  mapfile -t workers < <(sessions_of "$2")
  for worker in "${workers[@]}"; do
    kill "-$1" -- "-$worker" 2>/dev/null || true
  done
  if [[ $1 == KILL ]] || ((${#workers[@]} == 0)); then
    kill "-$1" -- "-$2" 2>/dev/null || true
  fi
}

sessions_of() { # children of a process that lead a session; read from /proc, as bare containers have no ps
  local stat line fields pid
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    read -r -a fields <<<"${line##*) }" # state, parent, group, session
    pid=${stat//[^0-9]/}
    if [[ ${fields[1]} == "$1" && ${fields[3]} == "$pid" ]]; then echo "$pid"; fi
  done
}
