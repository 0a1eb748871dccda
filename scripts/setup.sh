#!/usr/bin/env bash
# Makes .venv in the repository root and installs gram into it with the versions of constraints.txt.
#
#   bash scripts/setup.sh        gram with all that its commands can use
#   bash scripts/setup.sh dev    and what its tests and checks need
#
# Does nothing when that is already done. PYTHON names another interpreter; pip's own settings (index, cache) apply.
# A GPU needs nothing special: torch comes from pip's index, whose build for Linux uses CUDA. Where only the CPU is
# wanted and the index offers both, PIP_EXTRA_INDEX_URL with PyTorch's index of CPU wheels saves gigabytes.
set -euo pipefail

extra=${1:-}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

fail() {
    echo "setup: $1" >&2
    exit 1
}

[ -z "$extra" ] || [ "$extra" = dev ] || fail "the argument must be 'dev' or nothing, got '$extra'"
[ -L "$root/gram/kernels" ] || fail "gram/kernels must be a symbolic link; clone again with: git clone -c core.symlinks=true"

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python=
if ! is_new_enough "$venv/bin/python" || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if is_new_enough "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "Python 3.11 or newer is needed, found none (looked for ${PYTHON:-python3.11, python3.12, python3.13, python3})"
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python must have the modules venv and ensurepip; on Debian and Ubuntu: apt-get install python3-venv"
fi

has_compiler=no
for compiler in ${CXX:-} c++ g++ clang++; do
    if command -v "$compiler" >/dev/null; then
        has_compiler=yes
        break
    fi
done
[ $has_compiler = yes ] || fail "a C++ compiler is needed (c++, g++, clang++ or \$CXX); on Debian and Ubuntu: apt-get install g++"

if [ -n "$python" ]; then
    echo "setup: making .venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

key=$({
    echo "$root"
    "$venv/bin/python" --version
    cat "$root/pyproject.toml" "$root/constraints.txt"
} | "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
stamp=$venv/gram-setup
done_for() {
    [ "$(cat "$stamp-$1" 2>/dev/null)" = "$key" ]
}
if done_for dev || { [ -z "$extra" ] && done_for run; }; then
    exit 0
fi

rm -f "$stamp-run" "$stamp-dev"
if ! "$venv/bin/python" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null; then
    echo "setup: note: Python's headers (Python.h) are not here; training compiles code with them (Debian: python3-dev)" >&2
fi
began=$SECONDS
echo "setup: installing gram${extra:+ and its development tools} into .venv (some minutes the first time)"
log=$venv/setup.log
"$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile \
    --constraint "$root/constraints.txt" --editable "$root[${extra:-all}]" 2>"$log" |
    awk '/^ *(Downloading|Using cached) .*MB\)/ {
             n = split($2 == "cached" ? $3 : $2, part, "/"); split(part[n], wheel, "-")
             print "  " wheel[1], wheel[2], $(NF - 1), $NF
         }
         /^Installing collected packages/ { print "  unpacking " NF - 3 " packages" }
         { fflush() }' || {
    grep -v '^WARNING' "$log" | tail -n 20 >&2
    fail "pip could not install gram; all it said is in $log"
}
if nvidia-smi -L >/dev/null 2>&1 && ! "$venv/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "setup: note: there is a GPU, but this build of torch cannot use it; pip's index must offer a CUDA build" >&2
fi
echo "$key" >"$stamp-${extra:-run}"
echo "setup: done in $((SECONDS - began)) s"
