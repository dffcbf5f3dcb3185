#!/usr/bin/env bash
# Runs real programs on hakheap and on every other allocator that is installed, and compares them.
#
#   scripts/integration.sh [--rounds N] [--quick] [--only NAME]... [--no-install]
#
#   --rounds N    each round runs every program on every allocator once, in random order (1); 9 or more to compare
#   --quick       a small part of each workload: shows that all works, compares nothing
#   --only NAME   this program only, once or more
#   --no-install  skips scripts/install_deps.sh
#
# Each program of the Makefile's PROGRAMS takes --allocator hakheap|system and --quick, and prints `RESULT seconds=...
# rate=... peak_kib=... idle_kib=...`, see examples/measure.h; other allocators are preloaded into its `system` side.
# What cannot be built or run is named in a line that begins with SKIPPED:. Raw figures go to build/integration/raw.csv.
# Exits 1 where a program failed.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
unset MAKEFLAGS MAKELEVEL
# shellcheck disable=SC1091  # a file of its own, checked by itself
source bench/environment.sh

rounds=1 quick=() only=() install=1 failed=0
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=$2 && shift ;;
    --quick) quick=(--quick) ;;
    --only) only+=("$2") && shift ;;
    --no-install) install=0 ;;
    *)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
        exit 2
        ;;
    esac
    shift
done

out=build/integration built=build/release/examples
mkdir -p "$out"
skip() { echo "SKIPPED: $*" | tee -a "$out/skipped"; }
wanted() { [ "${#only[@]}" = 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }
: > "$out/skipped"

[ "$install" = 0 ] || scripts/install_deps.sh || skip "scripts/install_deps.sh failed: what is missing is missing below"
make -s -j"$(nproc)" CC=gcc DEBUG=0 COUNTERS=0 SANITIZE= programs | tee -a "$out/skipped"

# What runs: a name, and its command without the options of examples/measure.h.
declare -A commands=()
for program in $(make -s print-programs); do
    if [[ $program != *_preload ]] && wanted "$program" && [ -x "$built/$program" ]; then
        commands[$program]=$built/$program
    fi
done

# The sides: an allocator, and the library that is preloaded for it.
declare -A preloads=([hakheap]='' [system]='')
for peer in mimalloc:libmimalloc.so.2 jemalloc:libjemalloc.so.2; do
    library=$(ldconfig -p | awk -v name="${peer#*:}" '$1 == name { print $NF; exit }')
    if [ -n "$library" ]; then preloads[${peer%:*}]=$library; else skip "${peer%:*}: ${peer#*:} is not installed"; fi
done

run() { # <round> <name> <allocator>
    local round=$1 name=$2 allocator=$3 side=system log=$out/$2-$3.log line
    [ "$allocator" != hakheap ] || side=hakheap
    # shellcheck disable=SC2086  # a command has words
    if ! LD_PRELOAD=${preloads[$allocator]} timeout -k 10 600 ${commands[$name]} --allocator "$side" "${quick[@]}" \
        < /dev/null > "$log" 2>&1 || ! line=$(grep '^RESULT ' "$log"); then
        echo "FAILED: $name on $allocator:"
        tail -n 20 "$log"
        failed=$((failed + 1))
        return
    fi
    sed -E 's/^RESULT //; s/[a-z_]+=//g; s/ /,/g' <<< "$line" | sed "s/^/$round,$name,$allocator,/" >> "$out/raw.csv"
}

echo "round,program,allocator,seconds,rate,peak_kib,idle_kib" > "$out/raw.csv"
environment_line "$(gcc --version | head -n 1)" "${HAKHEAP_RSEQ:-best}"
for round in $(seq "$rounds"); do
    while read -r name allocator; do
        run "$round" "$name" "$allocator"
    done < <(for name in "${!commands[@]}"; do printf "$name %s\n" "${!preloads[@]}"; done | shuf)
done
scripts/integration_table.py "$out/raw.csv"
cat "$out/skipped"
[ "$failed" = 0 ]
