#!/usr/bin/env bash
# What limits cost, in one table: larson shared on a heap with limits, below a parent with limits, over the same without;
# what a heap beside one that hammers its limit loses; what it takes to read the figures of many heaps.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
unset MAKEFLAGS MAKELEVEL
# shellcheck disable=SC1091  # a file of its own, checked by itself
source bench/environment.sh

usage() { echo "Usage: bench/limits.sh [--rounds N] [--seconds S]  (15 rounds of larson, of 1 second; 10 times that for the neighbour)"; }

rounds=15 seconds=1
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=${2:-} ;;
    --seconds) seconds=${2:-} ;;
    --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
    esac
    shift 2 || { usage >&2; exit 2; }
done
[[ $rounds =~ ^[1-9][0-9]{0,3}$ && $seconds =~ ^[0-9]+([.][0-9]+)?$ ]] || { usage >&2; exit 2; }

make --no-print-directory -s all > /dev/null
make --no-print-directory -s -f bench/bench.mk limits > /dev/null

# The two of a round run one after the other, in either order.
mps() { "build/bench/larson-$1" --seconds "$seconds" | grep -o 'mps=[0-9.]*' | cut -d= -f2; }
for ((round = 1; round <= rounds; round++)); do
    if ((RANDOM % 2)); then
        with=$(mps hakheap_limited) without=$(mps hakheap)
    else
        without=$(mps hakheap) with=$(mps hakheap_limited)
    fi
    echo "$with $without"
done > >(awk '{ print $1 / $2 }' | sort -n | awk -v seconds="$seconds" '
    { ratio[NR] = $1 }
    function at(part) { return ratio[int(part * (NR - 1) + 1.5)] }
    END { printf "larson shared, with limits over without: median %.3f, quartiles %.3f to %.3f, %d rounds of %s s\n",
          at(0.5), at(0.25), at(0.75), NR, seconds }')
wait
build/bench/limits --what neighbour --seconds "$(awk -v s="$seconds" 'BEGIN { print 10 * s }')" | grep -o 'what=.*'
build/bench/limits --what usage | grep -o 'what=.*'
environment_line "$(make --no-print-directory -s -f bench/bench.mk compiler)" \
    "$(build/bench/larson-hakheap --info | tr ' ' '\n' | sed -n 's/^mode=//p')"
