#!/usr/bin/env bash
# Proves and measures gram on this machine's GPU: the GPU tests, whether results depend on slots, how the fused kernel is
# cut best (all after it takes those cuts), kernels, the engine and a frontier at matched latency, most valuable first.
# Every result is a file, written as it comes; report.html shows them all in the end.
#
#   bash scripts/bench_gpu.sh FOLDER               installs gram into .venv first
#   bash scripts/bench_gpu.sh FOLDER --installed   takes $GRAM_PYTHON (or python3) as it is: no set-up, no network
#
# No part takes more than nine minutes: it is ended then, and what it has written stays. The same command with the same
# FOLDER goes on with the parts that are missing, then tries again those that had failed before. FOLDER is new, empty or
# of such a run, with the same sources and GPU. status.tsv has the last exit status of each part (124: out of time).
#
# Where supervision steps cannot become a CUDA graph (a part `graphs-...` fails that does not fail as `called-...`), later
# parts run without: GRAM_GRAPHS=off.
#
# GRAM_PUZZLES=FILE   the pairs that the last part trains on. Every call of the command goes on with that run for eight
#                     minutes, after which it saves itself: repeat the command for as long as there is time.
#
# Exit status: 0 when all parts succeeded, 1 when one failed or could not run, 2 when nothing was run. Leave the machine
# otherwise idle.
set -euo pipefail

limit=540
piece=480

refuse() {
    echo "bench_gpu: $1" >&2
    exit 2
}

folder=${1:-} how=${2:-}
[ $# -le 2 ] && [ -n "$folder" ] && [[ $folder != --* ]] && { [ -z "$how" ] || [ "$how" = --installed ]; } ||
    refuse "the arguments must be a folder for the results and, if you like, --installed, got: ${*:-none}"
puzzles=${GRAM_PUZZLES:-}
[ -z "$puzzles" ] || { [ -f "$puzzles" ] && puzzles=$(realpath "$puzzles"); } ||
    refuse "GRAM_PUZZLES must be a file of puzzles and answers, got $puzzles"
nvidia-smi -L >/dev/null 2>&1 || refuse "a GPU is needed, nvidia-smi found none; nothing was run or written"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
run=$(nvidia-smi -L && cd "$root" && find -L gram scripts -type f \( -name '*.py' -o -name '*.sh' \) | LC_ALL=C sort | xargs cat | cksum)
if [ -e "$folder" ]; then
    [ -d "$folder" ] || refuse "the folder for the results must be a folder, got $folder"
    if [ -n "$(ls -A "$folder")" ]; then
        [ -f "$folder/run.txt" ] ||
            refuse "the folder for the results must be new, empty or of an earlier run, got $folder"
        [ "$(cat "$folder/run.txt")" = "$run" ] ||
            refuse "the folder for the results must be of the same sources and GPU, got another run's: $folder"
    fi
fi

if [ "$how" = --installed ]; then
    python=$(command -v "${GRAM_PYTHON:-python3}") || refuse "GRAM_PYTHON must be an interpreter, got ${GRAM_PYTHON:-python3}"
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
else
    bash "$root/scripts/setup.sh" dev || refuse "gram could not be installed; --installed takes an interpreter as it is"
    python=$root/.venv/bin/python
fi
has() {
    "$python" -c "import $1" >/dev/null 2>&1
}
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    refuse "PyTorch must see the GPU, but this build does not ($python); pip's index must offer a CUDA build"

mkdir -p "$folder"
out=$(cd "$folder" && pwd -P)
[ -f "$out/run.txt" ] || printf '%s\n' "$run" >"$out/run.txt"
[ -f "$out/status.tsv" ] || printf 'part\texit\tseconds\tcommand\n' >"$out/status.tsv"
before=$(cat "$out/status.tsv")
failed=0

# status_of PART [TEXT]: its last exit status, nothing where it has none; TEXT is by default the file as it is now.
status_of() {
    awk -F '\t' -v part="$1" '$1 == part { print $2 }' <<<"${2-$(cat "$out/status.tsv")}"
}

# record PART STATUS SECONDS COMMAND
record() {
    local rest
    rest=$(awk -F '\t' -v part="$1" '$1 != part' "$out/status.tsv")
    printf '%s\n%s\t%s\t%s\t%s\n' "$rest" "$1" "$2" "$3" "$4" >"$out/status.tsv.new"
    mv "$out/status.tsv.new" "$out/status.tsv"
    [ "$2" = 0 ] || failed=1
}

# part PASS NAME COMMAND...: standard output to NAME.txt (NAME.json for what prints JSON), progress to NAME.log. The first
# pass runs what has no status, the second what had failed before this call.
part() {
    local pass=$1 name=$2 began=$SECONDS status=0 file=$2.txt
    shift 2
    if [ "$pass" = 1 ]; then
        [ -z "$(status_of "$name")" ] || return 0
    else
        case $(status_of "$name" "$before") in '' | 0) return 0 ;; esac
    fi
    [[ " $* " != *" --json "* ]] || file=$name.json
    printf '== %s: %s\n' "$name" "$*"
    (cd "$root" && exec timeout --kill-after=20 "$limit" "$@") >"$out/$file" 2>"$out/$name.log" || status=$?
    record "$name" "$status" $((SECONDS - began)) "$*"
    [ "$status" != 0 ] || return 0
    case $status in
        124 | 137) printf '   was ended after %s s; it last said:\n' "$limit" ;;
        *) printf '   failed with %s; it last said:\n' "$status" ;;
    esac
    tail -q -n 3 "$out/$file" "$out/$name.log" | sed 's/^/   /'
    [ -s "$out/$file" ] || rm "$out/$file"
}

# without NAME REASON: a part that cannot run here.
without() {
    printf '== %s: not run: %s\n' "$1" "$2"
    record "$1" - 0 "not run: $2"
}

gram=("$python" -m gram)
# Our own settings of pytest name a version that an installed one may lack.
tests=("$python" -m pytest -c /dev/null --rootdir . --import-mode=importlib -p no:cacheprovider -W ignore -ra --color=no)
! has xdist || tests+=(-n "$(n=$(nproc) && echo $((n < 12 ? n : 12)))")
untestable=$("$python" -c 'import hypothesis, pytest' 2>&1) && untestable= || untestable=${untestable##*$'\n'}

# tests_part PASS NAME EXPRESSION [FILE]: those of the GPU tests, of kernels by default, that the expression chooses.
tests_part() {
    if [ -z "$untestable" ]; then
        part "$1" "tests-$2" "${tests[@]}" -k "$3" "tests/unit/test_${4:-kernel}_gpu.py"
    elif [ "$1" = 1 ]; then
        without "tests-$2" "$untestable"
    fi
}

# bench_part PASS NAME KIND OPTION...: rows stand in NAME.rows.json as they come, a table in NAME.txt.
bench_part() {
    local pass=$1 name=$2
    shift 2
    part "$pass" "$name" "${gram[@]}" bench "$@" --out "$out/$name.rows.json"
}

# train_piece RECIPE: goes on with its run in $out/training; a piece that was ended by its time has saved itself. Where it
# fails, it goes on without graphs in what is left of the time.
train_piece() {
    local began=$SECONDS status graphs
    set -- "${gram[@]}" train "$1" --puzzles "$puzzles" --out "$out/training"
    printf '== training: %s\n' "$*"
    for graphs in on off; do
        status=0
        (cd "$root" && exec timeout --kill-after=50 $((piece - SECONDS + began)) env GRAM_GRAPHS=$graphs "$@") \
            >"$out/training.txt" 2>>"$out/training.log" || status=$?
        case $status in 0 | 2 | 124 | 137) break ;; esac
        [ $((SECONDS - began)) -lt $((piece - 60)) ] || break
    done
    [ "$status" != 124 ] || status=0
    record training "$status" $((SECONDS - began)) "$*"
    tail -q -n 2 "$out/training.log" "$out/training.txt" | sed 's/^/   /'
}

for pass in 1 2; do
    part $pass machine nvidia-smi -q -d CLOCK,POWER,MEMORY,UTILIZATION
    part $pass doctor "${gram[@]}" doctor --json
    for kernel in fused eager; do
        # A run that is long enough for its graph to be captured and launched many times.
        long=("${gram[@]}" eval sudoku6 --kernel "$kernel" --limit 200 --width 400 --json)
        part $pass "graphs-$kernel" env GRAM_GRAPHS=on "${long[@]}"
        if [ "$(status_of "graphs-$kernel")" != 0 ] && [ "${GRAM_GRAPHS:-on}" = on ]; then
            part $pass "called-$kernel" env GRAM_GRAPHS=off "${long[@]}"
            if [ "$(status_of "called-$kernel")" = 0 ]; then
                echo "   later parts run without graphs"
                export GRAM_GRAPHS=off
            fi
        fi
    done
    tests_part $pass bfloat16 bfloat16
    bench_part $pass slots slots
    for model in small small-attention colouring10 colouring8 sudoku6 sudoku6-unconditional; do
        part $pass "tuning-$model" "${gram[@]}" bench tuning --preset "$model" --rounds 3 --out "$out/tuning.json"
    done
    # What was timed before a limit ended a part stands in the file too.
    [ ! -f "$out/tuning.json" ] || export GRAM_TUNING=$out/tuning.json
    for preset in small small-attention paper paper-sudoku; do
        bench_part $pass "kernels-$preset" kernels --preset "$preset" --no-resources --no-cpu
    done
    bench_part $pass engine engine --rounds 3
    for kernel in fused eager; do
        part $pass "frontier-$kernel" "${gram[@]}" frontier sudoku6 --kernel "$kernel" \
            --limit 200 --seeds 1 --rounds 5 --out "$out/frontier-$kernel" --json
    done
    tests_part $pass training '' training
    for recipe in sudoku9 paper-sudoku-extreme; do
        bench_part $pass "training-$recipe" training --recipe "$recipe" --rounds 3
    done
    tests_part $pass float32 'not bfloat16'
    bench_part $pass sampler sampler --rounds 3
done

if [ -n "$puzzles" ]; then
    train_piece paper-sudoku-extreme
else
    echo "== training: not run: GRAM_PUZZLES names no file of puzzles"
fi

if (cd "$root" && exec "${gram[@]}" report "$out") >/dev/null 2>"$out/report.log"; then
    echo "results: $out, a page of them: $out/report.html"
else
    failed=1
    echo "results: $out; no page of them could be made: $(tail -n 1 "$out/report.log")"
fi
exit $failed
