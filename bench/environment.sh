# shellcheck shell=bash
# Where a benchmark ran, for every benchmark script here: source it and call environment_line.

# The hypervisor's name, or "no hypervisor seen".
environment_virtual()
{
    local name=
    if command -v systemd-detect-virt > /dev/null; then name=$(systemd-detect-virt --vm) || name=; fi
    if [[ -z $name || $name == none ]] && command -v lscpu > /dev/null; then
        name=$(LC_ALL=C lscpu | sed -n 's/^Hypervisor vendor: *//p')
    fi
    if [[ -z $name ]] && grep -qw hypervisor /proc/cpuinfo; then name=unnamed; fi
    if [[ -n $name ]]; then echo "virtual machine ($name)"; else echo 'no hypervisor seen'; fi
}

environment_libc()
{
    getconf GNU_LIBC_VERSION 2> /dev/null || ldd --version 2>&1 | head -n 1
}

# The choice in brackets: "always [madvise] never" is madvise.
environment_huge_pages()
{
    sed 's/.*\[\(.*\)\].*/\1/' /sys/kernel/mm/transparent_hugepage/enabled 2> /dev/null || echo unknown
}

# environment_line COMPILER MODE: one line; MODE is how hakheap reaches its magazines, as the library says.
environment_line()
{
    local cpu cores
    cpu=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
    cores=$(nproc)
    echo "${cpu:-$(uname -m)}; cores $cores; $(environment_virtual); $(uname -sr); $(environment_libc); $1;" \
        "huge pages $(environment_huge_pages); hakheap per-CPU mode $2; HAKHEAP_RSEQ ${HAKHEAP_RSEQ-unset}"
}
