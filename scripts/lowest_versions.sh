#!/usr/bin/env bash
# Tests gram with the lowest versions that pyproject.toml admits, in an environment of its own.
#
#   bash scripts/lowest_versions.sh FOLDER [pytest arguments]
#
# FOLDER is new, empty or of an earlier call. The environment is made there once for each pyproject.toml; versions.txt
# lists what it has, tests.log is what the tests said. PYTHON names another interpreter than python3.11. Only the fast
# tests run; what follows FOLDER goes to pytest (-m slow: the slow ones instead).
#
# Builds of older versions of PyTorch for Linux bring CUDA: 3 GB to fetch, 7 GB on disk. UV_TORCH_BACKEND=cpu takes those
# for the CPU from PyTorch's own index, where that is reached.
#
# Exit status: that of the tests, 2 where nothing was run.
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE # every process of a test would compile all of PyTorch's Python again

refuse() {
    echo "lowest_versions: $1" >&2
    exit 2
}

folder=${1:-}
[ -n "$folder" ] && [[ $folder != -* ]] ||
    refuse "the first argument must be a folder for the environment, got ${folder:-nothing}"
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$(command -v "${PYTHON:-python3.11}") || refuse "PYTHON must be an interpreter, got ${PYTHON:-python3.11}"
if [ -e "$folder" ]; then
    [ -d "$folder" ] || refuse "the folder must be a folder, got $folder"
    [ -z "$(ls -A "$folder")" ] || [ -f "$folder/made-for.txt" ] ||
        refuse "the folder must be new, empty or of an earlier call, got $folder"
fi
folder=$(realpath -m "$folder")
case $folder/ in "$root"/*) refuse "the folder must lie outside the repository, got $folder" ;; esac
mkdir -p "$folder"

bin=$folder/lowest/bin
wanted=$("$python" --version && echo "$root" && cksum <"$root/pyproject.toml")
if [ "$(cat "$folder/made-for.txt" 2>/dev/null)" != "$wanted" ]; then
    echo unfinished >"$folder/made-for.txt"
    [ -x "$folder/uv/bin/uv" ] || {
        "$python" -m venv "$folder/uv"
        "$folder/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv || refuse "uv was not installed"
    }
    "$folder/uv/bin/uv" venv --quiet --clear --python "$python" "$folder/lowest"
    "$folder/uv/bin/uv" pip install --quiet --python "$bin/python" --resolution lowest-direct --editable "$root[dev]" ||
        refuse "the lowest versions were not installed"
    "$folder/uv/bin/uv" pip freeze --quiet --python "$bin/python" >"$folder/versions.txt"
    echo "$wanted" >"$folder/made-for.txt"
fi
"$bin/python" --version
grep -E '^(numpy|ray|rich|safetensors|scipy|torch|transformers|triton|typer)==' "$folder/versions.txt"

marks="not slow and not alone"
nvidia-smi -L >/dev/null 2>&1 || marks="$marks and not gpu"
cores=$(getconf _NPROCESSORS_ONLN)
workers=${GRAM_TEST_WORKERS:-$((cores < 8 ? cores : 8))}
cd "$root"
PATH=$bin:$PATH OMP_NUM_THREADS=1 "$bin/python" -m pytest -p no:cacheprovider -n "$workers" --dist worksteal \
    -m "$marks" "$@" 2>&1 | tee "$folder/tests.log"
