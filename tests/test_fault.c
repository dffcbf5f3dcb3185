/*
 * Refusals of the operating system: in each scenario the k-th call of each kind is refused, once
 * and for ever after, for every k until none is left to refuse. Every run is a child of its own,
 * because the first reservation happens once a process. Whatever is refused, blocks keep their
 * content, the heap balances, and all works again afterwards.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "hakheap.h"
#include "sizeclass.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_os.h"
#include "support_run.h"

TestSuite(fault, .timeout = 600);

/* ---- A program's view: its heap and the blocks it holds ---- */

enum { MOST_BLOCKS = 20000, MOST_HEAPS = 700 };

typedef struct world {
    hak_heap_t *heap;
    hak_heap_t *more[MOST_HEAPS];
    size_t heaps;
    void *blocks[MOST_BLOCKS];
    size_t sizes[MOST_BLOCKS];
    size_t count;
    size_t refused; /* calls that gave NULL */
} world_t;

static world_t world;

/* Of the child: says why and ends it. The parent prints what it said. */
static _Noreturn void wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
static _Noreturn void wrong(const char *format, ...)
{
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length > 0 && write(STDERR_FILENO, line, hak_min((size_t)length, sizeof line - 1)) < 0)
        _exit(3);
    _exit(2);
}

/* What a failed call must leave: ENOMEM, and a reason that is the system's. */
static void refused(const char *what, size_t size)
{
    int error = errno;
    hak_error_t why = hak_last_error();
    if (error != ENOMEM) wrong("%s of %zu bytes gave errno %d", what, size, error);
    if (why != HAK_ERROR_RESERVE && why != HAK_ERROR_COMMIT)
        wrong("%s of %zu bytes says \"%s\"", what, size, hak_error_text(why));
    world.refused++;
}

/* Long blocks by their ends: what a refusal could tear is where a block begins, and how far it
 * goes. */
enum { WHOLE = 64 * 1024, END = 2048 };

static void fill(void *ptr, size_t size, unsigned seed)
{
    if (size <= WHOLE) {
        contract_fill(ptr, size, seed);
        return;
    }
    contract_fill(ptr, END, seed);
    contract_fill((char *)ptr + size - END, END, ~seed);
}

static bool holds(const void *ptr, size_t size, unsigned seed)
{
    if (size <= WHOLE) return contract_holds(ptr, size, seed);
    return contract_holds(ptr, END, seed) &&
           contract_holds((const char *)ptr + size - END, END, ~seed);
}

/* What a refusal could leave dirty is whole pages: of a long block, the head of each is looked at.
 */
static bool is_zero(const void *ptr, size_t size)
{
    if (size <= WHOLE) return contract_is_zero(ptr, size);
    for (size_t at = 0; at < size; at += HAK_PAGE)
        if (!contract_is_zero((const char *)ptr + at, hak_min((size_t)64, size - at))) return false;
    return contract_is_zero((const char *)ptr + size - END, END);
}

static void keep(void *ptr, size_t size)
{
    if (world.count == MOST_BLOCKS) wrong("too many blocks");
    fill(ptr, size, (unsigned)world.count);
    world.blocks[world.count] = ptr;
    world.sizes[world.count++] = size;
}

static bool take(size_t size)
{
    errno = 0;
    hak_error_t before = hak_last_error();
    void *ptr = hak_heap_malloc(world.heap, size);
    if (!ptr) return refused("malloc", size), false;
    if (errno || hak_last_error() != before)
        wrong("malloc of %zu bytes gave errno %d, \"%s\"", size, errno,
              hak_error_text(hak_last_error()));
    keep(ptr, size);
    return true;
}

static bool take_zeroed(size_t size)
{
    errno = 0;
    void *ptr = hak_heap_calloc(world.heap, 1, size);
    if (!ptr) return refused("calloc", size), false;
    if (!is_zero(ptr, size)) wrong("calloc gave %zu bytes that are not zero", size);
    keep(ptr, size);
    return true;
}

static bool take_aligned(size_t alignment, size_t size)
{
    errno = 0;
    void *ptr = hak_heap_aligned_alloc(world.heap, alignment, size);
    if (!ptr) return refused("aligned_alloc", size), false;
    if ((uintptr_t)ptr % alignment) wrong("%p is not aligned to %zu", ptr, alignment);
    keep(ptr, size);
    return true;
}

static void prove(size_t at)
{
    if (!holds(world.blocks[at], world.sizes[at], (unsigned)at))
        wrong("block %zu of %zu bytes is torn", at, world.sizes[at]);
    if (hak_heap_of(world.blocks[at]) == NULL)
        wrong("block %zu of %zu bytes is in no heap", at, world.sizes[at]);
}

static void prove_all(void)
{
    for (size_t at = 0; at < world.count; at++) prove(at);
}

static void give(void)
{
    if (world.count == 0) return;
    prove(--world.count);
    errno = 4321;
    hak_free(world.blocks[world.count]);
    if (errno != 4321) wrong("free changed errno to %d", errno);
}

/* The newest block to another size; where that is refused, it is as it was. */
static void resize(size_t size)
{
    size_t at = world.count - 1, before = world.sizes[at];
    errno = 0;
    unsigned char *moved = hak_heap_realloc(world.heap, world.blocks[at], size);
    if (!moved) {
        refused("realloc", size);
        prove(at);
        return;
    }
    if (before <= size) {
        if (!holds(moved, before, (unsigned)at))
            wrong("realloc of %zu to %zu bytes lost content", before, size);
    } else {
        /* The pattern follows the size it was written for. */
        static char model[WHOLE];
        size_t whole = before <= WHOLE ? before : END;
        contract_fill(model, whole, (unsigned)at);
        if (memcmp(model, moved, hak_min(whole, size)) != 0)
            wrong("realloc of %zu to %zu bytes lost content", before, size);
    }
    fill(moved, size, (unsigned)at);
    world.blocks[at] = moved;
    world.sizes[at] = size;
}

static void create(hak_heap_t **into, const hak_heap_config_t *config)
{
    errno = 0;
    *into = hak_heap_create(config);
    if (!*into) refused("create", 0);
}

/* ---- Scenarios: what happens before refusals begin, and during ---- */

static void nothing(void) {}
static void with_heap(void) { create(&world.heap, NULL); }
static void with_checked_heap(void) { world.heap = contract_heap(1, "checked"); }
static void with_tight_heap(void)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 1;
    create(&world.heap, &config);
}
static void with_everything(void)
{
    with_checked_heap();
    for (size_t size = 1; size < 3 * HAK_MIB; size = size * 5 / 3 + 1)
        for (int i = 0; i < 3; i++) take(size);
}
static void with_fragments(void)
{
    with_heap();
    for (int i = 0; i < 3000; i++) take(4096);
    for (size_t at = 0; at < world.count; at++) {
        if (at % 100 == 0) continue;
        prove(at);
        hak_heap_free(world.heap, world.blocks[at]);
        world.blocks[at] = NULL;
    }
    size_t kept = 0;
    for (size_t at = 0; at < world.count; at++) {
        if (!world.blocks[at]) continue;
        world.blocks[kept] = world.blocks[at];
        world.sizes[kept] = world.sizes[at];
        fill(world.blocks[kept], world.sizes[kept], (unsigned)kept);
        kept++;
    }
    world.count = kept;
}
static void with_freed_large(void)
{
    with_heap();
    for (int i = 0; i < 3; i++) take(4 * HAK_MIB);
    while (world.count) give();
}
static void with_large(void)
{
    with_heap();
    take(3 * HAK_MIB);
}
static void with_small_reservations(void)
{
    fake_os_bound(FAKE_RESERVE, 8 * HAK_MIB);
    with_heap();
}

static void do_create(void)
{
    create(&world.heap, NULL);
    if (world.heap) take(10);
}
static void do_small(void)
{
    for (int i = 0; i < 4000; i++) take(1000);
}
static void do_every_class(void)
{
    for (unsigned class = 0; class < CLASS_COUNT; class ++) take(size_classes[class].bytes);
    for (unsigned class = 0; class < CLASS_COUNT; class ++) take_zeroed(size_classes[class].bytes);
}
static void do_mid(void)
{
    for (size_t i = 0; i < 12; i++) take(40000 + i * 80000);
    for (int i = 0; i < 6; i++) give();
    for (size_t i = 0; i < 6; i++) take_zeroed(40000 + i * 80000);
}
static void do_large(void)
{
    for (size_t i = 0; i < 6; i++) take(2 * HAK_MIB + i * HAK_MIB / 3);
    for (int i = 0; i < 3; i++) give();
    for (size_t i = 0; i < 3; i++) take_zeroed(3 * HAK_MIB);
}
static void do_aligned(void)
{
    for (size_t alignment = 32; alignment <= 8 * HAK_MIB; alignment *= 2)
        take_aligned(alignment, 5000);
}
static void do_realloc_large(void)
{
    static const size_t sizes[] = {5, 9, 20, 3, 40, 12, 2};
    for (size_t i = 0; i < CONTRACT_LENGTH(sizes); i++) {
        resize(sizes[i] * HAK_MIB);
        /* A neighbour, so that the next growth has no room where it is. */
        void *beside = hak_heap_malloc(world.heap, 2 * HAK_MIB);
        if (beside) hak_heap_free(world.heap, beside);
    }
}
static void do_realloc_kinds(void)
{
    if (!take(100)) return;
    static const size_t sizes[] = {5000, 100000, 3 * HAK_MIB, 700000, 64, 9 * HAK_MIB, 16, 33000};
    for (size_t i = 0; i < CONTRACT_LENGTH(sizes); i++) resize(sizes[i]);
}
static void do_free_all(void)
{
    while (world.count) give();
}
static void do_destroy(void)
{
    errno = 4321;
    if (hak_heap_destroy(world.heap) != 0) wrong("destroy failed");
    if (errno != 4321) wrong("destroy changed errno");
    world.heap = NULL;
    world.count = 0;
    do_create();
}
static void with_superslabs(void)
{
    with_heap();
    for (int i = 0; i < 400; i++) take(30000);
}
/* What the reserve gives to the kernel, and takes again. */
static void do_give_back(void)
{
    if (hak_heap_destroy(world.heap) != 0) wrong("destroy failed");
    world.heap = NULL;
    world.count = 0;
    (void)hak_reserve_trim();
    do_create();
    for (int i = 0; world.heap && i < 200; i++) take_zeroed(30000);
}
static void do_reset(void)
{
    errno = 4321;
    if (hak_heap_reset(world.heap) != 0) wrong("reset failed");
    if (errno != 4321) wrong("reset changed errno");
    world.count = 0;
    do_every_class();
}
static void do_trim(void)
{
    errno = 4321;
    (void)hak_heap_flush(world.heap);
    (void)hak_heap_trim(world.heap, HAK_MIB);
    prove_all();
    (void)hak_heap_trim(world.heap, 0);
    if (errno != 4321) wrong("flush or trim changed errno to %d", errno);
    prove_all();
    for (int i = 0; i < 100; i++) take_zeroed(4096);
    errno = 4321;
    (void)hak_reserve_trim();
    if (errno != 4321) wrong("reserve_trim changed errno to %d", errno);
}
static int ignore(void *ctx, const char *text, size_t length)
{
    return (void)ctx, (void)text, (void)length, 0;
}
static void do_look(void)
{
    errno = 4321;
    for (int i = 0; i < 3; i++) {
        int found = hak_heap_check(world.heap);
        if (found != 0 && found != ENOMEM && found != EAGAIN) wrong("check gave %d", found);
        if (found) world.refused++;
        hak_heap_stats_t stats = {.struct_size = sizeof stats};
        if (hak_heap_stats(world.heap, &stats) != 0) wrong("stats failed");
        if (hak_heap_report(world.heap, ignore, NULL) != 0) wrong("report failed");
    }
    if (errno != 4321) wrong("check, stats or report changed errno");
}
static void do_many_heaps(void)
{
    for (int i = 0; i < 600; i++) {
        create(&world.more[world.heaps], NULL);
        if (!world.more[world.heaps]) continue;
        hak_heap_t *heap = world.more[world.heaps++];
        errno = 0;
        void *ptr = hak_heap_malloc(heap, 64);
        if (ptr) contract_fill(ptr, 64, 1);
        else refused("malloc", 64);
    }
}
static void do_other_cpus(void)
{
    int cpus[16];
    size_t count = contract_cpus(cpus, 16);
    for (size_t i = 0; i < count; i++) {
        contract_move_to(cpus[i]);
        for (int k = 0; k < 200; k++) take(100);
        for (int k = 0; k < 100; k++) give();
    }
}

typedef struct scenario {
    const char *name;
    void (*before)(void), (*during)(void);
} scenario_t;

static const scenario_t scenarios[] = {
    {"the first heap", nothing, do_create},
    {"small blocks", with_heap, do_small},
    {"small blocks, checked", with_checked_heap, do_small},
    {"every class", with_heap, do_every_class},
    {"mid blocks", with_heap, do_mid},
    {"large blocks", with_heap, do_large},
    {"large blocks from the cache", with_freed_large, do_large},
    {"large blocks without a cache", with_tight_heap, do_large},
    {"aligned blocks", with_heap, do_aligned},
    {"realloc of a large block", with_large, do_realloc_large},
    {"realloc across kinds", with_heap, do_realloc_kinds},
    {"free of everything", with_everything, do_free_all},
    {"free without a cache", with_tight_heap, do_large},
    {"destroy", with_everything, do_destroy},
    {"destroy of SuperSlabs", with_superslabs, do_give_back},
    {"reset", with_everything, do_reset},
    {"flush and trim", with_fragments, do_trim},
    {"flush and trim of everything", with_everything, do_trim},
    {"check, stats and report", with_everything, do_look},
    {"six hundred heaps", nothing, do_many_heaps},
    {"other CPUs", with_checked_heap, do_other_cpus},
    {"small reservations", with_small_reservations, do_small},
    {"small reservations, mid", with_small_reservations, do_mid},
};

static const char *const call_names[FAKE_CALLS] = {
    [FAKE_RESERVE] = "reserve",         [FAKE_COMMIT] = "commit", [FAKE_PURGE] = "purge",
    [FAKE_DECOMMIT] = "decommit",       [FAKE_MAP] = "map",       [FAKE_UNMAP] = "unmap",
    [FAKE_UNLOCK] = "unlock",           [FAKE_RESIZE] = "resize", [FAKE_MOVE] = "move",
    [FAKE_FENCE_REGISTER] = "register", [FAKE_FENCE] = "fence",
};

/* ---- One run ---- */

static size_t address_space(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    size_t pages = 0;
    if (!file) return 0;
    if (fscanf(file, "%zu", &pages) != 1) pages = 0;
    fclose(file);
    return pages * HAK_PAGE;
}

typedef struct outcome {
    bool reached;                   /* the k-th call came */
    size_t mappings, address_space; /* at the end */
} outcome_t;
static outcome_t *outcome; /* shared with children */

typedef struct fault {
    const scenario_t *scenario;
    fake_call_t call;
    long k, times;
} fault_t;

/* Everything a heap can do, done with nothing refused. */
static void prove_all_works(void)
{
    if (!world.heap) create(&world.heap, NULL);
    if (!world.heap) wrong("no heap although nothing is refused any more");
    prove_all();
    size_t live = world.count;
    int line = contract_unsound(world.heap, live);
    if (line) {
        hak_heap_stats_t stats = contract_stats(world.heap);
        wrong("support_contract.c:%d: %zu blocks live, %zu counted, %zu bytes by the balance, %zu "
              "committed",
              line, stats.live_blocks, live, contract_sum(&stats), stats.committed_bytes);
    }
    size_t before = world.refused;
    do_every_class();
    do_realloc_kinds();
    do_large();
    do_aligned();
    prove_all();
    if (world.refused != before) wrong("a call failed although nothing is refused any more");
    while (world.count) give();
    (void)hak_heap_flush(world.heap);
    hak_heap_stats_t stats = contract_stats(world.heap);
    if (contract_cached(&stats) || stats.phantom_superslabs)
        wrong("something is cached after the flush");
    (void)hak_heap_trim(world.heap, 0);
    if ((line = contract_unsound(world.heap, 0)) != 0)
        wrong("at the end: support_contract.c:%d", line);
    stats = contract_stats(world.heap);
    size_t stay = stats.metadata_bytes + contract_cradle(world.heap);
    if (stats.committed_bytes != stay)
        wrong("%zu bytes stay beside records", stats.committed_bytes - stats.metadata_bytes);
    if (hak_heap_destroy(world.heap) != 0) wrong("destroy failed");
    for (size_t i = 0; i < world.heaps; i++) {
        if (hak_heap_check(world.more[i]) != 0) wrong("heap %zu is damaged", i);
        if (hak_heap_destroy(world.more[i]) != 0) wrong("destroy of heap %zu failed", i);
    }
    (void)hak_reserve_trim();
}

static void run_fault(void *arg)
{
    const fault_t *fault = arg;
    fake_os_use();
    fault->scenario->before();
    if (world.refused) wrong("something failed before anything was refused");
    long calls = fake_os_calls(fault->call);
    if (fault->k) fake_os_refuse(fault->call, fault->k, fault->times);
    fault->scenario->during();
    outcome->reached = fake_os_calls(fault->call) - calls >= fault->k;
    fake_os_allow(fault->call);
    prove_all_works();
    fake_os_restore();
    outcome->mappings = contract_mappings();
    outcome->address_space = address_space();
}

static child_result_t result;

static bool runs_well(const fault_t *fault)
{
    *outcome = (outcome_t){.reached = false};
    child_run(&result, run_fault, (void *)(uintptr_t)fault);
    if (result.status == 0 && result.signal == 0) return true;
    cr_log_error("%s, %s call %ld refused %s: status %d, signal %d: %s", fault->scenario->name,
                 call_names[fault->call], fault->k,
                 fault->times == FAKE_FOREVER ? "for ever" : "once", result.status, result.signal,
                 result.text);
    return false;
}

/*
 * No mapping stays that would not have stayed anyway. An unmap that is refused at destroy leaves
 * address space behind, as it must, and so does a move: the kernel may have unmapped the target
 * before it refused. Reservations that were refused are made of smaller ones. The slack is the
 * registry's tables, whose number follows the addresses that the kernel chose.
 */
static bool left_nothing(const fault_t *fault, const outcome_t *base)
{
    if (fault->call == FAKE_UNMAP || fault->call == FAKE_MOVE) return true;
    bool mappings = outcome->mappings <= base->mappings + 8;
    bool space =
        fault->call == FAKE_RESERVE || outcome->address_space <= base->address_space + 4 * HAK_MIB;
    if (mappings && space) return true;
    cr_log_error(
        "%s, %s call %ld refused %s: %zu mappings, %zu bytes of address space; %zu and %zu without",
        fault->scenario->name, call_names[fault->call], fault->k,
        fault->times == FAKE_FOREVER ? "for ever" : "once", outcome->mappings,
        outcome->address_space, base->mappings, base->address_space);
    return false;
}

static void sweep(fake_call_t call)
{
    unsigned runs = 0, failed = 0;
    size_t refusals = 0;
    for (size_t s = 0; s < CONTRACT_LENGTH(scenarios); s++) {
        fault_t none = {&scenarios[s], call, 0, 0};
        cr_assert(runs_well(&none), "%s fails with nothing refused", scenarios[s].name);
        outcome_t base = *outcome;
        for (int once = 0; once < 2; once++) {
            /* Where calls are many, the later ones are alike: every k up to 12 (2 where the run is
             * quick), then in growing steps. */
            for (long k = 1;;
                 k += k < (long)contract_work(12) ? 1 : k / (long)contract_work(16) + 1) {
                fault_t fault = {&scenarios[s], call, k, once ? 1 : FAKE_FOREVER};
                runs++;
                bool good = runs_well(&fault);
                failed += !good;
                if (!outcome->reached) break;
                refusals++;
                failed += good && !left_nothing(&fault, &base);
            }
        }
    }
    cr_log_info("%s: %u runs, %zu with refusals", call_names[call], runs, refusals);
    bool never = (call == FAKE_FENCE || call == FAKE_FENCE_REGISTER) && contract_is_locked();
    cr_assert(refusals > 0 || never, "no %s call was ever refused", call_names[call]);
    cr_assert(failed == 0, "%s: %u of %u runs failed", call_names[call], failed, runs);
}

/* The system's calls are the same by cpu_id and by mm_cid. The locked twin asks for no fence: the
 * build with asserts looks at that. */
static void leave_to_others(void)
{
    const char *mode = getenv("HAKHEAP_RSEQ");
    if (mode && (!HAK_DEBUG || strcmp(mode, "cpu") == 0))
        cr_skip_test("left to the run by the best mode");
}

static void share_outcome(void)
{
    outcome = mmap(NULL, HAK_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(outcome != MAP_FAILED);
}

/* No call of the library before the children: each of them is to meet a process that has nothing
 * yet. */
#define SWEEP(name, call)  \
    Test(fault, name)      \
    {                      \
        leave_to_others(); \
        share_outcome();   \
        sweep(call);       \
    }
SWEEP(reserve, FAKE_RESERVE)
SWEEP(commit, FAKE_COMMIT)
SWEEP(purge, FAKE_PURGE)
SWEEP(decommit, FAKE_DECOMMIT)
SWEEP(map, FAKE_MAP)
SWEEP(unmap, FAKE_UNMAP)
SWEEP(resize, FAKE_RESIZE)
SWEEP(move, FAKE_MOVE)
SWEEP(fence_register, FAKE_FENCE_REGISTER)
SWEEP(fence, FAKE_FENCE)

/* The sweep sees what it is for: a scenario whose blocks are damaged by a refusal is reported. */
static void do_damage(void)
{
    if (!take(3 * HAK_MIB)) memset(world.blocks[0], 0, 16);
}
static void with_one(void)
{
    with_heap();
    take(100);
}

Test(fault, the_sweep_can_fail)
{
    static const scenario_t damaged = {"damage", with_one, do_damage};
    share_outcome();
    fault_t none = {&damaged, FAKE_MAP, 0, 0}, fault = {&damaged, FAKE_MAP, 1, FAKE_FOREVER};
    child_run(&result, run_fault, &none);
    cr_assert(result.status == 0, "%s", result.text);
    child_run(&result, run_fault, &fault);
    cr_assert(result.status == 2 && strstr(result.text, "torn"), "status %d: %s", result.status,
              result.text);
}

/* ---- Real limits ---- */

typedef struct limit {
    size_t room, size;
} limit_t;

static void run_limited(void *arg)
{
    const limit_t *limit = arg;
    struct rlimit as;
    if (getrlimit(RLIMIT_AS, &as) != 0) wrong("getrlimit");
    as.rlim_cur = address_space() + limit->room;
    if (setrlimit(RLIMIT_AS, &as) != 0) wrong("setrlimit");
    create(&world.heap, NULL);
    if (!world.heap) {
        /* Too little even for records is an answer too, where the room is less than the smallest
         * reservation's. */
        if (limit->room >= 16 * HAK_MIB) wrong("no heap in %zu bytes", limit->room);
        return;
    }
    for (int round = 0; round < 3; round++) {
        size_t before = world.refused;
        while (world.count < MOST_BLOCKS && take(limit->size)) {
        }
        if (world.refused == before)
            wrong("%zu blocks of %zu bytes in %zu bytes", world.count, limit->size, limit->room);
        /* Large blocks have what the reservation for the others leaves; in the least room there may
         * be a SuperSlab for records and none for blocks. */
        if (limit->room >= 16 * HAK_MIB &&
            world.count * limit->size < limit->room / (limit->size > MID_MAX ? 10 : 4))
            wrong("only %zu blocks of %zu bytes in %zu bytes", world.count, limit->size,
                  limit->room);
        for (int again = 0; again < 3; again++) take(limit->size);
        prove_all();
        int found = hak_heap_check(world.heap);
        if (found != 0 && found != ENOMEM) wrong("check gave %d", found);
        while (world.count) give();
        (void)hak_heap_trim(world.heap, 0);
        found = hak_heap_check(world.heap);
        if (found != 0 && found != ENOMEM) wrong("check gave %d", found);
        hak_heap_stats_t stats = contract_stats(world.heap);
        if (stats.live_blocks || contract_sum(&stats) != stats.committed_bytes)
            wrong("the balance is off");
    }
    if (hak_heap_destroy(world.heap) != 0) wrong("destroy failed");
}

Test(fault, address_space_runs_out)
{
    if (CONTRACT_SANITIZED) cr_skip_test("the sanitizer's shadow is address space too");
    RUN_IN_ONE_MODE();
    static const size_t rooms[] = {HAK_MIB, 4 * HAK_MIB, 16 * HAK_MIB, 60 * HAK_MIB, 300 * HAK_MIB};
    static const size_t sizes[] = {30000, 300000, 3 * HAK_MIB};
    for (size_t r = 0; r < CONTRACT_LENGTH(rooms); r++)
        for (size_t s = 0; s < CONTRACT_LENGTH(sizes); s++) {
            if (sizes[s] * 8 > rooms[r] && rooms[r] >= 16 * HAK_MIB) continue;
            limit_t limit = {rooms[r], sizes[s]};
            child_run(&result, run_limited, &limit);
            cr_expect(result.status == 0 && result.signal == 0,
                      "%zu bytes, blocks of %zu: status %d, signal %d: %s", rooms[r], sizes[s],
                      result.status, result.signal, result.text);
        }
}
