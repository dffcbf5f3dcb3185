#!/usr/bin/env bash
# Installs what the tests, the documents and the comparisons need and this machine lacks. Needs root or sudo for that.
set -euo pipefail

# The one list. The library itself needs gcc, make and libc6-dev only.
packages=(
    gcc make libc6-dev                                       # the library
    clang libclang-rt-14-dev lld                             # the second compiler, its sanitizers and linker
    g++                                                      # the header is C++, too
    libcriterion-dev valgrind musl-tools                     # tests
    doxygen graphviz gnuplot-nox python3                     # documents, plots and the page of benchmarks
    shellcheck clang-format                                  # style
    libmimalloc-dev libjemalloc-dev libgoogle-perftools-dev  # peers in bench/
    libapr1-dev                                              # its pools, likewise
    pkg-config dpkg-dev                                      # finds the libraries below; their sources
    liblua5.4-dev libsqlite3-dev sqlite3                     # adapters, their tests and programs
    libnghttp2-dev zlib1g-dev libzstd-dev libuv1-dev         # likewise
    libcurl4-openssl-dev libxml2-dev                         # likewise
)

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
    echo "install_deps: this is no Debian system; install by hand what corresponds to: ${packages[*]}" >&2
    exit 1
fi

missing=()
for package in "${packages[@]}"; do
    # shellcheck disable=SC2016 # ${Status} is dpkg-query's, not the shell's
    status=$(dpkg-query -W -f='${Status}' "$package" 2> /dev/null) || status=none
    [ "$status" = "install ok installed" ] || missing+=("$package")
done
if [ "${#missing[@]}" = 0 ]; then
    echo "install_deps: nothing is missing"
    exit 0
fi

if [ "$(id -u)" = 0 ]; then
    as_root=()
elif command -v sudo > /dev/null; then
    # Without a terminal nobody can type a password: sudo says so at once instead of waiting.
    as_root=(sudo)
    [ -t 0 ] || as_root+=(-n)
else
    echo "install_deps: run as root, or install sudo: these packages are missing: ${missing[*]}" >&2
    exit 1
fi

echo "install_deps: installing ${missing[*]}"
failed() {
    echo "install_deps: $1; these packages are missing: ${missing[*]}" >&2
    exit 1
}
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q || failed "apt-get update failed"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" < /dev/null ||
    failed "apt-get install failed"
echo "install_deps: installed ${missing[*]}"
