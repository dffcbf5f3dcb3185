#!/usr/bin/env bash
# Installs a built library into an empty directory and uses it from there as a program's author does: the program of
# README.md, "Build and install", is built and run by what the installation says of itself.
#
#   scripts/packaging_check.sh <build directory> <case> [compiler]
#
# Cases: those of the `case` at the end. The tests of tests/test_packaging.c run each. Exits 1 where something does not
# hold, and 77 after a line that says so where a program that a case needs is not installed.
set -euo pipefail

build=$(realpath "$1") name=$2 compiler=${3:-gcc}
root=$(realpath "$(dirname "$0")/..")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
version=$(awk '/define HAK_VERSION_(MAJOR|MINOR|PATCH) / { v = v "." $3 } END { print substr(v, 2) }' "$root/include/hakheap.h")
major=${version%%.*}
multiarch=lib/$(gcc -print-multiarch)

die() {
    echo "packaging_check: $name: $*"
    exit 1
}

needs() {
    local each
    for each in "$@"; do
        command -v "$each" > /dev/null && continue
        echo "packaging_check: $name: NOTHING WAS CHECKED: $each is not installed"
        exit 77
    done
}

# A copy of the tree without sources, in which the library is built already: `-o all` says so.
tree=$scratch/tree
mkdir -p "$tree/build"
cp -r "$root"/{Makefile,LICENSE,include,packaging,docs,examples} "$root"/*.md "$tree"
cp "$build"/libhakheap.{a,so} "$tree/build"
make_in_tree() { env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s -C "$tree" -o all "$@"; }

# A new user: nothing of this environment, and a directory with a program in it.
user=$scratch/user
mkdir "$user"
awk '/^## / { here = $0 == "## Build and install" } here && /^```c$/ { on = 1; next } /^```$/ && on { exit } on' \
    "$root/README.md" > "$user/program.c"
grep -q hak_heap_create "$user/program.c" || die "README.md has no program below \"Build and install\""
as_user() { (cd "$user" && env -i PATH="$PATH" HOME="$user" LC_ALL=C "$@"); }
warnings=(-Wall -Wextra -Wundef -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror)

# What a program prints, and which libraries it asks for: with the shared library, or without.
runs() { # <program> shared|static [environment]...
    local program=$1 kind=$2 asks=no
    shift 2
    as_user "$@" "./$program" > "$user/output" || die "$program ends with status $?"
    grep -qE '^[0-9]+ bytes went back to the system$' "$user/output" || die "$program says: $(cat "$user/output")"
    ! readelf -d "$user/$program" | grep -q "NEEDED.*libhakheap.so.$major" || asks=yes
    [ "$asks" = "$([ "$kind" = shared ] && echo yes || echo no)" ] || die "$program: not linked as $kind"
}

only_public() { # <file> <option of nm>
    local others
    others=$(nm "$2" --defined-only --format=posix "$1" | awk '$2 != "A" && $1 !~ /^hak_/ && $1 !~ /:$/')
    [ -z "$others" ] || die "$1 has names that are not hak_*: $others"
    nm "$2" --defined-only --format=posix "$1" | grep -q '^hak_heap_malloc' || die "$1 has no hak_heap_malloc"
}

# ---- Cases ----

files() { # <options of make>...: everything is there, and nothing is left
    make_in_tree install "$@"
    local at=$stage$prefix libdir=$stage$lib each
    for each in include/hakheap.h share/man/man3/{hakheap,hak_heap_create,hak_heap_trim}.3 \
        share/doc/hakheap/{LICENSE,README.md,CHANGELOG.md,docs/design.md,docs/heaps.svg,examples/hello.c}; do
        [ -f "$at/$each" ] || die "no $each"
    done
    (cd "$root/include" && find . -name '*.h*') | while read -r each; do
        cmp "$root/include/$each" "$at/include/$each" || die "no $each"
    done
    cmp "$build/libhakheap.a" "$libdir/libhakheap.a"
    cmp "$build/libhakheap.so" "$libdir/libhakheap.so.$version"
    [ "$(readlink "$libdir/libhakheap.so")" = "libhakheap.so.$major" ] || die "libhakheap.so leads elsewhere"
    [ "$(readlink "$libdir/libhakheap.so.$major")" = "libhakheap.so.$version" ] || die "the soname leads elsewhere"
    readelf -d "$libdir/libhakheap.so" | grep -q "SONAME.*\[libhakheap.so.$major\]" || die "another soname"
    only_public "$libdir/libhakheap.so" -D
    readelf -V "$libdir/libhakheap.so" | grep -q "Name: HAKHEAP_${version%.*}$" || die "no version of symbols"
    ! grep -rlE '@[A-Z]+@' "$libdir/pkgconfig" "$libdir/cmake" || die "a template is not filled in"
    [ -z "$(find "$at" -type f ! -perm -444)" ] || die "files that are not for all: $(find "$at" -type f ! -perm -444)"
    # A neighbour's directory stays, and nothing of the library does.
    mkdir -p "$at/share/doc/other"
    make_in_tree uninstall "$@"
    [ -d "$at/share/doc/other" ] || die "uninstall took a neighbour's directory"
    each=$(find "$scratch/root" ! -type d -o -name '*hakheap*')
    [ -z "$each" ] || die "uninstall leaves $each"
}

install_staged() {
    stage=$scratch/root prefix=/usr lib=/usr/$multiarch
    make_in_tree install DESTDIR="$stage" PREFIX=$prefix LIBDIR="$lib"
}

pkg_config() { # <name of the program> <pkg-config options>...
    local program=$1 flags
    shift
    flags=$(as_user PKG_CONFIG_PATH="$stage$lib/pkgconfig" "${sysroot[@]}" pkg-config --cflags --libs "$@" hakheap)
    # shellcheck disable=SC2086 # flags are words
    as_user "$compiler" "${warnings[@]}" "${static[@]}" program.c $flags -o "$program" 2> "$user/errors" ||
        die "$compiler: $flags: $(cat "$user/errors")"
}

cmake_project() { # <directory of the installation>: one program by each target
    cat > "$user/CMakeLists.txt" << 'END'
cmake_minimum_required(VERSION 3.16)
project(user C)
find_package(hakheap 0.1 REQUIRED)
find_package(hakheap 0.1...<1)
string(FIND "${hakheap_DIR}" "${CMAKE_PREFIX_PATH}/" begins)
if(NOT hakheap_FOUND OR NOT hakheap_VERSION VERSION_EQUAL "${EXPECTED}" OR NOT begins EQUAL 0)
    message(FATAL_ERROR "found ${hakheap_VERSION} in ${hakheap_DIR}")
endif()
foreach(kind hakheap static)
    add_executable(by_${kind} program.c)
    target_link_libraries(by_${kind} hakheap::${kind})
endforeach()
foreach(other 1 0.99 "${EXPECTED}.1" "0.99...<1" "0...<${EXPECTED}" "0...0.0.1")
    find_package(hakheap ${other} QUIET)
    if(hakheap_FOUND)
        message(FATAL_ERROR "is ${hakheap_VERSION}, and taken for ${other}")
    endif()
endforeach()
END
    as_user cmake -S . -B out -DCMAKE_C_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$1" -DEXPECTED="$version" \
        -DCMAKE_C_FLAGS="${warnings[*]}" > "$user/log" 2>&1 || die "$(cat "$user/log")"
    as_user cmake --build out >> "$user/log" 2>&1 || die "$(cat "$user/log")"
    runs out/by_hakheap shared
    runs out/by_static static
}

one_file() { # twice, from the tree: the same bytes
    local each
    "$root/scripts/single.py" "$scratch/once"
    "$root/scripts/single.py" "$user"
    cmp "$scratch/once/hakheap.c" "$user/hakheap.c"
    cmp "$root/include/hakheap.h" "$user/hakheap.h"
    as_user "$compiler" -std=gnu11 "${warnings[@]}" -c hakheap.c
    only_public "$user/hakheap.o" -g
    as_user "$compiler" "${warnings[@]}" -I. program.c hakheap.o -pthread -o program
    runs program static
    as_user "$compiler" "${warnings[@]}" -I. -static program.c hakheap.o -pthread -o whole 2> /dev/null
    runs whole static
    # A program compiles the file by its own standard.
    for each in '-std=c11 -O3' '-std=gnu17'; do
        # shellcheck disable=SC2086
        as_user "$compiler" $each "${warnings[@]}" -I. program.c hakheap.c -pthread -o by_standard ||
            die "$each does not do"
        runs by_standard static
    done
}

static=() sysroot=()
case $name in
files_staged)
    stage=$scratch/root prefix=/usr lib=/usr/$multiarch
    files DESTDIR="$stage" PREFIX=$prefix LIBDIR="$lib"
    ;;
files_prefix)
    stage='' prefix="$scratch/root/a place" lib="$scratch/root/a place/lib"
    files PREFIX="$prefix"
    ;;
pkg_config_shared)
    needs pkg-config "$compiler"
    install_staged
    sysroot=(PKG_CONFIG_SYSROOT_DIR="$stage")
    pkg_config program
    runs program shared LD_LIBRARY_PATH="$stage$lib"
    ;;
pkg_config_static)
    needs pkg-config "$compiler"
    stage='' prefix=$scratch/root lib=$scratch/root/lib
    make_in_tree install PREFIX="$prefix"
    static=(-static)
    pkg_config program --static
    runs program static
    ;;
cmake)
    needs cmake "$compiler"
    install_staged
    cmake_project "$stage/usr"
    ;;
moved)
    needs cmake pkg-config "$compiler"
    make_in_tree install PREFIX="$scratch/root"
    mv "$scratch/root" "$scratch/elsewhere"
    stage='' lib=$scratch/elsewhere/lib
    pkg_config program --define-prefix
    runs program shared LD_LIBRARY_PATH="$lib"
    cmake_project "$scratch/elsewhere"
    ;;
one_file)
    needs python3 "$compiler"
    one_file
    ;;
pages)
    needs mandoc
    make_in_tree install PREFIX="$scratch/root"
    # Pages that refer to each other are looked for in the manual of the machine only.
    complaints=$(mandoc -T lint -W style "$scratch"/root/share/man/man3/*.3 2> /dev/null |
        grep -v 'STYLE: referenced manual not found') || true
    [ -z "$complaints" ] || die "$complaints"
    while read -r each; do
        [ -f "$scratch/root/share/man/man3/$each.3" ] || die "no page $each(3)"
    done < <(sed -n 's/^\.Xr \(hak[a-z_]*\) 3.*/\1/p' "$scratch"/root/share/man/man3/*.3)
    declared=$(grep -oE '\bhak_[a-z_]+\(' "$root/include/hakheap.h" | tr -d '(' | sort -u)
    listed=$(grep -oE '^\.Fn hak_[a-z_]+' "$scratch/root/share/man/man3/hakheap.3" | cut -d' ' -f2 | sort -u)
    [ "$declared" = "$listed" ] || die "hakheap(3) lists other functions: $(diff <(echo "$declared") <(echo "$listed"))"
    ;;
*)
    echo "packaging_check: unknown case '$name'" >&2
    exit 2
    ;;
esac
echo "packaging_check: $name holds"
