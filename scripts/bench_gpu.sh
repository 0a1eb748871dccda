#!/usr/bin/env bash
# Proves and measures gram on this machine's GPU: installs it, then runs the GPU tests, the benchmarks of kernels and
# sampler and a frontier at matched latency. Every result is a file.
#
#   bash scripts/bench_gpu.sh FOLDER
#
# FOLDER is new or empty. A part that fails is recorded and the others still run; status.tsv says which. Exit status: 0
# when all parts succeeded, 1 when one failed, 2 when nothing was run. Leave the machine otherwise idle.
set -euo pipefail

refuse() {
    echo "bench_gpu: $1" >&2
    exit 2
}

[ $# = 1 ] && [ -n "$1" ] || refuse "the argument must be one folder for the results, got $# arguments"
nvidia-smi -L >/dev/null 2>&1 || refuse "a GPU is needed, nvidia-smi found none; nothing was run or written"
if [ -e "$1" ]; then
    [ -d "$1" ] && [ -z "$(ls -A "$1")" ] || refuse "the folder for the results must be new or empty, got $1"
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/scripts/setup.sh" dev
python=$root/.venv/bin/python
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    refuse "PyTorch must see the GPU, but this build does not; pip's index must offer a CUDA build"

mkdir -p "$1"
out=$(cd "$1" && pwd -P)
failed=0

# part NAME COMMAND...: standard output to NAME.txt (NAME.json for what prints JSON), progress to NAME.log.
part() {
    local name=$1 began=$SECONDS status=0 file=$1.txt
    shift
    [[ " $* " != *" --json "* ]] || file=$name.json
    printf '== %s: %s\n' "$name" "$*"
    (cd "$root" && "$@") >"$out/$file" 2>"$out/$name.log" || status=$?
    printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - began)) "$*" >>"$out/status.tsv"
    if [ "$status" != 0 ]; then
        failed=1
        printf '   failed with %s; it last said:\n' "$status"
        tail -q -n 3 "$out/$file" "$out/$name.log" | sed 's/^/   /'
        [ -s "$out/$file" ] || rm "$out/$file"
    fi
}

printf 'part\texit\tseconds\tcommand\n' >"$out/status.tsv"
gram=("$python" -m gram)
part machine nvidia-smi -q -d CLOCK,POWER,MEMORY,UTILIZATION
part doctor "${gram[@]}" doctor --json
part tests "$python" -m pytest -m gpu -ra --color=no
part kernels "${gram[@]}" bench kernels --json
part sampler "${gram[@]}" bench sampler --json
for kernel in eager fused; do
    part "frontier-$kernel" "${gram[@]}" frontier sudoku6 --kernel "$kernel" --out "$out/frontier-$kernel" --json
done

echo "results: $out"
exit $failed
