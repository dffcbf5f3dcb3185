#!/usr/bin/env bash
# Installs what the tests need and this machine lacks, then runs them all; the last line is the count.
set -euo pipefail

cd "$(dirname "$0")/.."
scripts/install_deps.sh
make --no-print-directory -j"$(nproc)" check
