#!/usr/bin/env bash
# Random operations against the model, for a short time in each build, mode and number of threads. Called by
# `make check-fuzz`.
#
#   scripts/run_fuzz.sh <build directory>...
#
# HAK_FUZZ_SECONDS  how long each run takes at least (5: a minute and a half for a debug and a release build,
#                   AddressSanitizer and ThreadSanitizer)
# HAK_FUZZ_SEED     of all random numbers (the day: each day tries others)
#
# Prints the last line of each run, with its seed, and what failed in whole. The last line is `N passed, N failed`.
set -euo pipefail

seconds=${HAK_FUZZ_SECONDS:-7}
seed=${HAK_FUZZ_SEED:-$(date +%y%m%d)}
operations=25000 # of an episode of one thread: some seconds, so that a run has several
passed=0 failed=0
processes=() names=() logs=()

# The fixed shadow addresses of sanitizers collide with randomised mappings on some kernels.
fixed=()
setarch -R true 2> /dev/null && fixed=(setarch -R)

# Runs of one thread go two at a time, those of several by themselves.
run() { # <build directory> <mode> <threads> <environment>...
    local dir=$1 mode=$2 threads=$3 log=$1/fuzz-$2-$3.log prefix=()
    shift 3
    case $dir in *thread | *address) prefix=("${fixed[@]}") ;; esac
    [ "$threads" = 1 ] || settle
    timeout -k 10 900 "${prefix[@]}" env "$@" "$dir/tests/fuzz" --seconds "$seconds" --seed "$seed" \
        --threads "$threads" --operations "$operations" --save "$dir" < /dev/null > "$log" 2>&1 &
    processes+=($!) names+=("${dir#build/}, $mode") logs+=("$log")
    if [ "$threads" != 1 ] || [ "${#processes[@]}" = 2 ]; then settle; fi
}

# Waits for what runs, and counts it.
settle() {
    local i status
    for i in "${!processes[@]}"; do
        status=0
        wait "${processes[i]}" || status=$?
        if [ "$status" = 0 ]; then
            passed=$((passed + 1))
            echo "${names[i]}: $(tail -n 1 "${logs[i]}")"
        else
            failed=$((failed + 1))
            cat "${logs[i]}"
            echo "FAILED: ${names[i]}, exit status $status"
        fi
    done
    processes=() names=() logs=()
}

for dir in "$@"; do
    case $dir in
    *thread)
        run "$dir" locked 4 HAKHEAP_RSEQ=0 TSAN_OPTIONS=halt_on_error=1
        ;;
    *address)
        run "$dir" best 1 -u HAKHEAP_RSEQ ASAN_OPTIONS=abort_on_error=1
        run "$dir" locked 1 HAKHEAP_RSEQ=0 ASAN_OPTIONS=abort_on_error=1
        run "$dir" locked 4 HAKHEAP_RSEQ=0 ASAN_OPTIONS=abort_on_error=1
        ;;
    *)
        for threads in 1 4; do
            run "$dir" best "$threads" -u HAKHEAP_RSEQ
            run "$dir" cpu_id "$threads" HAKHEAP_RSEQ=cpu
            run "$dir" locked "$threads" HAKHEAP_RSEQ=0
        done
        ;;
    esac
done
settle
[ $((passed + failed)) != 0 ] || failed=1
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
