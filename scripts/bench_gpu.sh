#!/usr/bin/env bash
# Proves and measures gram on this machine's GPU, most valuable first: kernels, the engine, a frontier at matched latency
# and training, with the fused kernel cut by default; then how it is cut best, and the same again where that is faster.
# Every result is a file, written as it comes; report.html shows them all in the end.
#
#   bash scripts/bench_gpu.sh FOLDER               installs gram into .venv first
#   bash scripts/bench_gpu.sh FOLDER --installed   takes $GRAM_PYTHON (or python3) as it is: no set-up, no network
#
# GRAM_SECONDS=N      a call ends after so long, 570 by default, with the page made; it is for machines that are lent for
#                     ten minutes a command. A part starts where what is left may do for it; one that is cut off by the
#                     end is no failure. SIGTERM and SIGINT end a call and its part at once.
# GRAM_PUZZLES=FILE   the pairs that a run of `paper-sudoku-extreme` trains on, once every part has had its turn. Every
#                     call goes on with that run for eight minutes at most, after which it saves itself.
#
# The same command with the same FOLDER goes on with the parts that are missing or were cut off, then trains, then tries
# again those that had failed before. FOLDER is new, empty or of such a run, with the same sources and kind of GPU. No
# part takes more than nine minutes. status.tsv has the last exit status of each part (124: out of time; cut: by the end
# of a call).
#
# Where supervision steps cannot become a CUDA graph (a part `graphs-...` fails that does not fail as `called-...`), later
# parts run without: GRAM_GRAPHS=off.
#
# Exit status: 0 when all parts succeeded, 3 when some are left to the next call, 1 when one failed or could not run, 2
# when nothing was run. Leave the machine otherwise idle.
set -euo pipefail

SECONDS=0
limit=540 # of a part
piece=480 # of the training
grace=10  # from SIGTERM to SIGKILL
page=35   # for the page, and for the grace before it

# About how many seconds a part takes on one H200 with 16 cores; of one that goes on where it was cut off, what it should
# have. Estimates, none measured: from counted work, from 5 to 8 s of a core for each compiled kernel, and 8 s until a
# command has begun. With 570 s a call: the first holds the parts up to `slots` and begins a frontier; the second the
# engine, the frontiers and a sweep; the third `training-sudoku9`, the other sweeps and what is faster by them.
declare -A takes=(
    [machine]=2 [doctor]=20 [graphs-fused]=40 [graphs-eager]=50 [called-fused]=40 [called-eager]=50
    [kernels-small]=100 [tests-bfloat16]=150 [slots]=60
    [engine]=200 [frontier-fused]=60 [frontier-eager]=60 # a frontier: 150 to 200 in all
    [training-sudoku9]=200
    [tuning-small]=30 [tuning-sudoku6]=40 [tuning-colouring8]=40 [tuning-small-attention]=30
    [kernels-small-tuned]=100 [kernels-small-attention-tuned]=100 [engine-tuned]=200
    [kernels-small-attention]=100 [kernels-paper-sudoku]=300 [tests-training]=120
    [training-paper-sudoku-extreme]=400 [kernels-paper]=300
    [tuning-colouring10]=30 [tuning-sudoku6-unconditional]=40 [tests-float32]=120 [sampler]=120
    [training]=120
)

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
seconds=${GRAM_SECONDS:-570}
[[ $seconds =~ ^[1-9][0-9]{1,7}$ ]] && [ "$seconds" -ge 60 ] ||
    refuse "GRAM_SECONDS must be a whole number from 60, got $seconds"
nvidia-smi -L >/dev/null 2>&1 || refuse "a GPU is needed, nvidia-smi found none; nothing was run or written"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Another machine's GPU of the same kind will do.
kinds() {
    sed 's/ (UUID: [^)]*)//'
}
run=$(nvidia-smi -L | kinds && cd "$root" && find -L gram scripts -type f \( -name '*.py' -o -name '*.sh' \) | LC_ALL=C sort | xargs cat | cksum)
if [ -e "$folder" ]; then
    [ -d "$folder" ] || refuse "the folder for the results must be a folder, got $folder"
    if [ -n "$(ls -A "$folder")" ]; then
        [ -f "$folder/run.txt" ] ||
            refuse "the folder for the results must be new, empty or of an earlier run, got $folder"
        [ "$(kinds <"$folder/run.txt")" = "$run" ] ||
            refuse "the folder for the results must be of the same sources and kind of GPU, got another run's: $folder"
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
failed=0 behind=0 # whether a part failed, how many are left to the next call
begun=0           # parts of this call
child='' running='' since=0
unset GRAM_TUNING

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
    case $2 in 0) ;; cut) behind=$((behind + 1)) ;; *) failed=1 ;; esac
}

# left: seconds that parts may still take.
left() {
    echo $((seconds - page - SECONDS))
}

# at_most A B
at_most() {
    echo $(($1 < $2 ? $1 : $2))
}

# fits PART: whether it may start; the first of a call always does.
fits() {
    local rest
    rest=$(left)
    if [ "$begun" = 0 ] || [ "$rest" -ge "${takes[$1]}" ]; then
        begun=$((begun + 1))
        return 0
    fi
    behind=$((behind + 1))
    printf '== %s: left to the next call: it should have %s s, %s are left\n' "$1" "${takes[$1]}" $((rest > 0 ? rest : 0))
    return 1
}

# within SECONDS TEXT LOG COMMAND...: runs it as a process group, of which nothing is left afterwards. `timeout` signals
# the command alone: a group would hear SIGTERM with it, and the command twice.
within() {
    local time=$1 text=$2 log=$3 status=0
    shift 3
    set -m
    (cd "$root" && exec timeout --foreground --kill-after="$grace" "$time" "$@") >"$text" 2>>"$log" </dev/null &
    child=$!
    set +m
    wait "$child" || status=$?
    kill -KILL -- "-$child" 2>/dev/null || true
    child=''
    return "$status"
}

# At the end of this script, whatever ends it: no part goes on beside what comes next.
leave() {
    trap '' HUP INT TERM
    [ -n "$child" ] || return 0
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" || true
    kill -KILL -- "-$child" 2>/dev/null || true
    [ -z "$running" ] || record "$running" cut $((SECONDS - since)) 'ended with its call'
}
trap leave EXIT
trap 'trap "" HUP INT TERM; exit 129' HUP
trap 'trap "" HUP INT TERM; exit 130' INT
trap 'trap "" HUP INT TERM; exit 143' TERM

# part PASS NAME COMMAND...: standard output to NAME.txt (NAME.json for what prints JSON), progress to NAME.log. The first
# pass runs what has no status or was cut off, the second what had failed before this call.
part() {
    local pass=$1 name=$2 status=0 file=$2.txt time whole
    shift 2
    if [ "$pass" = 1 ]; then
        case $(status_of "$name") in '' | cut) ;; *) return 0 ;; esac
    else
        case $(status_of "$name" "$before") in '' | 0 | cut) return 0 ;; esac
    fi
    fits "$name" || return 0
    [[ " $* " != *" --json "* ]] || file=$name.json
    printf '== %s: %s\n' "$name" "$*"
    whole=$([ "$begun" = 1 ] && echo yes || echo no) time=$(at_most "$limit" "$(left)")
    running=$name since=$SECONDS
    : >"$out/$name.log"
    within "$time" "$out/$file" "$out/$name.log" "$@" || status=$?
    running=''
    # Out of time is what has had nine minutes, or a call to itself.
    if [ "$time" -lt "$limit" ] && [ "$whole" = no ]; then
        case $status in 124 | 137) status=cut ;; esac
    fi
    record "$name" "$status" $((SECONDS - since)) "$*"
    [ "$status" != 0 ] || return 0
    case $status in
        cut) printf '   was cut off by the end of this call after %s s; it last said:\n' "$time" ;;
        124 | 137) printf '   was ended after %s s; it last said:\n' "$time" ;;
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

# tuned PASS NAME MODELS BENCH-ARGUMENT...: once more with the fastest cuts, where those of one of the models are faster
# than by default and all of their sweeps have ended.
tuned() {
    local pass=$1 name=$2 models=$3 model faster
    shift 3
    [ -f "$out/tuning.json" ] || return 0
    for model in $models; do
        case $(status_of "tuning-$model") in '' | cut) return 0 ;; esac
    done
    faster=$("$python" -c 'import json, sys
print(*[each["model"] for each in json.load(open(sys.argv[1]))["choices"] if each.get("is_faster")])' "$out/tuning.json") ||
        return 0
    for model in $models; do
        [[ " $faster " = *" $model "* ]] || continue
        part "$pass" "$name-tuned" env GRAM_TUNING="$out/tuning.json" "${gram[@]}" bench "$@" \
            --out "$out/$name-tuned.rows.json"
        return 0
    done
}

# train_piece RECIPE: goes on with its run in $out/training; a piece that was ended by its time has saved itself. Where it
# fails, it goes on without graphs in what is left of the time.
train_piece() {
    local status graphs time grace=30 # it may be in the middle of a step
    fits training || return 0
    set -- "${gram[@]}" train "$1" --puzzles "$puzzles" --out "$out/training"
    printf '== training: %s\n' "$*"
    time=$(at_most "$piece" $(($(left) - 20)))
    running=training since=$SECONDS
    for graphs in on off; do
        status=0
        within $((time - SECONDS + since)) "$out/training.txt" "$out/training.log" env GRAM_GRAPHS=$graphs "$@" ||
            status=$?
        case $status in 0 | 2 | 124 | 137) break ;; esac
        [ $((SECONDS - since)) -lt $((time - 60)) ] || break
    done
    running=''
    [ "$status" != 124 ] || status=0
    record training "$status" $((SECONDS - since)) "$*"
    tail -q -n 2 "$out/training.log" "$out/training.txt" | sed 's/^/   /'
}

sweep() {
    part "$1" "tuning-$2" "${gram[@]}" bench tuning --preset "$2" --rounds 3 --out "$out/tuning.json"
}

kernels() {
    bench_part "$1" "kernels-$2" kernels --preset "$2" --no-resources --no-cpu
}

# Half of the puzzles that it takes by default: rates and shares are of refilled launches all the same.
engine=(engine --rounds 3 --limit 100)

for pass in 1 2; do
    part $pass machine nvidia-smi -q -d CLOCK,POWER,MEMORY,UTILIZATION
    part $pass doctor "${gram[@]}" doctor --json
    for kernel in fused eager; do
        # A run that is long enough for its graph to be captured and launched many times, also once so many random
        # numbers were drawn that drawing them is compiled.
        long=("${gram[@]}" eval sudoku6 --kernel "$kernel" --limit 200 --width 1600 --json)
        part $pass "graphs-$kernel" env GRAM_GRAPHS=on "${long[@]}"
        case $(status_of "graphs-$kernel") in '' | 0 | cut) continue ;; esac
        if [ "${GRAM_GRAPHS:-on}" = on ]; then
            part $pass "called-$kernel" env GRAM_GRAPHS=off "${long[@]}"
            if [ "$(status_of "called-$kernel")" = 0 ]; then
                echo "   later parts run without graphs"
                export GRAM_GRAPHS=off
            fi
        fi
    done
    kernels $pass small
    tests_part $pass bfloat16 bfloat16
    bench_part $pass slots slots
    bench_part $pass engine "${engine[@]}"
    for kernel in fused eager; do
        part $pass "frontier-$kernel" "${gram[@]}" frontier sudoku6 --kernel "$kernel" \
            --limit 200 --seeds 1 --rounds 5 --out "$out/frontier-$kernel" --json
    done
    bench_part $pass training-sudoku9 training --recipe sudoku9 --rounds 3

    # What was timed before a limit ended a sweep stands in its file too, and is not timed again.
    for model in small sudoku6 colouring8 small-attention; do
        sweep $pass $model
    done
    tuned $pass kernels-small small kernels --preset small --no-resources --no-cpu
    tuned $pass engine 'sudoku6 colouring8' "${engine[@]}"

    kernels $pass small-attention
    tuned $pass kernels-small-attention small-attention kernels --preset small-attention --no-resources --no-cpu
    kernels $pass paper-sudoku
    tests_part $pass training '' training
    bench_part $pass training-paper-sudoku-extreme training --recipe paper-sudoku-extreme --rounds 3
    kernels $pass paper
    for model in colouring10 sudoku6-unconditional; do
        sweep $pass $model
    done
    tests_part $pass float32 'not bfloat16'
    bench_part $pass sampler sampler --rounds 3

    # Before the second pass: what fails every time must not take the time of the training.
    if [ $pass = 1 ] && [ -n "$puzzles" ]; then
        train_piece paper-sudoku-extreme
    elif [ $pass = 1 ]; then
        echo "== training: not run: GRAM_PUZZLES names no file of puzzles"
    fi
done

status=0
within "$(at_most 120 $((seconds > SECONDS + 10 ? seconds - SECONDS : 10)))" /dev/null "$out/report.log" \
    "${gram[@]}" report "$out" || status=$?
if [ "$status" = 0 ]; then
    echo "results: $out, a page of them: $out/report.html"
else
    failed=1
    echo "results: $out; no page of them could be made: $(tail -n 1 "$out/report.log")"
fi
if [ "$behind" != 0 ]; then
    echo "parts left to the next call of the same command: $behind"
    exit 3
fi
exit $failed
