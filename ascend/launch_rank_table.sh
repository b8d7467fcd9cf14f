#!/usr/bin/env bash
# Trains on the cards of a rank table, one process a card, without msrun. Run it on every server of the table:
#
#   ascend/launch_rank_table.sh --table FILE [OPTIONS] -- pretrain --config ascend/configs/RUN.yaml --data DATA ...
#
#   --table FILE       the rank table, the same on all servers: see rank_tables/ and msllm ranktable
#   --server-id ID     which server of the table this is (default: the one with an address of this machine)
#   --log-dir DIR      rank_RANK.log (default logs)
#   --patience S       seconds in which workers may save a checkpoint after Ctrl-C or SIGTERM (default 60)
#   --dry-run          print what would run, and run nothing
#
# PYTHON names the interpreter (default: python of PATH). When one rank fails, the others of this server are stopped.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

TABLE="" SERVER_ID=""
own_option() {
  case $1 in
    --table) text "$@" && TABLE=$2 ;;
    --server-id) text "$@" && SERVER_ID=$2 ;;
    --cards | --port | --join-timeout) die "$1 does not go with a rank table, which says what there is; leave it out" ;;
    *) return 1 ;;
  esac
}
parse "$@"
[[ -n $TABLE ]] || die "--table is missing; msllm ranktable generate writes a rank table"
[[ -r $TABLE ]] || die "--table is '$TABLE', which cannot be read"
TABLE=$(realpath "$TABLE")
prepare

CHECK=("$PYTHON" -m msllm ranktable check "$TABLE")
$DRY_RUN || "${CHECK[@]}"
CARDS_HERE=$("$PYTHON" "$ASCEND_DIR/this_machine.py" server "$TABLE" "$SERVER_ID")
mapfile -t CARDS_HERE <<<"$CARDS_HERE"

begin
! $DRY_RUN || quote "${CHECK[@]}"
for card in "${CARDS_HERE[@]}"; do
  read -r world rank device <<<"$card"
  launch "rank $rank" "$LOG_DIR/rank_$rank.log" env "RANK_TABLE_FILE=$TABLE" "RANK_SIZE=$world" "RANK_ID=$rank" \
    "DEVICE_ID=$device" "$PYTHON" -m msllm "${ARGUMENTS[@]}"
done
if ! $DRY_RUN; then
  tail -n +1 -f "${LOGS[0]}" & # what the first rank here prints
  FOLLOWER=$!
  trap 'pause; kill "$FOLLOWER" 2>/dev/null || true' EXIT
fi
finish
