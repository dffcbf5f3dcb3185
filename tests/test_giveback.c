/* giveback: what goes back to the system goes back for good: pages, commit charge, and the number
 * that a trim tells. What stale pointers into it are answered. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "hakheap.h"
#include "heap.h"
#include "registry.h"
#include "runs.h"
#include "support_child.h"
#include "support_contract.h"
#include "support_memory.h"
#include "support_os.h"

TestSuite(giveback, .timeout = 120);

/* Of /proc/self/status, in bytes. */
static size_t status(const char *name)
{
    char line[256];
    size_t kib = 0, length = strlen(name);
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, name, length) == 0) (void)sscanf(line + length, ": %zu", &kib);
    if (file) fclose(file);
    return kib * HAK_KIB;
}

static void fill(hak_heap_t *heap, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 4096) {
        char *ptr = hak_heap_malloc(heap, 4000);
        cr_assert(ptr != NULL);
        memset(ptr, 1, 4000);
    }
}

/* ---- How much stays ---- */

/* The kernel's table but for time, which passes where a test says so. */
static uint64_t more_ms;
static uint64_t moved_time(void) { return os_kernel.milliseconds() + more_ms; }
static os_table_t moved;

static void move_time(void)
{
    moved = os_kernel;
    moved.milliseconds = moved_time;
    os = &moved;
}

/* So much time passes, in which another heap misses now and then. */
static void work_elsewhere(unsigned ms)
{
    hak_heap_t *heap = contract_heap(0, "other");
    for (unsigned passed = 0; passed < ms; passed += 10) {
        more_ms += 10;
        for (size_t size = 16; size < 4096; size += 500)
            hak_heap_free(heap, hak_heap_malloc(heap, size));
        (void)hak_heap_flush(heap);
    }
    cr_assert(hak_heap_destroy(heap) == 0);
}

enum { OTHER_KEPT = (4 + 2 + 2) * HAK_MIB /* record pages, nursery, tables */ };

/* README, "What stays resident": a heap comes and goes, again and again. */
Test(giveback, what_destroyed_heaps_leave_stays_for_a_while_and_goes)
{
    enum { USED = 200 * HAK_MIB };
    if (CONTRACT_SANITIZED) cr_skip_test("resident memory is the sanitizer's");
    move_time();
    size_t before = contract_resident();
    for (int round = 0; round < 4; round++) {
        hak_heap_t *heap = contract_heap(round % CONTRACT_LEVELS, "round");
        fill(heap, USED);
        cr_assert(hak_heap_destroy(heap) == 0);
        size_t stays = contract_resident() - before;
        cr_assert(stays < USED / 15 * 16 + OTHER_KEPT, "round %d: %zu bytes", round, stays);
        work_elsewhere(2000);
        stays = contract_resident() - before;
        cr_assert(stays < 2 * HAK_MIB + OTHER_KEPT, "round %d: %zu bytes later", round, stays);
    }
    (void)hak_reserve_trim();
}

/* Time stands still, however slow the machine is. */
static uint64_t no_time(void) { return 1000; }
static void stop_time(void)
{
    moved = os_kernel;
    moved.milliseconds = no_time;
    os = &moved;
}

/* A heap that breathes touches the pages that it had: the kernel is asked for few. */
Test(giveback, a_wave_finds_the_pages_of_the_last_one)
{
    enum { USED = 64 * HAK_MIB, BLOCK = 4000, COUNT = USED / 4096 };
    static void *blocks[COUNT];
    struct rusage first, second;
    if (CONTRACT_SANITIZED) cr_skip_test("page faults are the sanitizer's");
    stop_time();
    hak_heap_t *heap = contract_heap(0, "wave");
    long faults[3];
    for (int wave = 0; wave < 3; wave++) {
        getrusage(RUSAGE_SELF, &first);
        for (size_t i = 0; i < COUNT; i++) {
            blocks[i] = hak_heap_malloc(heap, BLOCK);
            cr_assert(blocks[i]);
            memset(blocks[i], wave, BLOCK);
        }
        getrusage(RUSAGE_SELF, &second);
        faults[wave] = second.ru_minflt - first.ru_minflt;
        for (size_t i = 0; i < COUNT; i++) hak_heap_free(heap, blocks[i]);
        hak_heap_stats_t stats = contract_stats(heap);
        cr_assert(stats.live_blocks == 0);
    }
    cr_assert(faults[0] > USED / 4096);
    cr_assert(faults[2] < faults[0] / 4, "%ld, then %ld and %ld page faults", faults[0], faults[1],
              faults[2]);
    cr_assert(hak_heap_destroy(heap) == 0);
}

Test(giveback, the_process_keeps_no_more_than_its_limit)
{
    if (CONTRACT_SANITIZED) cr_skip_test("resident memory is the sanitizer's");
    static const size_t limits[] = {16 * HAK_MIB, 0, 100 * HAK_MIB};
    stop_time();
    size_t before = contract_resident();
    for (size_t i = 0; i < CONTRACT_LENGTH(limits); i++) {
        cr_assert(hak_reserve_set_limit(limits[i]) == 0);
        hak_heap_t *heap = contract_heap(0, "limited");
        fill(heap, 200 * HAK_MIB);
        cr_assert(hak_heap_destroy(heap) == 0);
        size_t stays = contract_resident() - before;
        cr_assert(stays < limits[i] + OTHER_KEPT, "%zu bytes of %zu", stays, limits[i]);
    }
    /* At once, too. */
    cr_assert(contract_resident() - before > 50 * HAK_MIB);
    cr_assert(hak_reserve_set_limit(0) == 0);
    cr_assert(contract_resident() - before < OTHER_KEPT);
}

/* What RLIMIT_DATA counts, and overcommit mode 2 with it: private memory that may be written. */
Test(giveback, the_charge_goes_back)
{
    if (CONTRACT_SANITIZED) cr_skip_test("the sanitizer maps memory of its own");
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "charge");
        cr_assert(hak_heap_malloc(heap, 100) != NULL);
        size_t before = status("VmData");
        fill(heap, 100 * HAK_MIB);
        cr_assert(status("VmData") >= before + 100 * HAK_MIB);
        cr_assert(hak_heap_destroy(heap) == 0);
        (void)hak_reserve_trim();
        size_t after = status("VmData");
        cr_assert(after <= before + HAK_MIB, "level %d: %zu bytes more than before", level,
                  after - before);
    }
}

/* Blocks of all sizes, all free: most of it goes by SuperSlabs that the trim itself empties. */
Test(giveback, a_trim_tells_what_it_returned)
{
    if (CONTRACT_SANITIZED) cr_skip_test("resident memory is the sanitizer's");
    enum { COUNT = 60000 };
    static char *blocks[COUNT];
    hak_heap_t *heap = contract_heap(0, "told");
    unsigned random = 1;
    for (int i = 0; i < COUNT; i++) {
        random = random * 1103515245u + 12345u;
        size_t size = 1 + (random >> 8) % 9000;
        cr_assert((blocks[i] = hak_heap_malloc(heap, size)) != NULL);
        memset(blocks[i], 1, size);
    }
    for (int i = 0; i < COUNT; i++) hak_heap_free(heap, blocks[i]);
    size_t before = contract_resident();
    size_t told = hak_heap_trim(heap, 0);
    size_t lost = before - contract_resident();
    size_t off = told > lost ? told - lost : lost - told;
    cr_assert(told > 50 * HAK_MIB && off <= lost / 100, "it says %zu bytes, the process lost %zu",
              told, lost);
    cr_assert(hak_heap_trim(heap, 0) == 0, "the second time");
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* Heaps that go while the kernel takes nothing: calls follow heaps, not their square. */
static long calls_of(size_t heaps)
{
    enum { MOST = 8000 };
    static hak_heap_t *heap[MOST];
    for (size_t i = 0; i < heaps; i++) {
        cr_assert((heap[i] = hak_heap_create(NULL)) != NULL);
        cr_assert(hak_heap_malloc(heap[i], 64) != NULL);
    }
    fake_os_use();
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    fake_os_refuse(FAKE_DECOMMIT, 1, FAKE_FOREVER);
    for (size_t i = 0; i < heaps; i++) cr_assert(hak_heap_destroy(heap[i]) == 0);
    long calls = fake_os_calls(FAKE_PURGE) + fake_os_calls(FAKE_DECOMMIT);
    fake_os_restore();
    (void)hak_reserve_trim();
    return calls;
}

Test(giveback, destroy_follows_heaps_where_nothing_is_taken_back)
{
    long few = calls_of(2000), many = calls_of(8000);
    cr_assert(many <= 8 * few + 1000 && many < 8000, "%ld calls for 2000 heaps, %ld for 8000", few,
              many);
}

/* ---- Stale pointers ---- */

enum { COUNT = 2000, BYTES = 4096 };

typedef struct scene {
    int level, way, call;
} scene_t;

enum { FREED, RESET, DESTROYED, WAYS };
enum { BY_HEAP, BY_FREE, BY_SIZED, BY_REALLOC, CALLS };

static hak_heap_t *stale_heap;
static char *stale[COUNT];

/* Blocks of SuperSlabs that nobody has any more, and that nobody can read. */
static bool make_stale(int level, int way)
{
    stale_heap = contract_heap(level, "stale");
    for (int i = 0; i < COUNT; i++) {
        if (!(stale[i] = hak_heap_malloc(stale_heap, BYTES))) return false;
        memset(stale[i], 1, BYTES);
    }
    if (way == FREED)
        for (int i = 0; i < COUNT; i++) hak_heap_free(stale_heap, stale[i]);
    if (way == FREED) (void)hak_heap_trim(stale_heap, 0);
    if (way == RESET && hak_heap_reset(stale_heap) != 0) return false;
    if (way == DESTROYED && hak_heap_destroy(stale_heap) != 0) return false;
    (void)hak_reserve_trim();
    return !memory_is_readable(stale[COUNT - 1]);
}

static void free_stale(void *arg)
{
    const scene_t *scene = arg;
    if (!make_stale(scene->level, scene->way)) _exit(90);
    char *ptr = stale[COUNT - 1];
    /* A destroyed heap is none to free to. */
    hak_heap_t *heap = scene->way == DESTROYED ? contract_heap(scene->level, "next") : stale_heap;
    if (scene->call == BY_HEAP) hak_heap_free(heap, ptr);
    if (scene->call == BY_FREE) hak_free(ptr);
    if (scene->call == BY_SIZED) hak_heap_free_sized(heap, ptr, BYTES);
    if (scene->call == BY_REALLOC && hak_heap_realloc(heap, ptr, 10)) _exit(92);
    _exit(91);
}

Test(giveback, a_stale_pointer_into_what_is_gone_is_named)
{
    static child_result_t result;
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (int way = 0; way < WAYS; way++)
            for (int call = 0; call < CALLS; call++) {
                scene_t scene = {level, way, call};
                child_run(&result, free_stale, &scene);
                const char *operation = call == BY_REALLOC               ? "realloc"
                                        : call == BY_SIZED && level == 1 ? "free_sized"
                                                                         : "free";
                cr_expect(
                    child_aborted(&result, way == FREED ? "DOUBLE_FREE" : "DESTROYED", operation),
                    "level %d, way %d, call %d: signal %d, status %d: %s", level, way, call,
                    result.signal, result.status, result.text);
            }
}

Test(giveback, what_is_gone_belongs_to_nobody)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (int way = 0; way < WAYS; way++) {
            cr_assert(make_stale(level, way));
            for (int i = 0; i < COUNT; i++) {
                /* The first few came from the nursery. */
                if (memory_is_readable(stale[i])) continue;
                cr_assert(hak_heap_of(stale[i]) == NULL && hak_usable_size(stale[i] + i) == 0);
            }
            if (way == DESTROYED) continue;
            cr_assert(hak_heap_check(stale_heap) == 0);
            /* It serves again, zeroed, to the same heap. */
            for (int i = 0; i < COUNT; i++)
                cr_assert((stale[i] = hak_heap_calloc(stale_heap, 1, BYTES)) != NULL &&
                          contract_is_zero(stale[i], BYTES));
            cr_assert(contract_unsound(stale_heap, COUNT) == 0 &&
                      hak_heap_destroy(stale_heap) == 0);
        }
}

/* A run that went back to its SuperSlab, which stays: in each of its granules. */
Test(giveback, a_run_that_went_back_belongs_to_nobody)
{
    static const size_t sizes[] = {100000, 4000};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "runs");
        cr_assert(hak_heap_malloc(heap, HAK_MIB) != NULL); /* from here on it takes SuperSlabs */
        for (size_t i = 0; i < CONTRACT_LENGTH(sizes); i++) {
            char *other = hak_heap_malloc(heap, 16), *ptr = hak_heap_malloc(heap, sizes[i]);
            cr_assert(other && ptr && hak_heap_of(ptr) == heap);
            hak_heap_free(heap, ptr);
            (void)hak_heap_flush(heap);
            for (size_t at = 0; at < sizes[i]; at += 2000)
                cr_assert(hak_heap_of(ptr + at) == NULL && hak_usable_size(ptr + at) == 0,
                          "%zu bytes: byte %zu", sizes[i], at);
        }
        cr_assert(heap->nursery_count == 0, "a heap that owns memory takes none of the nursery");
        cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
    }
}

Test(giveback, what_a_shrunk_block_leaves_is_nobodys_and_not_zero)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "shrunk");
        cr_assert(hak_heap_malloc(heap, HAK_MIB) != NULL); /* from here on it takes SuperSlabs */
        char *ptr = hak_heap_malloc(heap, 700000);
        cr_assert(ptr != NULL);
        memset(ptr, 0xff, 700000);
        cr_assert(hak_heap_realloc(heap, ptr, 40000) == ptr);
        for (size_t at = 3 * GRANULE; at < 700000; at += GRANULE)
            cr_assert(hak_heap_of(ptr + at) == NULL, "byte %zu is a block's", at);
        char *tail = hak_heap_calloc(heap, 1, 300000);
        cr_assert(tail > ptr && tail < ptr + 700000, "the tail was not given back");
        cr_assert(contract_is_zero(tail, 300000));
        cr_assert(contract_unsound(heap, 3) == 0 && hak_heap_destroy(heap) == 0);
    }
}

/* ---- Large blocks ---- */

/* A TiB that the kernel grants without a promise, and takes back: no table of it stays. */
Test(giveback, a_huge_block_leaves_no_tables)
{
    if (CONTRACT_SANITIZED) cr_skip_test("resident memory is the sanitizer's");
    hak_heap_t *heap = contract_heap(0, "huge");
    cr_assert(hak_heap_malloc(heap, 100) != NULL);
    for (int round = 0; round < 3; round++) {
        size_t before = contract_resident();
        char *ptr = hak_heap_malloc(heap, (size_t)1 << 40);
        if (!ptr) cr_skip_test("the kernel does not grant a TiB");
        ptr[(size_t)1 << 39] = 1;
        cr_assert(hak_heap_of(ptr + ((size_t)1 << 39)) == heap);
        cr_assert(contract_resident() >= before + HAK_MIB, "a page for each GiB, at least");
        hak_heap_free(heap, ptr);
        size_t after = contract_resident();
        cr_assert(after <= before + 256 * HAK_KIB, "round %d: %zu bytes stay", round,
                  after - before);
        cr_assert(hak_heap_of(ptr) == NULL && hak_heap_of(ptr + ((size_t)1 << 39)) == NULL);
    }
    cr_assert(hak_heap_destroy(heap) == 0);
}

static void free_huge_twice(void *arg)
{
    (void)arg;
    hak_heap_t *heap = contract_heap(0, "huge");
    void *ptr = hak_heap_malloc(heap, 5 * HAK_GIB);
    if (!ptr) _exit(93);
    hak_heap_free(heap, ptr);
    hak_heap_free(heap, ptr);
}

Test(giveback, a_second_free_of_a_huge_block_is_named)
{
    static child_result_t result;
    child_run(&result, free_huge_twice, NULL);
    if (result.status == 93) cr_skip_test("the kernel does not grant 5 GiB");
    cr_assert(child_aborted(&result, "DOUBLE_FREE", "free"), "status %d: %s", result.status,
              result.text);
}

/* Where the kernel does not unmap it, it is whole again, tables and all; and where it does not purge
 * a table, the table is emptied by hand. */
Test(giveback, a_huge_block_survives_refusals)
{
    hak_heap_t *heap = contract_heap(0, "huge");
    char *ptr = hak_heap_malloc(heap, 3 * HAK_GIB);
    if (!ptr) cr_skip_test("the kernel does not grant 3 GiB");
    fake_os_use();
    fake_os_refuse(FAKE_UNMAP, 1, FAKE_FOREVER);
    hak_heap_free(heap, ptr);
    cr_assert(contract_stats(heap).large_cached_bytes == 3 * HAK_GIB);
    fake_os_allow(FAKE_UNMAP);
    cr_assert(hak_heap_check(heap) == 0, "each slot of it names it");
    fake_os_refuse(FAKE_PURGE, 1, FAKE_FOREVER);
    cr_assert(hak_heap_trim(heap, 0) == 3 * HAK_GIB);
    fake_os_restore();
    for (size_t at = SUPERSLAB; at < 3 * HAK_GIB; at += SUPERSLAB)
        cr_assert(registry_range(ptr + at) == NULL, "slot %zu", at / SUPERSLAB);
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- Room in what the heap itself keeps ---- */

typedef struct crowd {
    size_t size;
    bool grows; /* by realloc */
} crowd_t;

/* A process that may have 64 MiB of data, 40 of them in freed mappings that the heap keeps; then
 * 40 MiB are asked for. */
static void crowd_out(void *arg)
{
    enum { MAPPINGS = 10 };
    const crowd_t *crowd = arg;
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.large_cache_bytes = 100 * HAK_MIB;
    hak_heap_t *heap = hak_heap_create(&config);
    char *kept = hak_heap_malloc(heap, 2 * HAK_MIB);
    struct rlimit limit = {status("VmData") + 64 * HAK_MIB, RLIM_INFINITY};
    if (!kept || setrlimit(RLIMIT_DATA, &limit) != 0) _exit(80);
    void *blocks[MAPPINGS];
    for (int i = 0; i < MAPPINGS; i++) blocks[i] = hak_heap_malloc(heap, 4 * HAK_MIB);
    for (int i = 0; i < MAPPINGS; i++) hak_heap_free(heap, blocks[i]);
    if (contract_stats(heap).large_cached_bytes != 40 * HAK_MIB) _exit(81);
    (void)!hak_heap_malloc(NULL, 1);
    if (crowd->grows) {
        memset(kept, 7, 2 * HAK_MIB);
        kept = hak_heap_realloc(heap, kept, 40 * HAK_MIB);
        if (!kept || kept[2 * HAK_MIB - 1] != 7) _exit(82);
    }
    for (size_t bytes = 0; bytes < 40 * HAK_MIB && !crowd->grows; bytes += crowd->size)
        if (!hak_heap_malloc(heap, crowd->size)) _exit(83);
    if (hak_last_error() != HAK_ERROR_ARGUMENT) _exit(84);
    /* What is left of it beside 42 MiB is within the limit. */
    if (contract_stats(heap).large_cached_bytes > 22 * HAK_MIB) _exit(85);
    /* And where there is none, the error is what was refused. */
    if (hak_heap_malloc(heap, 60 * HAK_MIB) || hak_last_error() != HAK_ERROR_COMMIT) _exit(86);
    if (hak_heap_check(heap) != 0 || hak_heap_destroy(heap) != 0) _exit(87);
}

Test(giveback, a_heap_gives_its_cache_before_it_gives_up)
{
    if (CONTRACT_SANITIZED) cr_skip_test("the sanitizer maps memory of its own");
    static child_result_t result;
    static const crowd_t crowds[] = {
        {1000, false}, {200 * HAK_KIB, false}, {50 * HAK_MIB, false}, {0, true}};
    for (size_t i = 0; i < CONTRACT_LENGTH(crowds); i++) {
        crowd_t crowd = crowds[i];
        child_run(&result, crowd_out, &crowd);
        cr_expect(result.status == 0 && result.signal == 0, "row %zu: status %d, signal %d: %s", i,
                  result.status, result.signal, result.text);
    }
}

/* ---- A process that locks what it maps ---- */

/* As a plain user who may lock 5 MiB more than the program has: two SuperSlabs, a table of half a MiB,
 * and little else. */
static void live_locked(void *arg)
{
    (void)arg;
    if (mlockall(MCL_FUTURE) != 0) _exit(70);
    rlim_t most = status("VmLck") + 5 * HAK_MIB;
    struct rlimit limit = {most, most};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) _exit(70);
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) _exit(70);
    hak_heap_t *heap = hak_heap_create(NULL);
    if (!heap) _exit(71);
    char *ptr = hak_heap_malloc(heap, 100);
    if (!ptr) _exit(72);
    memset(ptr, 1, 100);
    hak_heap_free(heap, ptr);
    if (hak_heap_destroy(heap) != 0) _exit(73);
}

Test(giveback, a_plain_user_who_locks_all_gets_a_heap)
{
    if (CONTRACT_SANITIZED) cr_skip_test("the sanitizer's shadow cannot be locked");
    static child_result_t result;
    child_run(&result, live_locked, NULL);
    if (result.status == 70) cr_skip_test("nothing may be locked here");
    cr_assert(result.status == 0 && result.signal == 0, "status %d, signal %d: %s", result.status,
              result.signal, result.text);
}
