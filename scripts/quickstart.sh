#!/usr/bin/env bash
# Installs gram into .venv and runs its main job: solves puzzles with the shipped checkpoints, then a small evaluation.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ $# -gt 0 ]; then
    echo "quickstart: takes no arguments, got '$*'" >&2
    exit 2
fi
bash "$root/scripts/setup.sh"
gram=$root/.venv/bin/gram

section() {
    printf '\n== %s\n\n' "$1"
}

section "Eight queens, two given ('.' is an empty cell): 20 trajectories find several of its solutions"
"$gram" solve nqueens8 "......../......../......../.....Q../..Q...../......../......../........"

section "Two held-out boards"
"$gram" solve nqueens8 --limit 2

section "Sudoku 6x6: one solution"
"$gram" solve sudoku6 --limit 1

section "Graph colouring: 8 nodes, 3 colours"
"$gram" solve colouring8 --limit 1

section "A small evaluation on held-out puzzles"
"$gram" eval nqueens8 --limit 40 --width 20

cat <<END

== Next

  .venv/bin/gram solve nqueens8 --watch    trajectories step by step
  .venv/bin/gram tasks                     every task and checkpoint
  .venv/bin/gram --help                    every command
END
