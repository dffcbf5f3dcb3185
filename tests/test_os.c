/* os: what the Linux table promises. */
#define _GNU_SOURCE
#include "os.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "percpu.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_os.h"

TestSuite(os, .timeout = 600);

static const size_t alignments[] = {0,           1,      HAK_PAGE, 2 * HAK_PAGE, 64 * HAK_KIB,
                                    2 * HAK_MIB, HAK_GIB};
enum { ALIGNMENTS = sizeof alignments / sizeof alignments[0] };

Test(os, reserved_ranges_are_aligned_and_closed)
{
    for (unsigned i = 0; i < ALIGNMENTS; i++) {
        char *at = os->reserve(4 * HAK_MIB, alignments[i]);
        cr_assert(at != NULL, "alignment %zu", alignments[i]);
        cr_assert((uintptr_t)at % hak_max(alignments[i], HAK_PAGE) == 0, "%p for alignment %zu",
                  (void *)at, alignments[i]);
        cr_assert((uintptr_t)at >> 47 == 0);
        cr_assert(!memory_is_readable(at) && !memory_is_readable(at + 4 * HAK_MIB - 1));
    }
}

Test(os, committed_pages_are_zero_and_writable)
{
    char *at = os->reserve(4 * HAK_MIB, 2 * HAK_MIB);
    cr_assert(os->commit(at, 2 * HAK_MIB));
    cr_assert(memory_is_zero(at, 2 * HAK_MIB));
    memset(at, 1, 2 * HAK_MIB);
    cr_assert(!memory_is_readable(at + 2 * HAK_MIB), "more was opened than was asked for");
    cr_assert(os->commit(at + 2 * HAK_MIB, 2 * HAK_MIB));
    cr_assert(memory_is_zero(at + 2 * HAK_MIB, 2 * HAK_MIB));
    cr_assert(at[0] == 1 && at[2 * HAK_MIB - 1] == 1);
}

Test(os, purged_pages_read_zero_and_their_neighbours_stay)
{
    char *at = os->map(4 * HAK_PAGE, 0);
    memset(at, 7, 4 * HAK_PAGE);
    cr_assert(os->purge(at + HAK_PAGE, 2 * HAK_PAGE));
    cr_assert(!memory_is_resident(at + HAK_PAGE) && !memory_is_resident(at + 2 * HAK_PAGE));
    cr_assert(memory_is_zero(at + HAK_PAGE, 2 * HAK_PAGE));
    cr_assert(at[HAK_PAGE - 1] == 7 && at[3 * HAK_PAGE] == 7);
    at[HAK_PAGE] = 1;
    cr_assert(at[HAK_PAGE] == 1);
}

Test(os, mapped_memory_is_aligned_zero_and_goes)
{
    for (unsigned i = 0; i < ALIGNMENTS; i++) {
        char *at = os->map(3 * HAK_PAGE, alignments[i]);
        cr_assert(at != NULL, "alignment %zu", alignments[i]);
        cr_assert((uintptr_t)at % hak_max(alignments[i], HAK_PAGE) == 0, "%p for alignment %zu",
                  (void *)at, alignments[i]);
        cr_assert(memory_is_zero(at, 3 * HAK_PAGE));
        memset(at, 3, 3 * HAK_PAGE);
        cr_assert(os->unmap(at, 3 * HAK_PAGE));
        cr_assert(!memory_is_readable(at) && !memory_is_readable(at + 2 * HAK_PAGE));
    }
}

/* What is mapped for the sake of alignment goes back: 50 times a GiB of slack would show. */
Test(os, aligning_leaves_nothing_behind)
{
    size_t before = memory_mapped();
    for (int i = 0; i < 50; i++) {
        void *at = os->reserve(2 * HAK_MIB, HAK_GIB);
        cr_assert(at != NULL);
        cr_assert(os->unmap(at, 2 * HAK_MIB));
    }
    size_t after = memory_mapped();
    cr_assert(before > 0 && after < before + HAK_GIB / 2, "%zu bytes more", after - before);
}

enum { CUT = 2 << 20 };

/* From here on the kernel unmaps nothing shorter than CUT, as near its limit of mappings it does not
 * cut any. False: it takes no such rule. */
static bool refuse_cuts(void)
{
    static struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, CUT, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {CONTRACT_LENGTH(rules), rules};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void map_without_cuts(void *unused)
{
    enum { TIMES = 20 };
    (void)unused;
    size_t before = memory_mapped();
    if (!refuse_cuts()) _exit(70);
    for (int i = 0; i < TIMES; i++) {
        void *at = os_kernel.map(CUT, CUT);
        if (at && !os_kernel.unmap(at, CUT)) _exit(71);
    }
    _exit(memory_mapped() < before + 2 * CUT ? 0 : 72);
}

/* What cannot be cut to its alignment goes back whole. */
Test(os, a_mapping_that_cannot_be_cut_goes_back)
{
    if (CONTRACT_SANITIZED) cr_skip_test("the sanitizer unmaps, too");
    static child_result_t child;
    child_run(&child, map_without_cuts, NULL);
    if (child.status == 70) cr_skip_test("no filter of system calls here");
    cr_assert(child.status == 0, "status %d, signal %d", child.status, child.signal);
}

Test(os, what_no_system_has_is_refused)
{
    cr_assert(os->reserve(SIZE_MAX, HAK_PAGE) == NULL);
    cr_assert(os->reserve(SIZE_MAX / 2 + 1, HAK_PAGE) == NULL);
    cr_assert(os->reserve((size_t)1 << 48, HAK_PAGE) == NULL);
    cr_assert(os->reserve(HAK_PAGE, (size_t)1 << 63) == NULL);
    cr_assert(os->reserve(HAK_PAGE, (size_t)1 << 48) == NULL);
    cr_assert(os->map(SIZE_MAX / 2 + 1, 0) == NULL);
    cr_assert(os->map((size_t)1 << 48, 2 * HAK_MIB) == NULL);
    cr_assert(os->map(HAK_PAGE, (size_t)1 << 62) == NULL);
    char *at = os->map(HAK_PAGE, 0);
    cr_assert(!os->commit(at + 1, HAK_PAGE), "a range that starts inside a page");
    cr_assert(!os->resize(at, HAK_PAGE, (size_t)1 << 47));
}

Test(os, shrinking_gives_the_end_back)
{
    char *at = os->map(8 * HAK_PAGE, 0);
    memset(at, 5, 8 * HAK_PAGE);
    cr_assert(os->resize(at, 8 * HAK_PAGE, 2 * HAK_PAGE));
    cr_assert(at[0] == 5 && at[2 * HAK_PAGE - 1] == 5);
    cr_assert(!memory_is_readable(at + 2 * HAK_PAGE));
}

Test(os, growing_in_place_keeps_content)
{
    /* The hole is ours as long as nothing else maps: one page at its start, free space behind. */
    char *at = os->map(8 * HAK_PAGE, 0);
    cr_assert(os->resize(at, 8 * HAK_PAGE, HAK_PAGE));
    at[0] = 9;
    cr_assert(os->resize(at, HAK_PAGE, 8 * HAK_PAGE));
    cr_assert(at[0] == 9);
    cr_assert(memory_is_zero(at + HAK_PAGE, 7 * HAK_PAGE));
    at[8 * HAK_PAGE - 1] = 1;
}

Test(os, growing_over_a_neighbour_is_refused)
{
    char *at = os->map(4 * HAK_PAGE, 0);
    memset(at, 6, 4 * HAK_PAGE);
    cr_assert(!os->resize(at, HAK_PAGE, 2 * HAK_PAGE));
    for (unsigned page = 0; page < 4; page++) cr_assert(at[page * HAK_PAGE] == 6, "page %u", page);
}

Test(os, moving_takes_the_pages_along)
{
    char *from = os->map(2 * HAK_MIB, 2 * HAK_MIB);
    char *to = os->reserve(4 * HAK_MIB, 2 * HAK_MIB);
    memset(from, 4, 2 * HAK_MIB);
    cr_assert(os->move(from, 2 * HAK_MIB, to, 4 * HAK_MIB));
    cr_assert(!memory_is_readable(from));
    cr_assert(to[0] == 4 && to[2 * HAK_MIB - 1] == 4);
    cr_assert(memory_is_zero(to + 2 * HAK_MIB, 2 * HAK_MIB));
    to[4 * HAK_MIB - 1] = 1;
}

Test(os, fences)
{
    if (!os->fence_register()) cr_skip_test("the kernel has no membarrier for rseq");
    cr_assert(os->fence_register(), "a second time");
    cr_assert(os->fence());
}

Test(os, the_processor_has_a_number)
{
    long processors = sysconf(_SC_NPROCESSORS_CONF);
    for (int i = 0; i < 100; i++) {
        cr_assert(os_cpu() < (unsigned)processors);
        sched_yield();
    }
}

Test(os, random_bytes_differ_and_stay_inside)
{
    unsigned char first[34], second[34];
    memset(first, 0, sizeof first);
    memset(second, 0, sizeof second);
    os_random(first + 1, 32);
    os_random(second + 1, 32);
    cr_assert(memcmp(first, second, sizeof first) != 0);
    cr_assert(first[0] == 0 && first[33] == 0);
}

Test(os, environment)
{
    setenv("HAKHEAP_OF_THIS_TEST", "value", 1);
    cr_assert(strcmp(os_environment("HAKHEAP_OF_THIS_TEST"), "value") == 0);
    unsetenv("HAKHEAP_OF_THIS_TEST");
    cr_assert(os_environment("HAKHEAP_OF_THIS_TEST") == NULL);
}

Test(os, the_system_says_what_it_has)
{
    cr_assert(os_rseq_feature_size() >= 20);
    cr_assert(os->page_size() == (size_t)sysconf(_SC_PAGESIZE));
    cr_assert(os_process() == (uint32_t)getpid());
}

Test(os, pinning_survives_any_symbol)
{
    os_pin_module(&os_kernel);
    os_pin_module((const void *)16);
    os_pin_module(NULL);
}

/* The table for tests refuses what it is told to refuse, and nothing else. */
Test(os, the_fake_table_refuses_the_kth_call)
{
    fake_os_use();
    void *at[6];
    fake_os_refuse(FAKE_MAP, 2, 2);
    for (unsigned i = 0; i < 6; i++) at[i] = os->map(HAK_PAGE, 0);
    for (unsigned i = 0; i < 6; i++) cr_assert((at[i] == NULL) == (i == 1 || i == 2), "call %u", i);
    cr_assert(fake_os_calls(FAKE_MAP) == 6);
    fake_os_refuse(FAKE_MAP, 1, FAKE_FOREVER);
    cr_assert(os->map(HAK_PAGE, 0) == NULL && os->map(HAK_PAGE, 0) == NULL);
    cr_assert(os->purge(at[0], HAK_PAGE));
    fake_os_allow(FAKE_MAP);
    cr_assert(os->map(HAK_PAGE, 0) != NULL);
    fake_os_bound(FAKE_MAP, HAK_PAGE);
    cr_assert(os->map(2 * HAK_PAGE, 0) == NULL && os->map(HAK_PAGE, 0) != NULL);
    fake_os_restore();
    cr_assert(os == &os_kernel);
    cr_assert(os->map(2 * HAK_PAGE, 0) != NULL);
}
