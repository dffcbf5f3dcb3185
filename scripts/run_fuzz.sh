#!/usr/bin/env bash
# Random operations against the model, for a short time in each build, mode and number of threads. Called by
# `make check-fuzz`.
#
#   scripts/run_fuzz.sh <build directory>...
#
# HAK_FUZZ_SECONDS  how long each run takes (7: two minutes for a debug and a release build, AddressSanitizer and
#                   ThreadSanitizer)
# HAK_FUZZ_SEED     of all random numbers (the day: each day tries others)
#
# Prints the last line of each run, with its seed, and what failed in whole. The last line is `N passed, N failed`.
set -euo pipefail

seconds=${HAK_FUZZ_SECONDS:-7}
seed=${HAK_FUZZ_SEED:-$(date +%y%m%d)}
passed=0 failed=0

# The fixed shadow addresses of sanitizers collide with randomised mappings on some kernels.
fixed=()
setarch -R true 2> /dev/null && fixed=(setarch -R)

run() { # <build directory> <mode> <threads> <environment>...
    local dir=$1 mode=$2 threads=$3 log=$1/fuzz.log status=0 prefix=()
    shift 3
    case $dir in *thread | *address) prefix=("${fixed[@]}") ;; esac
    timeout -k 10 900 "${prefix[@]}" env "$@" "$dir/tests/fuzz" --seconds "$seconds" --seed "$seed" \
        --threads "$threads" --save "$dir" < /dev/null > "$log" 2>&1 || status=$?
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        echo "${dir#build/}, $mode: $(tail -n 1 "$log")"
    else
        failed=$((failed + 1))
        cat "$log"
        echo "FAILED: ${dir#build/}, $mode, exit status $status"
    fi
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
[ $((passed + failed)) != 0 ] || failed=1
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
