#!/usr/bin/env bash
# Trains on the cards of this machine, one process a card, started by msrun.
#
#   ascend/launch_node.sh [OPTIONS] -- pretrain --config ascend/configs/RUN.yaml --data DATA --output OUTPUT
#
#   --cards N          processes (default: the cards of ASCEND_RT_VISIBLE_DEVICES, else those in /dev)
#   --port N           TCP port at which they meet (default 8118)
#   --log-dir DIR      scheduler.log and worker_RANK.log (default logs)
#   --join-timeout S   seconds in which all must have met (default 600)
#   --patience S       seconds in which workers may save a checkpoint after Ctrl-C or SIGTERM (default 60)
#   --dry-run          print what would run, and run nothing
#
# PYTHON names the interpreter (default: python of PATH). A second Ctrl-C ends all at once.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need_cards
prepare
$DRY_RUN || "$PYTHON" "$ASCEND_DIR/this_machine.py" master 127.0.0.1 "$PORT" 0

begin
msrun_command 1
launch msrun - "${COMMAND[@]}"
finish
