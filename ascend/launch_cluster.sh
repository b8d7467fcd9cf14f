#!/usr/bin/env bash
# Trains on several nodes, one process a card, started by msrun. Either run it on every node:
#
#   ascend/launch_cluster.sh --nodes N --node-rank R --master-addr A [OPTIONS] -- pretrain --config RUN.yaml ...
#
# or on the first one alone, which starts the others over ssh:
#
#   ascend/launch_cluster.sh --hosts FILE [--master-addr A] [OPTIONS] -- pretrain --config RUN.yaml ...
#
#   --nodes N          number of nodes
#   --node-rank R      this node's number, 0 to N - 1; node 0 runs the scheduler
#   --master-addr A    an address of node 0 that all nodes reach (with --hosts: the first host by default)
#   --hosts FILE       a host a line, as ssh takes it, this machine first; # begins a comment
#   --cards N          cards of each node (default: as on this one)
#   --port N           TCP port of the scheduler (default 8118)
#   --log-dir DIR      scheduler.log, worker_RANK.log, and with --hosts node_R.log (default logs)
#   --join-timeout S   seconds in which all must have met (default 600)
#   --patience S       seconds in which workers may save a checkpoint after Ctrl-C or SIGTERM (default 60)
#   --dry-run          print what would run, and run nothing
#
# All nodes need this repository, the data and the output under the same paths, and the same PYTHON; ssh must ask
# nothing.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

NODES="" NODE_RANK="" MASTER="" HOSTS_FILE="" HOSTS=()
own_option() {
  case $1 in
    --nodes) number "$@" && NODES=$2 ;;
    --node-rank) text "$@" && NODE_RANK=$2 ;;
    --master-addr) text "$@" && MASTER=$2 ;;
    --hosts) text "$@" && HOSTS_FILE=$2 ;;
    *) return 1 ;;
  esac
}
parse "$@"

read_hosts() {
  local line number=0 words host
  [[ -r $HOSTS_FILE ]] || die "--hosts is '$HOSTS_FILE', which cannot be read; expected a file with a host a line"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    read -r -a words <<<"${line%%#*}"
    ((${#words[@]})) || continue
    ((${#words[@]} == 1)) || die "$HOSTS_FILE, line $number: '$line', expected one host"
    for host in "${HOSTS[@]}"; do
      [[ $host != "${words[0]}" ]] || die "$HOSTS_FILE, line $number: host '$host' stands there twice"
    done
    HOSTS+=("${words[0]}")
  done <"$HOSTS_FILE"
}

if [[ -n $HOSTS_FILE ]]; then
  [[ -z $NODES$NODE_RANK ]] || die "--hosts says how many nodes there are and their order; leave out --nodes and --node-rank"
  read_hosts
  NODES=${#HOSTS[@]} NODE_RANK=0
  ((NODES)) || die "$HOSTS_FILE names no host"
  MASTER=${MASTER:-${HOSTS[0]#*@}}
else
  for option in nodes:NODES node-rank:NODE_RANK master-addr:MASTER; do
    name=${option#*:}
    [[ -n ${!name} ]] || die "--${option%:*} is missing; give --nodes, --node-rank and --master-addr on every node, or --hosts on the first"
  done
  if ! [[ $NODE_RANK =~ ^[0-9]+$ ]] || ((NODE_RANK >= NODES)); then
    die "--node-rank is '$NODE_RANK', expected 0 to $((NODES - 1)) of $NODES nodes"
  fi
fi
((NODES > 1)) || die "there is one node; use launch_node.sh"
case $MASTER in
  127.0.0.1 | localhost | ::1) die "the master's address is $MASTER, which means another machine on every node; give an address of node 0 that all reach" ;;
esac

# What a node run over ssh cannot know: its environment is not that of this shell.
remote_command() { # NODE_RANK
  local name words=()
  for name in PYTHON "${!MSLLM_@}" "${!HCCL_@}" "${!GLOG_@}" "${!ASCEND_RT_@}" ASCEND_INSTALL_PATH; do
    if [[ $name == PYTHON ]]; then
      [[ -z $GIVEN_PYTHON ]] || words+=("PYTHON=$GIVEN_PYTHON")
    elif [[ $(declare -p "$name" 2>/dev/null) == "declare -x"* ]]; then
      words+=("$name=${!name}")
    fi
  done
  echo "cd $(quote "$PWD") && env $(quote "${words[@]}" bash "$ASCEND_DIR/launch_cluster.sh" --nodes "$NODES" \
    --node-rank "$1" --master-addr "$MASTER" --cards "$CARDS" --port "$PORT" --log-dir "$LOG_DIR" \
    --join-timeout "$JOIN_TIMEOUT" --patience "$PATIENCE" -- "${ARGUMENTS[@]}")"
}

need_cards
GIVEN_PYTHON=${PYTHON:-}
prepare
$DRY_RUN || "$PYTHON" "$ASCEND_DIR/this_machine.py" master "$MASTER" "$PORT" "$NODE_RANK"

begin
# A terminal (-tt) on the other side: when this ssh ends, the script there gets SIGHUP and stops its workers.
for ((rank = 1; rank < ${#HOSTS[@]}; rank++)); do
  launch "node $rank (${HOSTS[rank]})" "$LOG_DIR/node_$rank.log" \
    ssh -tt -o BatchMode=yes "${HOSTS[rank]}" "$(remote_command "$rank")"
done
msrun_command "$NODES" "$NODE_RANK" "$MASTER"
launch "node $NODE_RANK" - "${COMMAND[@]}"
finish
