#!/usr/bin/env bash
# Counts instructions, so that a change that makes a path longer is seen where no clock could tell: fixed sequences of
# operations (bench/guard.c) under callgrind, on the release library in its locked mode, because valgrind has no rseq; and
# the exported fast paths, whose rseq sections cannot run there, by their disassembly. Compares with bench/guard.csv.
#
#   bench/guard.sh [--update]
#
# A count that is more than 2 % off in either direction is a failure: a gain is to be written down, too. --update writes
# the file. Counts depend on compiler, C library, valgrind and the number of CPUs that a heap has room for, which the file's
# first line names. Where this machine has others it can prove nothing: the guard says so and passes.
#
# Exit codes: 2 is a wrong command line, 1 a count that is off or what does not build or run, else 0.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
unset MAKEFLAGS MAKELEVEL
# shellcheck disable=SC1091  # a file of its own, checked by itself
source bench/environment.sh

export CC=${CC:-gcc} CFLAGS=${CFLAGS:--O2 -g} LC_ALL=C
file=bench/guard.csv
library=build/libhakheap.so
program=build/bench/guard
tolerance=2 # percent
fast_paths='hak_heap_malloc hak_heap_free'

fail() # <exit code> <words>...
{
    local code=$1
    shift
    echo "guard.sh: $*" >&2
    exit "$code"
}

update=0
case $#:${1-} in
    0:) ;;
    1:--update) update=1 ;;
    *) fail 2 "usage: bench/guard.sh [--update]" ;;
esac
for tool in valgrind objdump readelf setarch taskset; do
    command -v "$tool" > /dev/null || fail 1 "$tool is not installed; scripts/install_deps.sh installs what is missing"
done

# Heaps have a slot for each CPU, rounded up to four: see count_slots in src/percpu.c.
environment()
{
    local cpus
    cpus=$(getconf _NPROCESSORS_CONF)
    echo "# $(make -s --no-print-directory -f bench/bench.mk compiler); $(environment_libc); $(valgrind --version);" \
        "$(uname -m); $(((cpus + 3) / 4 * 4)) CPU slots"
}

build()
{
    local warnings='-Wall -Wextra -Wundef -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror'
    make -s --no-print-directory DEBUG=0 COUNTERS=0 SANITIZE= all
    mkdir -p build/bench
    # shellcheck disable=SC2016,SC2086 # $ORIGIN is the loader's; compiler and flags are lists of words
    $CC -std=gnu11 $CFLAGS $warnings -pthread -Iinclude bench/guard.c -o "$program" "$library" \
        -Wl,-rpath,'$ORIGIN/..' -ldl
}

# ---- Counts ----

# Fixed addresses, one CPU, and the C library's plainest copies: which it takes otherwise is up to the processor.
cpu=$(taskset -cp $$ | sed 's/.*: *//; s/[-,].*//')
fixed="taskset -c $cpu"
setarch -R true 2> /dev/null && fixed+=' setarch -R'
plain=glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM
for limit in non_temporal rep_movsb rep_stosb; do plain+=:glibc.cpu.x86_${limit}_threshold=0x40000000; done
export program plain fixed

count_sequence() # <sequence> <level>
{
    local out
    # shellcheck disable=SC2086 # a list of words
    out=$(env -i PATH="$PATH" HAKHEAP_RSEQ=0 GLIBC_TUNABLES="$plain" $fixed valgrind --tool=callgrind \
        --callgrind-out-file=/dev/null --toggle-collect=sequence "$program" "$1" "$2" 2>&1) ||
        fail 1 "$1 $2 does not run: $out"
    out=$(sed -n 's/.*Collected : \([0-9]*\)$/\1/p' <<< "$out")
    [[ $out =~ ^[1-9][0-9]*$ ]] || fail 1 "callgrind has counted nothing in $1 $2"
    echo "$1 $2,$out"
}

# The function as a whole, to its last byte, slow parts that the compiler keeps in it included.
count_function() # <name>
{
    local start size
    read -r start size < <(readelf -sW "$library" | awk -v name="$1" '$8 == name { print $2, $3; exit }') ||
        fail 1 "$library has no $1"
    start=$((16#$start))
    echo "$1 instructions,$(objdump -d --no-show-raw-insn --start-address="$start" \
        --stop-address="$((start + size))" "$library" | grep -cE '^ +[0-9a-f]+:')"
    echo "$1 bytes,$((size))"
}

# Valgrind starts slowly, so the sequences run side by side.
count_all()
{
    local name level
    export -f count_sequence fail
    # shellcheck disable=SC2016 # the arguments are the inner shell's
    for name in $("$program" --list); do
        for level in fast checked limited; do echo "$name $level"; done
    done | xargs -P "$(nproc)" -L 1 bash -c 'count_sequence "$@"' - | sort || return 1
    for name in $fast_paths; do count_function "$name"; done
}

# ---- Comparison ----

# Reads the file, then the counts of now; prints a line for each name and says how many are off.
compare()
{
    awk -F, -v tolerance="$tolerance" '
        /^#/ || $1 == "name" { next }
        FNR == NR { committed[$1] = $2; next }
        { now[$1] = $2; order[++count] = $1 }
        END {
            printf "%-28s %12s %12s %9s\n", "name", "committed", "now", "percent"
            for (i = 1; i <= count; i++) {
                name = order[i]
                if (!(name in committed)) { word = "is not in the file"; percent = "-"; was = "-" }
                else {
                    was = committed[name]
                    difference = (now[name] - was) * 100 / was
                    percent = sprintf("%+.2f", difference)
                    word = difference > tolerance ? "MORE" : difference < -tolerance ? "LESS" : ""
                }
                if (word != "") bad++
                printf "%-28s %12s %12s %9s %s\n", name, was, now[name], percent, word
            }
            for (name in committed)
                if (!(name in now)) { printf "%-28s %12s is not counted any more\n", name, committed[name]; bad++ }
            if (bad) {
                print "guard: " bad " counts are more than " tolerance " % off; bench/guard.sh --update takes them over"
                exit 1
            }
            print "guard: " count " counts are within " tolerance " %"
        }' "$file" -
}

here=$(environment)
if ((!update)); then
    [[ -e $file ]] || fail 1 "$file does not exist; --update writes it"
    there=$(head -n 1 "$file")
    if [[ $here != "$there" ]]; then
        printf '%s\n' "guard: nothing is proved, because the figures are of another machine:" "  $there" "and this is:" \
            "  $here"
        exit 0
    fi
fi
build
counts=$(count_all) || exit 1
if ((update)); then
    printf '%s\n' "$here" 'name,instructions' "$counts" > "$file"
    echo "guard: $file has $(wc -l <<< "$counts") counts"
else
    compare <<< "$counts"
fi
