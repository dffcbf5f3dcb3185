#!/usr/bin/env bash
# The Larson workload for hakheap and every allocator that is installed, in one command: builds what is missing, runs,
# and prints a table. Needs gcc, make, bash, awk and coreutils. See --help.
set -euo pipefail
caller_directory=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
unset MAKEFLAGS MAKELEVEL
# shellcheck disable=SC1091  # a file of its own, checked by itself
source bench/environment.sh

# ---- Profiles: name, placement, heaps ("-" where placement says it), threads, min, max, blocks, rounds ----

profile_table='
seed      shared    -    4  8        128      1024  100
shared    shared    -    2  8        1000     5000  100
isolated  isolated  -    2  8        1000     5000  100
hop16     hop       16   2  8        1000     5000  100
hop256    hop       256  2  8        1000     5000  100
mt8       shared    -    8  8        1000     5000  100
mid       shared    -    2  8192     32768    500   100
large     shared    -    2  1048576  4194304  16    100
'
all_profiles='seed shared isolated hop16 hop256 mt8 mid large'
quick_profiles='shared hop16'
quick_seconds=0.4
full_seconds=1

# ---- Allocators: name in options and CSV -> adapter; hakheap stands for its two levels ----

declare -A adapter_of=(
    [hakheap-fast]=hakheap [hakheap-checked]=hakheap [system]=system [mimalloc]=mimalloc [jemalloc]=jemalloc
    [jemalloc-arenas]=jemalloc_arena [tcmalloc]=tcmalloc
)
declare -A package_of=([mimalloc]=libmimalloc-dev [jemalloc]=libjemalloc-dev [jemalloc-arenas]=libjemalloc-dev
    [tcmalloc]=libgoogle-perftools-dev)
hakheap_names='hakheap-fast hakheap-checked'
peer_names='system mimalloc jemalloc jemalloc-arenas tcmalloc'

# ---- State, filled by the command line ----

runs=1
csv_file=
plot_file=
only=
peers=
seed=1
declare -A override=()  # threads, heaps, min, max, blocks, rounds, placement, seconds
profiles=()             # what to run, with its seconds at the same index
profile_seconds=()
allocators=()           # names, in table order

usage()
{
    cat << EOF_USAGE
Usage: bench/larson.sh [option...] [profile...]

The Larson server workload: each thread replaces random blocks of its array by blocks of random size, and hands the
array to a fresh thread after blocks * rounds replacements. Compares hakheap (levels fast and checked) with the
system's malloc and with every peer that is installed; builds what is missing first.

Profiles (default: quick)
  quick     ${quick_profiles// /, } at $quick_seconds s a run
  all       every one below at $full_seconds s a run
  seed      4 threads, one heap, 8 to 128 bytes, 1024 blocks a thread
  shared    2 threads, one heap, 8 to 1000 bytes, 5000 blocks a thread
  isolated  as shared, with a heap for each thread
  hop16     as shared, each block from a random one of 16 heaps
  hop256    as shared, each block from a random one of 256 heaps
  mt8       as shared, with 8 threads
  mid       2 threads, one heap, 8 to 32 KiB, 500 blocks a thread
  large     2 threads, one heap, 1 to 4 MiB, 16 blocks a thread

Parameters, in place of what the profiles say
  --threads N  --heaps N (hop only)  --placement shared|isolated|hop
  --min BYTES  --max BYTES  --blocks N  --rounds N  --seconds S  --seed N

Runs and output
  --runs N       N paired runs of each allocator, in random order within a pair; the table shows medians (1)
  --only LIST    run these allocators: hakheap, ${hakheap_names// /, }, ${peer_names// /, }
  --peers LIST   compare hakheap with these only, or with none
  --csv FILE     write every run and the quartiles as CSV; - is standard output (the table goes to standard error)
  --plot FILE    draw an SVG with gnuplot, where that is installed
  --help         this text

Lists are separated by commas. The exit code is 2 for a wrong command line, 1 where something does not build, run or draw,
else 0.
EOF_USAGE
}

# ---- Command line ----

# fail CODE WORDS...: 2 is a wrong command line.
fail()
{
    local code=$1
    shift
    echo "larson.sh: $*" >&2
    exit "$code"
}

check_whole()
{
    local option=$1 text=$2 min=$3 max=$4
    if [[ ! $text =~ ^[0-9]{1,18}$ ]] || ((10#$text < min || 10#$text > max)); then
        fail 2 "$option takes a whole number from $min to $max, not '$text'"
    fi
}

check_seconds()
{
    local option=$1 text=$2
    if [[ ! $text =~ ^[0-9]{1,5}([.][0-9]+)?$ ]] || (($(milliseconds "$text") < 10)) ||
        (($(milliseconds "$text") > 86400000)); then
        fail 2 "$option takes seconds from 0.01 to 86400, not '$text'"
    fi
}

milliseconds()
{
    awk -v seconds="$1" 'BEGIN { printf "%d", seconds * 1000 }'
}

# A file name as the caller's directory means it; - stays.
from_caller()
{
    if [[ $1 == - || $1 == /* ]]; then echo "$1"; else echo "$caller_directory/$1"; fi
}

# take_option NAME VALUE
take_option()
{
    local option=$1 value=$2
    case $option in
        --threads) check_whole "$option" "$value" 1 1024 ;;
        --heaps) check_whole "$option" "$value" 1 65536 ;;
        --min | --max) check_whole "$option" "$value" 8 1073741824 ;;
        --blocks | --rounds) check_whole "$option" "$value" 1 1048576 ;;
        --seconds) check_seconds "$option" "$value" ;;
        --placement)
            [[ $value =~ ^(shared|isolated|hop)$ ]] || fail 2 "$option takes shared, isolated or hop, not '$value'" ;;
        --seed) check_whole "$option" "$value" 0 999999999 && seed=$((10#$value)) ;;
        --runs) check_whole "$option" "$value" 1 10000 && runs=$((10#$value)) ;;
        --only) only=$value ;;
        --peers) peers=$value ;;
        --csv) csv_file=$(from_caller "$value") ;;
        --plot)
            [[ $value != - ]] || fail 2 "--plot draws into a file"
            plot_file=$(from_caller "$value")
            ;;
    esac
    case $option in
        --threads | --heaps | --min | --max | --blocks | --rounds) override[${option#--}]=$((10#$value)) ;;
        --seconds | --placement) override[${option#--}]=$value ;;
    esac
}

take_profile()
{
    local name seconds=$full_seconds names=$1
    case $1 in
        quick) names=$quick_profiles seconds=$quick_seconds ;;
        all) names=$all_profiles ;;
        *)
            [[ " $all_profiles " == *" $1 "* ]] ||
                fail 2 "there is no profile '$1'; there are: quick all $all_profiles" ;;
    esac
    for name in $names; do
        [[ " ${profiles[*]-} " != *" $name "* ]] || fail 2 "profile '$name' is asked for twice"
        profiles+=("$name")
        profile_seconds+=("${override[seconds]-$seconds}")
    done
}

parse_command_line()
{
    local known=' --threads --heaps --min --max --blocks --rounds --seconds --placement --seed --runs --only --peers'
    known+=' --csv --plot '
    local named=() name value
    while (($#)); do
        name=${1%%=*}
        if [[ $1 == --help || $1 == -h ]]; then
            usage
            exit 0
        elif [[ $1 != -* ]]; then
            named+=("$1")
        elif [[ $known != *" $name "* ]]; then
            fail 2 "there is no option '$1'; there are:$known--help"
        else
            if [[ $1 == *=* ]]; then
                value=${1#*=}
            else
                (($# > 1)) || fail 2 "$name needs a value"
                value=$2
                shift
            fi
            [[ -n $value ]] || fail 2 "$name needs a value"
            take_option "$name" "$value"
        fi
        shift
    done
    [[ ${#named[@]} -gt 0 ]] || named=(quick)
    for name in "${named[@]}"; do take_profile "$name"; done
}

# What a profile runs with: sets placement, heaps, threads, min, max, blocks and rounds.
load_profile()
{
    read -r _ placement heaps threads min max blocks rounds < <(grep "^$1 " <<< "$profile_table")
    placement=${override[placement]-$placement}
    threads=${override[threads]-$threads}
    min=${override[min]-$min}
    max=${override[max]-$max}
    blocks=${override[blocks]-$blocks}
    rounds=${override[rounds]-$rounds}
    case $placement in
        hop)
            [[ $heaps != - ]] || heaps=16
            heaps=${override[heaps]-$heaps} ;;
        isolated) heaps=$threads ;;
        *) heaps=1 ;;
    esac
}

# Refuses before anything runs what the programs would refuse in the middle.
check_profiles()
{
    local name hops=0
    for name in "${profiles[@]}"; do
        load_profile "$name"
        ((min <= max)) || fail 2 "profile $name: sizes from --min $min to --max $max are empty"
        [[ $placement != hop ]] || hops=1
    done
    [[ -z ${override[heaps]-} ]] || ((hops)) || fail 2 "--heaps goes with placement hop only"
}

# name_list OPTION TEXT ALLOWED: the names in a comma-separated list, hakheap as its two levels.
name_list()
{
    local name names
    IFS=, read -ra names <<< "$2"
    for name in "${names[@]}"; do
        [[ " $3 " == *" $name "* ]] || fail 2 "$1 knows: $3, not '$name'"
        case $name in
            hakheap) echo "$hakheap_names" ;;
            none) ;;
            *) echo "$name" ;;
        esac
    done
}

select_allocators()
{
    local wanted="$hakheap_names $peer_names" list name
    [[ -z $only || -z $peers ]] || fail 2 "--only and --peers exclude each other"
    if [[ -n $only ]]; then
        wanted=$(name_list --only "$only" "hakheap $hakheap_names $peer_names")
    elif [[ -n $peers ]]; then
        list=$(name_list --peers "$peers" "none $peer_names")
        wanted="$hakheap_names $list"
    fi
    wanted=${wanted//$'\n'/ }
    for name in $peer_names $hakheap_names; do
        if [[ " $wanted " == *" $name "* ]]; then allocators+=("$name"); fi
    done
    ((${#allocators[@]})) || fail 2 "no allocator is left to run"
}

# ---- Building ----

bench_make()
{
    make -s --no-print-directory -f bench/bench.mk "$@"
}

# Drops the peers that are not installed, each with a word about it.
drop_missing_peers()
{
    local installed name present=()
    installed=" $(bench_make peers) hakheap system "
    for name in "${allocators[@]}"; do
        if [[ $installed == *" ${adapter_of[$name]} "* ]]; then
            present+=("$name")
        else
            echo "skipping $name: not installed (Debian: ${package_of[$name]})" >&2
        fi
    done
    ((${#present[@]})) || fail 1 "none of the allocators asked for is installed"
    allocators=("${present[@]}")
}

build_programs()
{
    local name jobs programs=()
    jobs=$(nproc)
    for name in "${allocators[@]}"; do programs+=("build/bench/larson-${adapter_of[$name]}"); done
    if [[ " ${allocators[*]} " == *" hakheap-"* ]]; then
        make -s --no-print-directory -j"$jobs" DEBUG=0 COUNTERS=0 SANITIZE= >&2 || fail 1 "the library does not build"
    fi
    bench_make -j"$jobs" "${programs[@]}" >&2 || fail 1 "the benchmark programs do not build"
}

# ---- Output ----

# field KEY LINE: the value of KEY in a line of key=value pairs.
field()
{
    local pair
    for pair in $2; do
        if [[ ${pair%%=*} == "$1" ]]; then echo "${pair#*=}"; fi
    done
}

# Asks every program who it is, which also proves that the library loaded is the one meant. Sets identities, mode.
identify_allocators()
{
    local name line seen=' '
    identities=
    mode=-
    for name in "${allocators[@]}"; do
        [[ $seen != *" ${adapter_of[$name]} "* ]] || continue
        seen+="${adapter_of[$name]} "
        line=$("build/bench/larson-${adapter_of[$name]}" --info) || fail 1 "${adapter_of[$name]} does not start"
        identities+="$(field allocator "$line") $(field version "$line") ($(field library "$line")), "
        if [[ ${adapter_of[$name]} == hakheap ]]; then mode=$(field mode "$line"); fi
    done
    identities=${identities%, }
}

report()
{
    awk -f bench/larson_report.awk -v want="$1" -v profile="$2" -v order="${allocators[*]}" "$results"
}

print_header()
{
    local what='one run each'
    if ((runs > 1)); then what="medians of $runs runs"; fi
    {
        echo "environment: $environment"
        echo "allocators: $identities"
        echo "$what; M ops/s: millions of malloc + free pairs a second; resident MiB: at the end of the timed run," \
            "and after everything is freed, flushed and trimmed"
        echo "-: no instance heaps, so that shared, isolated and hop are the same workload for this allocator"
        echo
        printf '%-9s %-16s %15s %11s %12s %16s %11s\n' profile allocator 'heaps x threads' 'M ops/s' 'peak MiB' \
            'trimmed MiB' 'x system'
    } >&3
    if [[ -n $csv_file ]]; then
        {
            echo "# environment: $environment"
            echo "# allocators: $identities"
            printf 'kind,profile,round,allocator,status,version,library,mode,has_heaps,placement,heaps,threads,'
            printf 'min,max,blocks,rounds,seed,lives,pairs,seconds,mps,rss_start_kib,rss_peak_kib,rss_trimmed_kib,'
            printf 'ratio_to_system\n'
        } >&4
    fi
}

# ---- Running ----

now_ms()
{
    date +%s%3N
}

# On a terminal one line that changes; elsewhere a line a run.
progress()
{
    local text
    text="[$((done_runs + 1))/$total_runs] $1, $((left_ms / 1000 + 1)) s left"
    if [[ -t 2 ]]; then printf '\r\033[K%s' "$text" >&2; else echo "$text" >&2; fi
}

progress_clear()
{
    if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

# Runs one allocator once and appends its result. A run that hangs counts as failed.
run_once()
{
    local profile=$1 seconds=$2 round=$3 name=$4 line status=ok level=fast code=0
    if [[ $name == hakheap-checked ]]; then level=checked; fi
    local command=("build/bench/larson-${adapter_of[$name]}" --level "$level" --placement "$placement"
        --threads "$threads" --min "$min" --max "$max" --blocks "$blocks" --rounds "$rounds" --seconds "$seconds"
        --seed $((seed + round - 1)))
    if [[ $placement == hop ]]; then command+=(--heaps "$heaps"); fi
    line=$(timeout --foreground -k 5 $((${seconds%.*} + 120)) "${command[@]}" 2> "$scratch/errors") || code=$?
    if ((code)); then
        status="exit code $code: $(head -n 1 "$scratch/errors" | tr ',\t' '  ')"
        line=
        progress_clear
        echo "larson.sh: $profile: $name failed, $status" >&2
        if [[ $name == hakheap-* ]]; then exit_code=1; fi
    fi
    printf '%s\t%s\t%s\t%s\t%s\n' "$profile" "$round" "$name" "$status" "$line" >> "$results"
}

# The allocators in random order, from $RANDOM, so that --seed repeats it. Sets shuffled.
shuffle_allocators()
{
    local i other name
    shuffled=("${allocators[@]}")
    for ((i = ${#shuffled[@]} - 1; i > 0; i--)); do
        other=$((RANDOM % (i + 1)))
        name=${shuffled[i]}
        shuffled[i]=${shuffled[other]}
        shuffled[other]=$name
    done
}

# run_profile NAME SECONDS
run_profile()
{
    local round name begin run_ms
    run_ms=$(milliseconds "$2")
    load_profile "$1"
    for ((round = 1; round <= runs; round++)); do
        shuffle_allocators
        for name in "${shuffled[@]}"; do
            progress "$1: $name, round $round of $runs"
            begin=$(now_ms)
            run_once "$1" "$2" "$round" "$name"
            done_runs=$((done_runs + 1))
            # Start-up, warm-up and trim come on top of the time asked for; what they took so far foretells the rest.
            extra_ms=$((extra_ms + $(now_ms) - begin - run_ms))
            planned_ms=$((planned_ms - run_ms))
            left_ms=$((planned_ms + extra_ms * (total_runs - done_runs) / done_runs))
        done
    done
    progress_clear
    report table "$1" >&3
    if [[ -n $csv_file ]]; then report csv "$1" >&4; fi
}

run_profiles()
{
    local i
    RANDOM=$((seed % 32768))
    done_runs=0
    extra_ms=0
    total_runs=$((${#profiles[@]} * runs * ${#allocators[@]}))
    planned_ms=0
    for i in "${!profiles[@]}"; do
        planned_ms=$((planned_ms + $(milliseconds "${profile_seconds[i]}") * runs * ${#allocators[@]}))
    done
    left_ms=$planned_ms
    for i in "${!profiles[@]}"; do run_profile "${profiles[i]}" "${profile_seconds[i]}"; done
}

draw_plot()
{
    local name title
    if ! command -v gnuplot > /dev/null; then
        echo "no plot: gnuplot is not installed (Debian: gnuplot-nox)" >&2
        return
    fi
    {
        echo "profile ${allocators[*]}"
        for name in "${profiles[@]}"; do report plot "$name"; done
    } > "$scratch/plot"
    title=$(fold -s -w 110 <<< "$environment")
    gnuplot -c bench/larson.gp "$plot_file" "$scratch/plot" "${#allocators[@]}" "$title" ||
        fail 1 "gnuplot failed"
    echo "plot: $plot_file" >&2
}

main()
{
    parse_command_line "$@"
    check_profiles
    select_allocators

    exit_code=0
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    # Without these bash goes on to the next run, because timeout ends by exit and not by the signal.
    trap 'exit 130' INT
    trap 'exit 143' TERM
    results=$scratch/results
    : > "$results"
    if [[ -n $plot_file && (! -w $(dirname "$plot_file") || -d $plot_file) ]]; then fail 2 "--plot: cannot write '$plot_file'"; fi
    if [[ $csv_file == - ]]; then
        exec 3>&2 4>&1
    else
        exec 3>&1
        if [[ -n $csv_file ]]; then
            { exec 4> "$csv_file"; } 2> /dev/null || fail 2 "--csv: cannot write '$csv_file'"
        fi
    fi

    echo "building" >&2
    drop_missing_peers
    build_programs
    identify_allocators
    environment=$(environment_line "$(bench_make compiler)" "$mode")
    print_header
    run_profiles
    if [[ -n $plot_file ]]; then draw_plot; fi
    exit "$exit_code"
}

main "$@"
