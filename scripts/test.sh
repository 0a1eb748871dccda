#!/usr/bin/env bash
# Installs gram and its development tools into .venv, then runs the checks and the tests.
#
#   bash scripts/test.sh [--slow] [pytest arguments]
#
# --slow adds the slow tests. Tests that need a GPU run where one is present.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
marks="not slow"
arguments=()
for argument in "$@"; do
    if [ "$argument" = --slow ]; then
        marks=
    else
        arguments+=("$argument")
    fi
done
nvidia-smi -L >/dev/null 2>&1 || marks=${marks:+$marks and }"not gpu"

bash "$root/scripts/setup.sh" dev
cd "$root"
bin=$root/.venv/bin

run() {
    printf '== %s\n' "$*"
    "$bin/python" -m "$@"
}

run ruff check
run ruff format --check
run mypy
run pytest -m "$marks" ${arguments[@]+"${arguments[@]}"}
