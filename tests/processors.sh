#!/usr/bin/env bash
# Run the whole suite as different processors would: one setting of MKL, of torch's kernels or of the threads at a time.
#
#   tests/processors.sh                          every setting that this machine can take
#   PYTHON=python tests/processors.sh tests/losses    with another interpreter, a part of the suite (words of pytest)
#
# Prints a table (setting, passed, failed, skipped, seconds) and ends with 1 if a test failed. The output of each run
# stays in runs/processors/. MKL_CBWR chooses the code path of MKL, ATEN_CPU_CAPABILITY that of torch; what the
# processor lacks is skipped with the reason.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
out=runs/processors
mkdir -p "$out"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
processor=" $(grep -m1 '^flags' /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu.features machdep.cpu.leaf7_features 2>/dev/null | tr '[:upper:]' '[:lower:]') "
has_mkl=$("$python" -c 'import torch; print(torch.backends.mkl.is_available())')
table=$(printf '%-32s %8s %8s %8s %8s' setting passed failed skipped seconds)
failed=0

count() { # of "12 passed" and the like in the last line of a log
    tail -n 1 "$1" | grep -oE "[0-9]+ $2" | grep -oE '^[0-9]+' || echo 0
}

run() { # a setting NAME=VALUE, or none; then the flag of the processor that it needs, or none
    local setting=$1 flag=$2
    shift 2
    local reason=""
    [[ $setting == MKL_CBWR=* && $has_mkl != True ]] && reason="this torch has no MKL"
    [[ -n $flag && $processor != *" $flag "* ]] && reason="the processor has no $flag"
    [[ $setting == OMP_NUM_THREADS=2 && $(getconf _NPROCESSORS_ONLN) -lt 2 ]] && reason="the machine has one core"
    if [[ -n $reason ]]; then
        table+=$'\n'$(printf '%-32s skipped: %s' "$setting" "$reason")
        return
    fi
    local log="$out/${setting//[=, ]/_}.log" start=$SECONDS words=("OMP_NUM_THREADS=1" "$setting")
    [[ $setting == unset* ]] && words=("OMP_NUM_THREADS=1")
    echo "== $setting: $log"
    if ! env -u MKL_CBWR -u ATEN_CPU_CAPABILITY "${words[@]}" "$python" -m pytest -q -n "${WORKERS:-2}" \
        --dist worksteal "$@" >"$log" 2>&1; then
        failed=1
        grep -E '^(FAILED|ERROR)' "$log"
    fi
    local failures=$(($(count "$log" failed) + $(count "$log" error)))
    table+=$'\n'$(printf '%-32s %8s %8s %8s %8s' "$setting" "$(count "$log" passed)" "$failures" \
        "$(count "$log" skipped)" $((SECONDS - start)))
}

run "unset, OMP_NUM_THREADS=1" "" "$@"
run MKL_CBWR=COMPATIBLE "" "$@"
run MKL_CBWR=AVX2 avx2 "$@"
run MKL_CBWR=AVX512 avx512f "$@"
run ATEN_CPU_CAPABILITY=default "" "$@"
run ATEN_CPU_CAPABILITY=avx2 avx2 "$@"
run ATEN_CPU_CAPABILITY=avx512 avx512f "$@"
run OMP_NUM_THREADS=2 "" "$@"

echo
echo "$table"
exit $failed
