/* hakheap level 2: os - the Linux side of the table */
#define _GNU_SOURCE
#include "os.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef AT_RSEQ_FEATURE_SIZE
#define AT_RSEQ_FEATURE_SIZE 27
#endif

enum { PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE };

/*
 * LeakSanitizer looks for pointers in malloc's blocks and in globals, not in mappings. It is told
 * of ours, so that what only a heap's block points to is no leak; it reads what is readable of
 * them. Weak: in a program without it there are no such functions.
 */
extern void __lsan_register_root_region(const void *at, size_t bytes) __attribute__((weak));
extern void __lsan_unregister_root_region(const void *at, size_t bytes) __attribute__((weak));

static void *roots_add(void *at, size_t bytes)
{
    if (at && &__lsan_register_root_region) __lsan_register_root_region(at, bytes);
    return at;
}

/* A mapping of that start and size must have been added. */
static void roots_remove(void *at, size_t bytes)
{
    if (&__lsan_unregister_root_region) __lsan_unregister_root_region(at, bytes);
}

static void *map_pages(void *hint, size_t bytes, int protection)
{
    void *at = mmap(hint, bytes, protection, PRIVATE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* What the registry has a place for. */
static bool fits(const void *at, size_t bytes)
{
    return (uintptr_t)at + bytes <= (uintptr_t)1 << 47;
}

/* Maps more than is wanted and unmaps the ends. Where the kernel refuses to split the mapping, the
 * whole of it goes back. */
static void *map_padded(size_t bytes, size_t alignment, int protection)
{
    size_t slack = alignment - HAK_PAGE;
    char *raw = map_pages(NULL, bytes + slack, protection);
    if (!raw) return NULL;
    char *at = (char *)hak_round_up((uintptr_t)raw, alignment);
    size_t head = (size_t)(at - raw);
    size_t tail = slack - head;
    bool good = fits(at, bytes);
    if (good && tail && munmap(at + bytes, tail) != 0) good = false;
    else if (good) tail = 0;
    if (good && head && munmap(raw, head) != 0) good = false;
    else if (good) return at;
    munmap(raw, head + bytes + tail);
    return NULL;
}

/* For where the slack is too much (RLIMIT_AS; RLIMIT_MEMLOCK in a process that locks all it maps):
 * where the kernel places such a mapping, else at the aligned address below, which as a rule is
 * free. */
static void *map_exactly(size_t bytes, size_t alignment, int protection)
{
    void *hint = NULL;
    for (int tries = 0; tries < 2; tries++) {
        void *at = map_pages(hint, bytes, protection);
        if (!at) return NULL;
        if ((uintptr_t)at % alignment == 0 && fits(at, bytes)) return at;
        munmap(at, bytes);
        hint = (void *)((uintptr_t)at & ~(alignment - 1));
    }
    return NULL;
}

static void *map_aligned(size_t bytes, size_t alignment, int protection)
{
    if (alignment <= HAK_PAGE) alignment = HAK_PAGE;
    if (bytes > SIZE_MAX / 2 || alignment > SIZE_MAX / 4) return NULL;
    void *at = map_padded(bytes, alignment, protection);
    return at ? at : map_exactly(bytes, alignment, protection);
}

static void *kernel_reserve(size_t bytes, size_t alignment)
{
    void *at = map_aligned(bytes, alignment, PROT_NONE);
    /* Resident memory follows what is used, not what huge pages round it up to; given once for the
     * whole range. A kernel without huge pages refuses the advice, which changes nothing. */
    if (at) madvise(at, bytes, MADV_NOHUGEPAGE);
    return roots_add(at, bytes);
}

static bool kernel_commit(void *at, size_t bytes)
{
    return mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0;
}
static bool kernel_purge(void *at, size_t bytes) { return madvise(at, bytes, MADV_DONTNEED) == 0; }

/* A mapping over the old one. Taking away the right to write would give back pages under
 * RLIMIT_DATA, but no charge where the kernel overcommits nothing (mode 2). The advice again, so
 * that the range and its neighbours are one mapping to the kernel. */
static bool kernel_decommit(void *at, size_t bytes)
{
    if (mmap(at, bytes, PROT_NONE, PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED) return false;
    madvise(at, bytes, MADV_NOHUGEPAGE);
    return true;
}

static void *kernel_map(size_t bytes, size_t alignment)
{
    return roots_add(map_aligned(bytes, alignment, PROT_READ | PROT_WRITE), bytes);
}

static bool kernel_unmap(void *at, size_t bytes)
{
    if (munmap(at, bytes) != 0) return false;
    roots_remove(at, bytes);
    return true;
}

static bool kernel_unlock(void *at, size_t bytes) { return munlock(at, bytes) == 0; }

static bool kernel_resize(void *at, size_t bytes, size_t wanted)
{
    if ((uintptr_t)at + wanted > (uintptr_t)1 << 47) return false;
    if (mremap(at, bytes, wanted, 0) == MAP_FAILED) return false;
    roots_remove(at, bytes);
    roots_add(at, wanted);
    return true;
}

static bool kernel_move(void *from, size_t bytes, void *to, size_t wanted)
{
    if (mremap(from, bytes, wanted, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) return false;
    roots_remove(from, bytes);
    return true;
}

static void kernel_split(void *at, size_t bytes, size_t first)
{
    roots_remove(at, bytes);
    roots_add(at, first);
    roots_add((char *)at + first, bytes - first);
}

static void kernel_join(void *at, size_t bytes, size_t first)
{
    roots_remove(at, first);
    roots_remove((char *)at + first, bytes - first);
    roots_add(at, bytes);
}

static size_t kernel_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* The coarse clock is read without a system call, and is as old as a tick of the kernel. */
/* A directory has a link of its own, one of the directory above, and one for each below it. */
static size_t kernel_threads(void)
{
    struct stat task;
    return stat("/proc/self/task", &task) == 0 && task.st_nlink > 2 ? task.st_nlink - 2 : 0;
}

static uint64_t kernel_milliseconds(void)
{
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC_COARSE, &time) != 0) return 0;
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static bool kernel_fence_register(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0;
}

static bool kernel_fence(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0;
}

const os_table_t os_kernel = {
    .reserve = kernel_reserve,
    .commit = kernel_commit,
    .purge = kernel_purge,
    .decommit = kernel_decommit,
    .map = kernel_map,
    .unmap = kernel_unmap,
    .unlock = kernel_unlock,
    .resize = kernel_resize,
    .move = kernel_move,
    .split = kernel_split,
    .join = kernel_join,
    .page_size = kernel_page_size,
    .milliseconds = kernel_milliseconds,
    .threads = kernel_threads,
    .fence_register = kernel_fence_register,
    .fence = kernel_fence,
};

const os_table_t *os = &os_kernel;

size_t os_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    return pages > 0 ? (size_t)pages * HAK_PAGE : 0;
}

size_t os_address_space(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY
               ? (size_t)limit.rlim_cur
               : SIZE_MAX;
}

/* The kernel writes ranges, such as "0-3,8-11": the last number is the highest. */
unsigned os_cpu_count(void)
{
    char text[4096];
    ssize_t length = -1;
    int file = open("/sys/devices/system/cpu/present", O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        length = read(file, text, sizeof text);
        close(file);
    }
    unsigned number = 0;
    bool inside = false;
    for (ssize_t i = 0; i < length; i++) {
        bool digit = text[i] >= '0' && text[i] <= '9';
        if (digit) number = (inside ? number * 10 : 0) + (unsigned)(text[i] - '0');
        inside = digit;
    }
    if (length > 0) return number + 1;
    long count = sysconf(_SC_NPROCESSORS_CONF);
    return (unsigned)hak_max(count < 1 ? 1 : (size_t)count, os_cpu() + 1);
}

unsigned os_cpu(void)
{
    int cpu = sched_getcpu();
    return cpu < 0 ? 0 : (unsigned)cpu;
}

uint32_t os_process(void) { return (uint32_t)getpid(); }

bool os_on_signal_stack(void)
{
    stack_t stack;
    return sigaltstack(NULL, &stack) == 0 && stack.ss_flags & SS_ONSTACK;
}

void os_random(void *out, size_t bytes)
{
    if (getrandom(out, bytes, GRND_NONBLOCK) == (ssize_t)bytes) return;
    /* Before the kernel's pool is ready: the loader's 16 random bytes and the clock. */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const unsigned char *loader = (const unsigned char *)getauxval(AT_RANDOM);
    for (size_t i = 0; i < bytes; i++)
        ((unsigned char *)out)[i] =
            (unsigned char)((loader ? loader[i % 16] : 0) ^ (now.tv_nsec >> (8 * (i % 4))));
}

size_t os_rseq_feature_size(void)
{
    size_t bytes = getauxval(AT_RSEQ_FEATURE_SIZE);
    return bytes ? bytes : 20;
}

const char *os_environment(const char *name) { return secure_getenv(name); }

void os_print(const char *text, size_t bytes)
{
    int before = errno;
    /* By number: the C library's function is where a thread may be cancelled. */
    if (syscall(SYS_write, STDERR_FILENO, text, bytes) < 0) errno = before;
}

void os_pin_module(const void *symbol)
{
    Dl_info info;
    if (dladdr(symbol, &info) && info.dli_fname)
        (void)!dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}
