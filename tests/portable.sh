#!/usr/bin/env bash
# The tests as other processors have them (older instruction sets in PyTorch and oneDNN), on one and
# two threads, while both cores are busy, and in another order. PYTEST is the command to run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PYTEST:=python -m pytest -n 2}"
export OMP_NUM_THREADS=1
failed=()

run() { # a name, settings of the environment, and pytest's arguments behind --
    local name=$1 settings=()
    shift
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    printf '\n== %s\n' "$name"
    # shellcheck disable=SC2086 # a command and its arguments
    env "${settings[@]}" $PYTEST "$@" || failed+=("$name")
}

run 'PyTorch without vector instructions' ATEN_CPU_CAPABILITY=default --
run 'PyTorch with AVX2' ATEN_CPU_CAPABILITY=avx2 --
run 'oneDNN with AVX2' ONEDNN_MAX_CPU_ISA=AVX2 --
run 'oneDNN with SSE4.1' ONEDNN_MAX_CPU_ISA=SSE41 --
run 'two threads' OMP_NUM_THREADS=2 --

yes >/dev/null & busy=($!)
yes >/dev/null & busy+=($!)
trap 'kill "${busy[@]}" 2>/dev/null' EXIT
run 'a busy machine, in random order' -- --random-order --random-order-seed="$RANDOM"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\n== failed: %s\n' "${failed[@]}"
    exit 1
fi
printf '\n== passed\n'
