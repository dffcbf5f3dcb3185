#!/usr/bin/env bash
# One workload on hakheap and on every allocator that is installed: builds what is missing, runs all of them in random
# order in each of several rounds, and prints the medians. Needs gcc, make, bash, awk and coreutils.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
unset MAKEFLAGS MAKELEVEL
# shellcheck disable=SC1091  # a file of its own, checked by itself
source bench/environment.sh

declare -A figures=(
    [battle]='floor_kib peak_kib peak_over_floor freed_kib flushed_kib trimmed_kib trimmed_over_idle_kib'
    [handoff]='mps rss_end_kib rss_trimmed_kib'
)

usage()
{
    cat << EOF_USAGE
Usage: bench/compare.sh <workload> [--runs N] [option of the workload...]

Workloads
  battle    resident memory of many live blocks of one size, and of what stays (--blocks, --size)
  handoff   one thread allocates, another frees (--pairs, --min, --max, --seconds)

  --runs N  rounds; each runs every allocator once, in random order (5)
  --help    this text

Every allocator's row has the medians over the rounds; build/bench/<workload>-hakheap --help describes the options.
The exit code is 2 for a wrong command line, 1 where something does not build or run, else 0.
EOF_USAGE
}

fail() # <exit code> <words>...
{
    local code=$1
    shift
    echo "compare.sh: $*" >&2
    exit "$code"
}

# The median of each figure over all lines of one row.
medians() # <figures>
{
    awk -v figures="$1" '
        { for (i = 1; i <= NF; i++) { split($i, pair, "="); value[pair[1], NR] = pair[2] } }
        function median(key, sorted, i, j, swap) {
            for (i = 1; i <= NR; i++) sorted[i] = value[key, i] + 0
            for (i = 2; i <= NR; i++)
                for (j = i; j > 1 && sorted[j - 1] > sorted[j]; j--) {
                    swap = sorted[j]; sorted[j] = sorted[j - 1]; sorted[j - 1] = swap
                }
            return NR % 2 ? sorted[(NR + 1) / 2] : (sorted[NR / 2] + sorted[NR / 2 + 1]) / 2
        }
        END {
            count = split(figures, key, " ")
            for (k = 1; k <= count; k++) printf "%22s", median(key[k])
            printf "\n"
        }'
}

workload=
runs=5
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --help)
        usage
        exit 0
        ;;
    --runs)
        [[ ${2:-} =~ ^[1-9][0-9]{0,3}$ ]] || fail 2 "--runs takes a whole number from 1 to 9999, not '${2:-}'"
        runs=$2
        shift
        ;;
    *)
        if [ -z "$workload" ]; then workload=$1; else arguments+=("$1"); fi
        ;;
    esac
    shift
done
if [ -z "$workload" ] || [ -z "${figures[$workload]:-}" ]; then
    usage >&2
    fail 2 "no workload '$workload'"
fi

make --no-print-directory -s all > /dev/null || fail 1 "hakheap does not build"
make --no-print-directory -s -f bench/bench.mk "$workload" > /dev/null || fail 1 "$workload does not build"

# A row is an allocator's program and what it is told besides.
rows=("hakheap --level fast" "hakheap --level checked" system)
for peer in $(make --no-print-directory -s -f bench/bench.mk peers); do rows+=("$peer"); done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for ((round = 1; round <= runs; round++)); do
    while read -r row; do
        echo "round $round of $runs: ${rows[row]}" >&2
        read -r -a words <<< "${rows[row]}"
        status=0
        "build/bench/$workload-${words[0]}" "${words[@]:1}" "${arguments[@]}" > "$scratch/line" || status=$?
        if [ "$status" = 2 ]; then fail 2 "$workload refuses: ${arguments[*]}"; fi
        [ "$status" = 0 ] || fail 1 "$workload on ${rows[row]} ended with $status"
        cat "$scratch/line" >> "$scratch/$row"
    done < <(seq 0 $((${#rows[@]} - 1)) | shuf)
done

environment_line "$(make --no-print-directory -s -f bench/bench.mk compiler)" \
    "$(build/bench/"$workload"-hakheap --info | tr ' ' '\n' | sed -n 's/^mode=//p')"
echo "$workload ${arguments[*]}: medians of $runs runs"
# shellcheck disable=SC2086  # a list of words
printf '%-26s%s\n' '' "$(printf '%22s' ${figures[$workload]})"
for row in "${!rows[@]}"; do
    printf '%-26s%s\n' "${rows[row]/--level /}" "$(medians "${figures[$workload]}" < "$scratch/$row")"
done
