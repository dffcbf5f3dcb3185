#!/usr/bin/env bash
# Compares the interface of a built shared library, names, types and values, with the one that is committed in
# packaging/hakheap.abi.
#
#   scripts/abi.sh check <library> [file]   prints what differs and exits 1; 2 where nothing could be compared
#   scripts/abi.sh update <library> [file]  writes the file anew
#
# The library has debug information (-g). What differs by compiler, machine or place of the sources is left out.
set -euo pipefail

how=${1:-} library=${2:-}
root=$(dirname "$0")/..
file=${3:-$root/packaging/hakheap.abi}

for tool in abidw abidiff; do
    command -v "$tool" > /dev/null || {
        echo "abi: NOTHING WAS COMPARED: $tool is not installed (Debian: abigail-tools)" >&2
        exit 2
    }
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

write() { # <file>
    abidw --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed --no-architecture --exported-interfaces-only \
        --drop-private-types --headers-dir "$root/include" --type-id-style hash --out-file "$scratch/written.abi" "$library"
    # Each unit needs a name of its own; that of its file is no part of the interface.
    awk '/<abi-instr / { sub(/ path=.[^ ]* /, " path=\047unit " ++units "\047 "); sub(/ language=[^ >]*/, "") } { print }' \
        "$scratch/written.abi" > "$1"
    grep -q "<function-decl name='hak_heap_create'" "$1" || {
        echo "abi: NOTHING WAS COMPARED: $library has no debug information (-g)" >&2
        exit 2
    }
}

case $how in
update)
    write "$file"
    echo "abi: wrote $file"
    ;;
check)
    write "$scratch/built.abi"
    if ! abidiff --harmless "$file" "$scratch/built.abi"; then
        echo "abi: the interface differs from packaging/hakheap.abi. Where that is meant: make abi-update. Where it is no" \
            "addition, programs that were built before break, and the major version changes with it."
        exit 1
    fi
    echo "abi: $(grep -c '<elf-symbol ' "$file") names hold"
    ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
