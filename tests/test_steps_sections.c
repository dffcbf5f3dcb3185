/* api: calls whose section is interrupted, at each of its instructions. The suite is that of
 * test_api.c. */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <ucontext.h>
#include <unistd.h>

#include "percpu.h"
#include "support_child.h"
#include "support_contract.h"

#if PERCPU_SECTIONS

/* A section's descriptor, see percpu_rseq.h. */
typedef struct section {
    uint32_t version, flags;
    unsigned char *start;
    uint64_t length;
    unsigned char *abort;
} section_t;
/* All of this program, by the linker. */
extern const section_t __start___rseq_cs[], __stop___rseq_cs[];
extern const unsigned char __executable_start[];

/* Each by itself is an instruction that ends in a signal: int3, and one that there is not. */
enum { BREAKPOINT = 0xcc, INVALID = 0x06, BLOCKS = 40, SIZE = 100 };

/* What the children tell. */
typedef struct told {
    _Atomic unsigned hits;    /* a section was interrupted there, */
    _Atomic unsigned aborted; /* and the kernel sent the thread to its abort handler */
    _Atomic unsigned sound;   /* and all went on */
    _Atomic pid_t group;      /* of the child's processes */
} told_t;

static told_t *told;
static hak_heap_t *heap;
static void *blocks[BLOCKS];
static const section_t *section;     /* the one that is interrupted, */
static unsigned char *place, before; /* and the byte where the breakpoint is, */
static unsigned char trap;           /* which is this */

/* The breakpoint serves once. A thread that was in a section is in its abort handler by now. */
static void on_breakpoint(int number, siginfo_t *info, void *context)
{
    greg_t *next = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    bool aborted = *next == (greg_t)(uintptr_t)section->abort;
    bool there = *next == (greg_t)(uintptr_t)place + (trap == BREAKPOINT);
    bool ours = trap == BREAKPOINT ? info->si_code == SI_KERNEL : number == SIGILL;
    if (!ours || (!aborted && !there)) _exit(6); /* another instruction's */
    *place = before;
    if (there) *next = (greg_t)(uintptr_t)place;
    add_relaxed(&told->hits, 1u);
    add_relaxed(&told->aborted, (unsigned)aborted);
}

/* By all that is in the fast paths, and what they miss for. */
static void make_and_free(void)
{
    for (unsigned i = 0; i < BLOCKS; i++) blocks[i] = hak_heap_malloc(heap, SIZE);
    for (unsigned i = 0; i < BLOCKS; i++) {
        if (!blocks[i]) _exit(2);
        contract_fill(blocks[i], SIZE, i);
    }
    for (unsigned i = 0; i < BLOCKS; i++) {
        if (!contract_holds(blocks[i], SIZE, i)) _exit(3);
        if (i % 2) hak_heap_free(heap, blocks[i]);
        else hak_free(blocks[i]);
    }
}

/* An instruction that leads anywhere may lead to fork: what it leaves holds no end of the test's
 * pipes, whose other end would wait for it, and is in the child's group. */
static void stand_alone(void)
{
    if (setpgid(0, 0) != 0 || close_range(STDERR_FILENO, ~0u, 0) != 0) _exit(4);
    store_relaxed(&told->group, getpid());
}

/* A child of its own for each place: one that lies within an instruction makes another one of it. */
static void run_into(void *unused)
{
    (void)unused;
    stand_alone();
    struct sigaction action = {.sa_sigaction = on_breakpoint, .sa_flags = SA_SIGINFO};
    struct rlimit second = {1, 1};
    (void)setrlimit(RLIMIT_CPU, &second);
    unsigned char *page = (unsigned char *)((uintptr_t)place & ~(uintptr_t)(HAK_PAGE - 1));
    if (sigaction(SIGTRAP, &action, NULL) != 0 || sigaction(SIGILL, &action, NULL) != 0 ||
        mprotect(page, 2 * HAK_PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
        _exit(4);
    before = *place;
    *place = trap;
    make_and_free();
    make_and_free();
    *place = before;
    if (contract_unsound(heap, 0) != 0) _exit(5);
    add_relaxed(&told->sound, 1u);
    _exit(0);
}

static bool goes_on(const section_t *in, unsigned char *at, unsigned char byte,
                    child_result_t *child)
{
    unsigned hits = told->hits, sound = told->sound;
    section = in;
    place = at;
    trap = byte;
    store_relaxed(&told->group, 0);
    child_run(child, run_into, NULL);
    if (load_relaxed(&told->group) > 0) kill(-load_relaxed(&told->group), SIGKILL);
    cr_assert(child->status != 4, "this program's code cannot be changed");
    return told->hits == hits || told->sound != sound;
}

/* A byte within an instruction may make one that leads anywhere, also to that place. Another byte
 * makes another one, and where an instruction begins both are the same interruption. */
static void interrupt_at(const section_t *in, unsigned char *at, const char *level)
{
    child_result_t child;
    cr_assert(goes_on(in, at, BREAKPOINT, &child) || goes_on(in, at, INVALID, &child),
              "%s, at 0x%zx: status %d, signal %d: %s", level, (size_t)(at - __executable_start),
              child.status, child.signal, child.text);
}

/* A section that is interrupted has done nothing, and its call goes on as if it had missed. */
Test(api, a_section_may_be_interrupted_at_each_instruction)
{
    contract_slabs_only();
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(told != MAP_FAILED);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        heap = contract_heap(level, level ? "checked" : "fast");
        cr_assert(heap != NULL);
        if (contract_is_locked()) cr_skip_test("there are no sections");
        for (unsigned i = 0; i < 4; i++) make_and_free();
        for (const section_t *at = __start___rseq_cs; at < __stop___rseq_cs; at++)
            for (uint64_t byte = 0; byte < at->length; byte++)
                interrupt_at(at, at->start + byte, level ? "checked" : "fast");
        cr_assert(hak_heap_destroy(heap) == 0);
    }
    cr_assert(told->aborted > 40, "%u interrupted, %u aborted", told->hits, told->aborted);
}

#endif
