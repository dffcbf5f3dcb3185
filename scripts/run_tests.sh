#!/usr/bin/env bash
# Runs built tests and counts them. Called by the Makefile's check targets.
#
#   scripts/run_tests.sh <how> <build directory>...
#
# how: three-ways  the Criterion suites by mm_cid (where the kernel has it), by cpu_id and locked
#                  (suites that know no mode by the best one alone)
#      two-ways    the same by the best mode and locked
#      once        the Criterion suites by the best mode alone
#      asan        the Criterion suites, aborting on the first error and on leaks
#      valgrind    the Criterion suites under valgrind, but those that start compilers and scripts, that limit the address
#                  space (valgrind needs some itself) and that run for a time
#      sections    all tests of a directory, by mm_cid and by cpu_id
#      tsan        the stress programs by themselves
#
# HAK_TEST_SECONDS  how long each stress program runs (2; valgrind: 1), half of it where the run is quick
# HAK_TEST_TIMEOUT  seconds after which one run of a suite is killed (900)
# HAK_TEST_FILTER   Criterion's --filter, for a part of the tests
#
# The Criterion suites of a directory are its tests/run and, where other libraries are installed, its tests/adapters;
# which of the adapters were not built is repeated. Prints Criterion's own line for each run, then `N passed, N failed`.
# Exits 1 if anything failed, crashed, hung, or if a run tested nothing; with a filter, if all of them did.
set -euo pipefail

how=$1
shift
seconds=${HAK_TEST_SECONDS:-2}
quick=(HAK_TEST_QUICK=1 HAK_TEST_SECONDS=$(((seconds + 1) / 2)) UBSAN_OPTIONS=print_stacktrace=1)
export HAK_TEST_SECONDS=$seconds
limit=${HAK_TEST_TIMEOUT:-900}
options=()
[ -z "${HAK_TEST_FILTER:-}" ] || options+=("--filter=$HAK_TEST_FILTER")
# Suites that know no mode: what lies below the caches, compression, texts and scripts. Each build runs them by the best
# mode alone.
modeless='base|block|bench|cold|docs|gate|ledger|os|packaging|pieces|plugins|registry|reserve|sizeclass|slab|superslab|tree|zlib|zstd'
passed=0 failed=0 runs=0 tests=0

# The fixed shadow addresses of sanitizers collide with randomised mappings on some kernels.
fixed=()
setarch -R true 2> /dev/null && fixed=(setarch -R)

# Runs a program with a limit, keeping its output; the last lines say why where it ends badly.
run_limited() {
    local log=$1 status=0
    shift
    timeout -k 10 "$limit" "$@" < /dev/null > "$log" 2>&1 || status=$?
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        echo "killed after $limit s" >> "$log"
    fi
    return "$status"
}

inside() { # <build directory> <name of the run> <command prefix>...
    binary "$1/tests/run" "$@"
}

# By a mode that is not the best.
by_mode() { # inside or suite, and what they are given
    local options=("${options[@]}")
    [ -n "${HAK_TEST_FILTER:-}" ] || options+=("--filter=!($modeless)/*")
    "$@"
}

suite() { # <build directory> <name of the run> <command prefix>...
    local dir=$1
    inside "$@"
    [ ! -x "$dir/tests/adapters" ] || binary "$dir/tests/adapters" "$@"
    [ ! -e "$dir/tests/adapters.skipped" ] || cat "$dir/tests/adapters.skipped"
}

binary() { # <program> <build directory> <name of the run> <command prefix>...
    local program=$1 dir=$2 name=$3 log status=0 line counts tested good complaints least=1
    shift 3
    log=$program-${name// /_}.log
    echo "== ${dir#build/}, $name, ${program##*/}"
    runs=$((runs + 1))
    run_limited "$log" "$@" "$program" "${options[@]}" || status=$?
    line=$(grep 'Synthesis: Tested:' "$log" | tail -n 1) || true
    # Criterion colours its output where it is told to: digits after the words are all that counts.
    counts=$(sed -E 's/\x1b\[[0-9;]*m//g; s/.*Tested: ([0-9]+) \| Passing: ([0-9]+) .*/\1 \2/' <<< "$line")
    read -r tested good <<< "${counts:-0 0}"
    # A leak is found after Criterion has called the test passed, and a death test takes any abort for the one it
    # waits for: what an instrument has written counts by itself.
    complaints=$(grep -cE 'ERROR: [A-Za-z]+Sanitizer|runtime error:|Exit program on first error' "$log") || true
    [ -z "${HAK_TEST_FILTER:-}" ] || least=0
    if [ "$status" != 0 ] || [ "$tested" -lt "$least" ] || [ "$tested" != "$good" ] || [ "$complaints" != 0 ]; then
        tail -n 200 "$log"
        echo "exit status $status, $complaints complaints by instruments; the whole output is in $log"
        # A run that ends badly without a failing test counts as one failure.
        failed=$((failed + (tested > good ? tested - good : 1)))
    else
        echo "$line"
    fi
    passed=$((passed + good))
    tests=$((tests + tested))
}

program() { # <program> <seconds> <command prefix>...
    local program=$1 seconds=$2 log=$1.log status=0
    shift 2
    runs=$((runs + 1))
    run_limited "$log" "$@" "$program" --seconds "$seconds" || status=$?
    tests=$((tests + 1))
    if [ "$status" = 0 ]; then
        echo "passed: ${program#build/}"
        passed=$((passed + 1))
    else
        tail -n 200 "$log"
        echo "FAILED: ${program#build/}, exit status $status"
        failed=$((failed + 1))
    fi
}

case $how in
three-ways)
    for dir in "$@"; do
        # The last directory is tested most: the heavy loops run at full length in its first run, everywhere else at an
        # eighth, and its adapters run in each mode, elsewhere in the best.
        length=("${quick[@]}") others=inside
        [ "$dir" != "${*: -1}" ] || length=(UBSAN_OPTIONS=print_stacktrace=1) others=suite
        suite "$dir" best env -u HAKHEAP_RSEQ "${length[@]}"
        by_mode $others "$dir" cpu_id env HAKHEAP_RSEQ=cpu "${quick[@]}"
        by_mode $others "$dir" locked env HAKHEAP_RSEQ=0 "${quick[@]}"
    done
    ;;
two-ways)
    for dir in "$@"; do
        suite "$dir" best env -u HAKHEAP_RSEQ "${quick[@]}"
        by_mode inside "$dir" locked env HAKHEAP_RSEQ=0 "${quick[@]}"
    done
    ;;
once)
    for dir in "$@"; do
        suite "$dir" best env -u HAKHEAP_RSEQ "${quick[@]}"
    done
    ;;
sections)
    for dir in "$@"; do
        inside "$dir" best env -u HAKHEAP_RSEQ "${quick[@]}"
        inside "$dir" cpu_id env HAKHEAP_RSEQ=cpu "${quick[@]}"
    done
    ;;
asan)
    for dir in "$@"; do
        suite "$dir" address "${fixed[@]}" env "${quick[@]}" ASAN_OPTIONS=abort_on_error=1 \
            LSAN_OPTIONS=suppressions="$PWD"/tests/leaks.supp:print_suppressions=0
    done
    ;;
valgrind)
    export HAK_TEST_SECONDS=1
    [ -n "${HAK_TEST_FILTER:-}" ] || options+=('--filter=!(tree|docs|programs|fault|stress|debugger|plugins|fuzz)/*')
    for dir in "$@"; do
        suite "$dir" valgrind valgrind -q --error-exitcode=99 --exit-on-first-error=yes --trace-children=yes
    done
    ;;
tsan)
    for dir in "$@"; do
        for each in "$dir"/tests/stress_*; do
            [ -x "$each" ] || continue
            program "$each" "$HAK_TEST_SECONDS" "${fixed[@]}" env TSAN_OPTIONS=halt_on_error=1
        done
    done
    ;;
*)
    echo "run_tests: unknown way '$how': three-ways, once, sections, asan, valgrind or tsan" >&2
    exit 2
    ;;
esac

if [ "$runs" = 0 ] || [ "$tests" = 0 ]; then
    echo "nothing was tested"
    failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
