#!/usr/bin/env bash
# Holds the #includes of src/ to the levels of docs/design.md.
#
#   scripts/levels.sh [--self-test] [directory]
#
# Line 1 of every file is `/* hakheap level N: module - one line */`. A file includes project headers of lower levels,
# of its own module (the name up to the first `_`), and the public header; nothing else. Prints each violation and
# exits 1.
set -euo pipefail

check() {
    local files=("$1"/*.[ch])
    if [ ! -e "${files[0]}" ]; then
        echo "levels: no C files in $1" >&2
        return 1
    fi
    # Every file is read twice: the first pass learns levels and modules, the second holds the includes to them.
    awk '
        function base(path) { sub(/.*\//, "", path); return path }
        function complain(text) { print FILENAME ":" FNR ": " text; bad++ }
        FNR == 1 { file = base(FILENAME); second = file in seen; seen[file] = 1 }
        FNR == 1 && !second {
            if ($0 !~ /^\/\* hakheap level [0-9]+: [a-z0-9_]+ - .+ \*\/$/) {
                complain("line 1 is not \"/* hakheap level N: module - one line */\"")
            } else {
                level[file] = $4 + 0
                module[file] = $5
                sub(/_.*/, "", module[file])
                count++
            }
        }
        second && (file in level) && /^[ \t]*#[ \t]*include[ \t]*"/ {
            split($0, part, "\"")
            target = part[2]
            if (target == "hakheap.h") next
            if (target !~ /\.h$/) complain("includes " target ", which is no header")
            else if (!(target in seen)) complain("includes " target ", which is not in this directory")
            else if (!(target in level) || module[target] == module[file]) next
            else if (level[target] >= level[file])
                complain("level " level[file] " (" module[file] ") includes " target " of level " level[target] \
                    " (" module[target] ")")
        }
        END {
            for (i = 1; i < ARGC; i++)
                if (!(base(ARGV[i]) in seen)) { print ARGV[i] ":1: an empty file"; seen[base(ARGV[i])] = 1; bad++ }
            if (bad) { print "levels: " bad " violations"; exit 1 }
            print "levels: " count " files hold"
        }' "${files[@]}" "${files[@]}"
}

# Proves that the check can fail: a sound fixture passes, and each way of breaking it is found.
self_test() {
    local dir
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory is known now, and is local
    trap "rm -rf '$dir'" EXIT

    sound() {
        rm -f "$dir"/*
        printf '/* hakheap level 0: base - words */\n' > "$dir/base.h"
        printf '/* hakheap level 1: low - a part */\n#include "base.h"\n' > "$dir/low.h"
        printf '/* hakheap level 1: low - its code */\n#include "low.h"\n#include "hakheap.h"\n' > "$dir/low_linux.c"
        printf '/* hakheap level 2: high - a part */\n#include <stddef.h>\n#include "low.h"\n' > "$dir/high.h"
        printf '/* hakheap level 2: high_part - a part */\n#include "high.h"\n' > "$dir/high_part.h"
        printf '/* hakheap level 2: side - a part */\n#include "low.h"\n' > "$dir/side.h"
    }
    must_fail() {
        local out
        if out=$(check "$dir") || ! grep -q "$2" <<< "$out"; then
            echo "levels: self-test: $1 was not found: $out"
            exit 1
        fi
    }

    sound
    check "$dir" > /dev/null || { echo "levels: self-test: the sound fixture is refused"; check "$dir"; exit 1; }
    echo '#include "high.h"' >> "$dir/low.h"
    must_fail "an include of a higher level" 'low.h:3: level 1 (low) includes high.h of level 2'
    sound; echo '  #  include "side.h"' >> "$dir/high.h"
    must_fail "an include of the same level" 'high.h:4: level 2 (high) includes side.h of level 2'
    sound; echo '#include "../elsewhere.h"' >> "$dir/high.h"
    must_fail "an include from elsewhere" 'not in this directory'
    sound; echo '#include "low_linux.c"' >> "$dir/low.h"
    must_fail "an include of a .c file" 'no header'
    sound; echo 'int x;' > "$dir/plain.c"
    must_fail "a file without a level" 'plain.c:1: line 1 is not'
    sound; : > "$dir/empty.c"
    must_fail "an empty file" 'empty.c:1: an empty file'
    rm -f "$dir"/*
    if check "$dir" 2> /dev/null; then
        echo "levels: self-test: an empty directory passes"
        exit 1
    fi
    echo "levels: self-test holds"
}

if [ "${1:-}" = --self-test ]; then
    self_test
    exit 0
fi
check "${1:-$(dirname "$0")/../src}"
