#!/usr/bin/env bash
# Proves the models with spin: each holds as it is, and each seeded bug is found.
#
#   models/run.sh
#
# Needs spin and gcc, 2.5 GB and two minutes. The last line says how many of the runs ended as they must.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
command -v spin > /dev/null || {
    echo "models: spin is not installed (Debian: apt-get install spin)" >&2
    exit 2
}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
passed=0 failed=0

# one model expectation switch...: expectation is "holds" or "fails"
one() {
    local model=$1 expected=$2
    shift 2
    (cd "$place" && rm -f pan* && spin "$@" -a "$OLDPWD/$model.pml" > /dev/null &&
        gcc -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=2500 -o pan pan.c)
    (cd "$place" && ./pan -m100000 > out 2>&1) || true
    local got=unfinished
    if grep -q 'errors: 1' "$place/out"; then got=fails
    elif grep -q 'errors: 0' "$place/out" && ! grep -q 'Search not completed' "$place/out"; then got=holds; fi
    if [ "$got" = "$expected" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    printf '%-45s %s (%s states)\n' "$model ${*:-as it is}" "$got" \
        "$(awk '/states, stored/ { print $1; exit }' "$place/out")"
}

one ledger holds
one ledger fails -DBUG
one ledger fails -DBUG_UNTIED
one ledger fails -DBUG_REMOTE
one ledger fails -DBUG_ADOPT -DOPS=3 -DMOVES=0
one ledger fails -DBUG_ORDER -DCACHE=0 -DMOVES=0
one footprint holds
for bug in ADMIT UNTIED KEEP BUSY SETTLE ORDER; do one footprint fails "-DBUG_$bug"; done
echo "models: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
