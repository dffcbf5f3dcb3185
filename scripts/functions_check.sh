#!/usr/bin/env bash
# Holds the functions of the C code to 40 lines each, from the line that names one to its closing brace.
#
#   scripts/functions_check.sh [--self-test] directory...
#
# The code is as clang-format leaves it: a function's braces stand alone, in the first column. Prints each longer
# function and exits 1.
set -euo pipefail

check() {
    local files=() dir
    for dir in "$@"; do
        while IFS= read -r file; do files+=("$file"); done < <(find "$dir" -name '*.[ch]' | LC_ALL=C sort)
    done
    if [ ${#files[@]} -eq 0 ]; then
        echo "functions_check: no C files in $*" >&2
        return 1
    fi
    awk -v most=40 '
        FNR == 1 { head = 0; open = 0 }
        # A head begins at the first column and goes on with indented lines.
        /^[A-Za-z_]/ { if (!head) { head = FNR; name = $0 } if (/;$/) head = 0 }
        /^($|[#\/]| \*)/ { head = 0 }
        /^\{$/ && head { open = head; count++ }
        /^}/ {
            lines = FNR - open + 1
            if (open && lines > most) { print FILENAME ":" open ": " lines " lines: " name; bad++ }
            head = open = 0
        }
        END {
            if (bad) { print "functions_check: " bad " functions of more than " most " lines"; exit 1 }
            if (!count) { print "functions_check: no function found"; exit 1 }
            print "functions_check: " count " functions of at most " most " lines"
        }' "${files[@]}"
}

repeat() {
    for ((i = 0; i < $1; i++)); do echo "$2"; done
}

# A function of so many lines, whose head takes two of them.
function_of() {
    printf 'static int %s(int a,\n               int b)\n{\n' "$1"
    repeat $(($2 - 4)) "    a += b;"
    printf '}\n\n'
}

# Proves that the check can fail: functions at the bound pass, and a line more is found wherever it is.
self_test() {
    local dir out
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory is known now, and is local
    trap "rm -rf '$dir'" EXIT

    must_fail() {
        if out=$(check "$dir" 2>&1) || ! grep -q "$2" <<< "$out"; then
            echo "functions_check: self-test: $1 was not found: $out"
            exit 1
        fi
    }

    must_fail "an empty directory" 'no C files'
    echo 'int x;' > "$dir/a.h"
    must_fail "a directory without functions" 'no function found'
    { echo '/* A comment. */'; function_of first 40; echo 'struct s {'; repeat 60 '    int a;'; echo '};'
      function_of second 40; } > "$dir/a.c"
    if ! out=$(check "$dir"); then
        echo "functions_check: self-test: functions of 40 lines are refused: $out"
        exit 1
    fi
    { cat "$dir/a.c"; function_of third 41; function_of fourth 3; } > "$dir/b.c"
    must_fail "a function of 41 lines" 'b.c:146: 41 lines: static int third'
    rm "$dir/b.c"
    function_of inner 41 > "$dir/a.h"
    must_fail "a long function in a header" 'a.h:1: 41 lines'
    { echo 'Test(suite, name)'; echo '{'; repeat 39 '    step();'; echo '}'; } > "$dir/a.h"
    must_fail "a long test" 'a.h:1: 42 lines: Test'
    echo "functions_check: self-test holds"
}

if [ "${1:-}" = --self-test ]; then
    self_test
    exit 0
fi
check "$@"
