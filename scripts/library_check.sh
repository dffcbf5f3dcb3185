#!/usr/bin/env bash
# Proves of a built library that its names are the public header's and no other, in the archive and in
# the shared library, and that a program with names of its own like those inside links with the
# archive and runs.
#
#   scripts/library_check.sh <build directory> [compiler]
#
# Prints each violation and exits 1.
set -euo pipefail

dir=$1
compiler=${2:-gcc}
root=$(dirname "$0")/..
bad=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

grep -oE '\bhak_[a-z_]+\(' "$root/include/hakheap.h" | tr -d '(' | sort -u > "$scratch/declared"
same() { # <what> <file of names>
    if ! diff "$scratch/declared" "$2" > "$scratch/difference"; then
        echo "library_check: $1: names (<: only declared, >: only in the library):"
        cat "$scratch/difference"
        bad=1
    fi
}
# The names that the linker knows, without the node of the version script that each belongs to.
names() { awk '$2 ~ /^[A-Za-z]$/ && $1 !~ /^HAKHEAP_/ { sub(/@.*/, "", $1); print $1 }' | sort -u; }

nm -g --defined-only --format=posix "$dir/libhakheap.a" | names > "$scratch/archive"
same "$dir/libhakheap.a" "$scratch/archive"
nm -D --defined-only --format=posix "$dir/libhakheap.so" | names > "$scratch/shared"
same "$dir/libhakheap.so" "$scratch/shared"

# What an instrument has compiled needs its library, too.
if ! nm -u "$dir/libhakheap.a" | grep -qE '__(asan|tsan|ubsan)_'; then
    cat > "$scratch/names.c" << 'END'
#include <hakheap.h>
int os = 1, heap_create = 2, lock_try = 3, size_classes = 4, registry_top = 5;
int hak_tls = 6, hak_fatal = 7;
int main(void)
{
    hak_heap_t *heap = hak_heap_create(NULL);
    void *block = heap ? hak_heap_malloc(heap, 100) : NULL;
    if (!block) return 1;
    hak_heap_free(heap, block);
    int sum = os + heap_create + lock_try + size_classes + registry_top + hak_tls + hak_fatal;
    return hak_heap_destroy(heap) != 0 || sum != 28;
}
END
    $compiler -I"$root/include" "$scratch/names.c" "$dir/libhakheap.a" -pthread -o "$scratch/names"
    "$scratch/names" || {
        echo "library_check: a program with names of its own ends with status $?"
        bad=1
    }
fi

[ "$bad" = 0 ] || exit 1
echo "library_check: $(wc -l < "$scratch/declared") names hold"
