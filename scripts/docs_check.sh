#!/usr/bin/env bash
# Proves that what README.md and docs/*.md name in backticks exists.
#
#   scripts/docs_check.sh [--self-test] [root]
#
# Paths of the project (src/..., docs/..., ...; `*` and `<name>` stand for anything) must exist; a symbol hak_... must
# be in include/ or src/, a name HAK_... or HAKHEAP_... there or in the Makefile, scripts, tests or bench.
# Prints what does not exist and exits 1.
set -euo pipefail

check() (
    cd "$1"
    bad=0 checked=0
    complain() {
        echo "$1: \`$2\` $3"
        bad=$((bad + 1))
    }
    # shellcheck disable=SC2034 # has_name reads them by reference
    # The names of each place, read once: `code` has those of include/ and src/, `all` those of the rest, too.
    local -A code=() all=()
    names_of() { grep -rohE --exclude='*.md' '\b(hak|HAK|HAKHEAP)_[A-Za-z0-9_]+' -- "$@" 2> /dev/null | sort -u || true; }
    # shellcheck disable=SC2034 # likewise
    while read -r name; do code[$name]=1 all[$name]=1; done < <(names_of include src)
    # shellcheck disable=SC2034 # likewise
    while read -r name; do all[$name]=1; done < <(names_of Makefile scripts tests bench)
    # A name that ends in * stands for all that begin so.
    has_name() { # <code or all> <name>
        local -n names=$1
        if [[ $2 == *'*' ]]; then
            printf '%s\n' "${!names[@]}" | grep -q "^${2%\*}"
        else
            [ -n "${names[$2]:-}" ]
        fi
    }

    files=()
    for file in README.md docs/*.md; do
        [ ! -e "$file" ] || files+=("$file")
    done
    if [ "${#files[@]}" = 0 ]; then
        echo "docs_check: neither README.md nor docs/*.md in $1"
        exit 1
    fi
    # shellcheck disable=SC2016 # the backticks are what is looked for
    while IFS=: read -r file line span; do
        read -ra words <<< "${span//\`/}"
        for word in "${words[@]}"; do
            path=${word#./}
            case $path in
            src/* | include/* | bench/* | tests/* | scripts/* | examples/* | docs/* | packaging/* | .ci/*)
                path=$(sed -E 's/[,;.]+$//; s/:[0-9]+$//; s/<[a-z]+>/*/g' <<< "$path")
                checked=$((checked + 1))
                compgen -G "$path" > /dev/null || complain "$file:$line" "$path" "does not exist"
                ;;
            esac
        done
        [[ $span == *hak_* || $span == *HAK* ]] || continue
        while read -r name; do
            checked=$((checked + 1))
            case $name in
            hak_*) has_name code "$name" || complain "$file:$line" "$name" "is nowhere in include/ and src/" ;;
            *) has_name all "$name" || complain "$file:$line" "$name" "is nowhere in the code, the Makefile and scripts" ;;
            esac
        done < <(grep -oE '\b(hak|HAK|HAKHEAP)_[A-Za-z0-9_]+\*?' <<< "$span" || true)
    done < <(grep -noHE '`[^`]+`' "${files[@]}" || true)

    if [ "$bad" != 0 ]; then
        echo "docs_check: $bad names do not exist"
        exit 1
    fi
    echo "docs_check: $checked names exist"
)

# Proves that the check can fail: a sound fixture passes, and each way of breaking it is found.
self_test() {
    local dir
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory is known now, and is local
    trap "rm -rf '$dir'" EXIT

    mkdir "$dir/docs" "$dir/src" "$dir/include"
    echo 'int hak_heap_use(void);' > "$dir/include/hakheap.h"
    echo 'static int hak_inner;' > "$dir/src/low.c"
    sound() {
        # shellcheck disable=SC2016 # backticks are the text of the fixture
        printf '%s\n' 'See `src/low.c`, `src/*.c`, `src/<module>.c:12` and `include/hakheap.h`.' \
            'Call `hak_heap_use(heap)`, `hak_heap_*` or `hak_inner`.' > "$dir/README.md"
    }
    must_fail() {
        local out
        echo "$1" >> "$dir/README.md"
        if out=$(check "$dir") || ! grep -qF "README.md:3: \`$2\`" <<< "$out"; then
            echo "docs_check: self-test: $2 was not found: $out"
            exit 1
        fi
        sound
    }

    sound
    check "$dir" > /dev/null || { echo "docs_check: self-test: the sound fixture is refused"; check "$dir"; exit 1; }
    # shellcheck disable=SC2016
    {
        must_fail 'A path: `src/gone.c`.' 'src/gone.c'
        must_fail 'A command: `bash scripts/gone.sh now`.' 'scripts/gone.sh'
        must_fail 'A glob: `docs/*.md`.' 'docs/*.md'
        must_fail 'A symbol: `hak_heap_us()`.' 'hak_heap_us'
        must_fail 'Symbols: `hak_gone_*`.' 'hak_gone_*'
        must_fail 'A variable: `HAKHEAP_GONE=1`.' 'HAKHEAP_GONE'
    }
    rm "$dir/README.md"
    if check "$dir" > /dev/null; then
        echo "docs_check: self-test: a tree without documents passes"
        exit 1
    fi
    echo "docs_check: self-test holds"
}

if [ "${1:-}" = --self-test ]; then
    self_test
    exit 0
fi
check "${1:-$(dirname "$0")/..}"
