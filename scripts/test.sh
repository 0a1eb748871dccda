#!/usr/bin/env bash
# Installs gram and its development tools into .venv, then runs the checks and the tests.
#
#   bash scripts/test.sh [--slow] [pytest arguments]
#
# --slow adds the slow tests. Tests that need a GPU run where one is present. Tests run side by side, one worker with one
# thread a core (GRAM_TEST_WORKERS sets how many), and mypy beside them; those that start clusters follow one by one.
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE # every process of a test would compile all of PyTorch's Python again

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
slow=no
arguments=()
for argument in "$@"; do
    if [ "$argument" = --slow ]; then
        slow=yes
    else
        arguments+=("$argument")
    fi
done
marks="not slow"
[ $slow = no ] || marks=
nvidia-smi -L >/dev/null 2>&1 || marks=${marks:+$marks and }"not gpu"

bash "$root/scripts/setup.sh" dev
cd "$root"
bin=$root/.venv/bin
cores=$(getconf _NPROCESSORS_ONLN)
workers=${GRAM_TEST_WORKERS:-$((cores < 8 ? cores : 8))}

run() {
    printf '== %s\n' "$*"
    "$bin/python" -m "$@"
}

# Runs tests of some marks; that there are none among those asked for is no failure by itself.
tests() {
    local status=0
    run pytest "$@" ${arguments[@]+"${arguments[@]}"} || status=$?
    case $status in
        0) found=yes ;;
        5) ;;
        *) failed=$status ;;
    esac
}

run ruff check
run ruff format --check
typing=$(mktemp)
trap 'kill $types 2>/dev/null || true; rm -f "$typing"' EXIT # mypy has ended by then, unless this is interrupted
"$bin/python" -m mypy >"$typing" 2>&1 &
types=$!
found=no
failed=0
OMP_NUM_THREADS=1 tests -n "$workers" --dist worksteal -m "${marks:+$marks and }not alone"
wait $types || failed=$?
echo '== mypy'
cat "$typing"
if [ "$slow" = yes ]; then                                      # those that stand alone are slow, every one
    [ ${#arguments[@]} -gt 0 ] || arguments=(tests/integration) # where they are: nothing else is collected
    tests -m "${marks:+$marks and }alone"
fi
[ "$failed" = 0 ] || exit "$failed"
[ "$found" = yes ] || exit 5
