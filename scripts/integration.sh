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
# Programs that are not ours run with examples/sqlite_preload.c in them, which prints that line: the system's shell of
# SQLite, and SQLite's speedtest1, which comes from the source package of the system's SQLite and is kept in build/.
# What cannot be built or run is named in a line that begins with SKIPPED:. Raw figures go to build/integration/raw.csv.
# Exits 1 where a program failed.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
unset MAKEFLAGS MAKELEVEL
# shellcheck disable=SC1091  # a file of its own, checked by itself
source bench/environment.sh

rounds=1 quick=() only=() install=1 failed=0
refuse() { echo "integration: $*" >&2 && exit 2; }
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

[[ $rounds =~ ^[1-9][0-9]*$ ]] || refuse "--rounds $rounds: a number from 1 on is wanted"
read -ra programs < <(make -s print-programs)
for name in "${only[@]}"; do
    [[ $name != *_preload && " ${programs[*]} sqlite_shell speedtest1 " == *" $name "* ]] ||
        refuse "--only $name: there is no such program"
done

out=build/integration built=build/release/examples
mkdir -p "$out"
skip() { echo "SKIPPED: $*" | tee -a "$out/skipped"; }
wanted() { [ "${#only[@]}" = 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }
: > "$out/skipped"

[ "$install" = 0 ] || scripts/install_deps.sh || skip "scripts/install_deps.sh failed: what is missing is missing below"
make -s -j"$(nproc)" CC=gcc DEBUG=0 COUNTERS=0 SANITIZE= programs | tee -a "$out/skipped"

# What runs: a name, and its command. Programs of our own get the options of examples/measure.h, others are told by
# sqlite_preload.so, and have their standard input in `foreign`.
declare -A commands=() foreign=()
for program in "${programs[@]}"; do
    if [[ $program != *_preload ]] && wanted "$program" && [ -x "$built/$program" ]; then
        commands[$program]=$built/$program
    fi
done

shell_script() { # <rows>
    cat << END
create table item(id integer primary key, name text, price int);
create table sale(id integer primary key, item int, day int, note text);
with recursive n(i) as (values(1) union all select i + 1 from n limit 1000)
    insert into item select i, printf('item %d', i), i * 31 % 997 from n;
with recursive n(i) as (values(1) union all select i + 1 from n limit $1)
    insert into sale select i, i * 7919 % 1000 + 1, i % 365, printf('%.*c', i % 99, 'x') from n;
create index by_item on sale(item, day);
select day, sum(price), count(distinct name), max(note) from sale join item on item.id = sale.item group by day;
select name, group_concat(day) from sale join item on item.id = sale.item group by name having count(*) > 3;
delete from sale where id % 3 = 0;
vacuum;
END
}

# Of the source package, whose version need not be that of the library: it uses what is public only.
fetch_speedtest1() {
    local sources=$out/apt
    [ ! -s "$out/speedtest1.c" ] || return 0
    command -v apt-get > /dev/null || return 1
    rm -rf "$sources"
    mkdir -p "$sources/list.d" "$sources/lists/partial" "$sources/download"
    # The system's own package sources, of which only those of source packages; its lists are left alone.
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        case $list in
        *.sources) sed -E 's/^Types:.*/Types: deb-src/' "$list" > "$sources/list.d/${list##*/}" ;;
        *.list) [ ! -e "$list" ] || sed -nE 's/^deb(-src)? /deb-src /p' "$list" | sort -u > "$sources/list.d/${list##*/}" ;;
        esac
    done
    local options=(-q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$PWD/$sources/list.d"
        -o "Dir::State::Lists=$PWD/$sources/lists" -o APT::Sandbox::User=root)
    # A source that has no source packages fails, and the others count.
    apt-get "${options[@]}" update > "$out/apt.log" 2>&1 || true
    (cd "$sources/download" && apt-get "${options[@]}" source --download-only sqlite3) >> "$out/apt.log" 2>&1 || return 1
    local archive
    archive=$(find "$sources/download" -name 'sqlite3_*.orig.tar.*' -print -quit)
    [ -n "$archive" ] && tar -xOf "$archive" --wildcards '*/test/speedtest1.c' > "$out/speedtest1.c"
    rm -rf "$sources"
    [ -s "$out/speedtest1.c" ]
}

if [ -e "$built/sqlite_preload.so" ]; then
    if wanted sqlite_shell && command -v sqlite3 > /dev/null; then
        shell_script "$([ "${#quick[@]}" = 0 ] && echo 300000 || echo 3000)" > "$out/shell.sql"
        commands[sqlite_shell]='sqlite3 :memory:'
        foreign[sqlite_shell]=$out/shell.sql
    elif wanted sqlite_shell; then
        skip "sqlite_shell: there is no sqlite3 shell"
    fi
    if ! wanted speedtest1; then
        :
    elif ! fetch_speedtest1; then
        skip "speedtest1: the source package of SQLite cannot be had; see $out/apt.log"
    elif gcc -O2 -w "$out/speedtest1.c" -lsqlite3 -o "$out/speedtest1"; then
        commands[speedtest1]="$out/speedtest1 --memdb --size $([ "${#quick[@]}" = 0 ] && echo 50 || echo 2)"
        foreign[speedtest1]=/dev/null
    else
        skip "speedtest1: its source does not build"
    fi
else
    for name in sqlite_shell speedtest1; do
        ! wanted "$name" || skip "$name: sqlite_preload is not built"
    done
fi

# The sides: an allocator, and the library that is preloaded for it.
declare -A preloads=([hakheap]='' [system]='')
for peer in mimalloc:libmimalloc.so.2 jemalloc:libjemalloc.so.2; do
    library=$(ldconfig -p | awk -v name="${peer#*:}" '$1 == name && !seen++ { print $NF }')
    if [ -n "$library" ]; then preloads[${peer%:*}]=$library; else skip "${peer%:*}: ${peer#*:} is not installed"; fi
done

run() { # <round> <name> <allocator>
    local round=$1 name=$2 allocator=$3 side=system log=$out/$2-$3.log line preload=${preloads[$3]} arguments=()
    [ "$allocator" != hakheap ] || side=hakheap
    if [ -n "${foreign[$name]:-}" ]; then
        preload="$preload $PWD/$built/sqlite_preload.so"
    else
        arguments=(--allocator "$side" "${quick[@]}")
    fi
    # shellcheck disable=SC2086  # a command has words
    if ! timeout -k 10 600 env LD_PRELOAD="$preload" SQLITE_ALLOCATOR="$side" ${commands[$name]} "${arguments[@]}" \
        < "${foreign[$name]:-/dev/null}" > "$log" 2>&1 || ! line=$(grep -o 'RESULT seconds=.*' "$log"); then
        echo "FAILED: $name on $allocator:"
        tail -n 20 "$log"
        failed=$((failed + 1))
        return
    fi
    sed -E 's/^RESULT //; s/[a-z_]+=//g; s/ /,/g' <<< "$line" | sed "s/^/$round,$name,$allocator,/" >> "$out/raw.csv"
}

# What shows something by itself, and compares nothing.
show() { # <name> <command>...
    wanted "$1" || return 0
    echo "== $1"
    shift
    "$@" || failed=$((failed + 1))
}

echo "round,program,allocator,seconds,rate,peak_kib,idle_kib" > "$out/raw.csv"
environment_line "$(gcc --version | head -n 1)" "${HAKHEAP_RSEQ:-best}"
for round in $(seq "$rounds"); do
    while read -r name allocator; do
        run "$round" "$name" "$allocator"
    done < <(for name in "${!commands[@]}"; do printf "$name %s\n" "${!preloads[@]}"; done | shuf)
done
scripts/integration_table.py "$out/raw.csv"
[ ! -x "$built/lua_tenants" ] || show lua_tenants "$built/lua_tenants" runaway "${quick[@]}"
[ -z "${commands[sqlite_shell]:-}" ] || show sqlite_shell scripts/sqlite_shell.sh build/release
cat "$out/skipped"
[ "$failed" = 0 ]
