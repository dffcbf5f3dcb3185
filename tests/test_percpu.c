/* percpu: the five operations in every mode, stops under load, areas, threads without rseq. */
#define _GNU_SOURCE
#include "percpu.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__GLIBC__) && __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#define HAVE_LIBC_RSEQ 1
#else
#define HAVE_LIBC_RSEQ 0
#endif

#include "heap.h"
#include "os.h"
#include "support_contract.h"
#include "support_os.h"
#include "support_random.h"
#include "support_realtime.h"
#include "support_run.h"

TestSuite(percpu, .init = contract_slabs_only, .timeout = 600);

/* Every mode that this machine has: what was wished for may be refused, then the mode is tested
 * twice. */
static const char *const wishes[] = {NULL, "cpu", "0"};
enum { WISHES = sizeof wishes / sizeof wishes[0] };

enum { CLASS = 5, OTHER = 6, MANY = 256 };
static const size_t HOT = PERCPU_HOT(CLASS);
static const size_t SPARE = PERCPU_SPARE(CLASS);

static union {
    percpu_t of_the_test;
    char bytes[sizeof(percpu_t) + (2 * MANY + 1) * sizeof(area_t *)];
} storage;
static percpu_t *const percpu = &storage.of_the_test;
static area_t areas[MANY];

static unsigned processors(void)
{
    long count = sysconf(_SC_NPROCESSORS_CONF);
    cr_assert(count > 0 && count <= MANY);
    return (unsigned)count;
}

static void begin(const char *wish)
{
    percpu_start_process(wish);
    cr_assert(percpu_slots >= processors() && percpu_slots >= PERCPU_FEWEST);
    percpu_slots = MANY;
    cr_assert(percpu_bytes() == sizeof storage);
    memset(areas, 0, sizeof areas);
    percpu_init(percpu);
}

static const class_bits_t all_classes = {{UINT64_MAX, UINT64_MAX >> (128 - CLASS_COUNT)}};

/* One area for each processor, its limits set. */
static unsigned open_areas(uint64_t limit)
{
    unsigned count = processors();
    for (unsigned i = 0; i < count; i++) {
        for (unsigned cls = 0; cls < CLASS_COUNT; cls++)
            store_relaxed(&areas[i].hot[cls].limit, limit);
        percpu_adopt(percpu, i, &areas[i]);
    }
    return count;
}

/* The same area for every processor: wherever the one thread of a test runs, it meets the same
 * words. Not to be halted. */
static area_t *open_one(uint64_t limit)
{
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) store_relaxed(&areas[0].hot[cls].limit, limit);
    for (unsigned i = 0; i < processors(); i++) percpu_adopt(percpu, i, &areas[0]);
    return &areas[0];
}

static struct {
    block_t block;
    char rest[16];
} blocks[512] __attribute__((aligned(16)));

/* Whether a section does what it is to do. One that is aborted misses: then it is run again. */
#define SOON(test)                                              \
    ({                                                          \
        bool done = false;                                      \
        for (int i_ = 0; i_ < 16 && !done; i_++) done = (test); \
        done;                                                   \
    })

static const char *name(void) { return percpu_mode_name(percpu_mode); }

/* ---- Tags ---- */

/* A push that looks at homes: the tag has to be the magazine's, in all its bits; a stopped area
 * turns everything away. */
Test(percpu, a_tag_lets_its_blocks_in)
{
    begin(NULL);
    if (percpu_mode == PERCPU_LOCKED) cr_skip_test("the twin looks at no tag");
    area_t *area = open_one(4);
    static const uint16_t others[] = {0, 1, 0x8000, 0x0100, 0xfffe};
    uint16_t tag = registry_tag(3, CLASS);
    percpu_tag(area, CLASS, tag);
    for (unsigned i = 0; i < sizeof others / sizeof others[0]; i++) {
        uint16_t other = (uint16_t)(others[i] ? tag ^ others[i] : 0);
        cr_assert(SOON(section_push_home(percpu, HOT, &blocks[0], chain_address(&blocks[0]),
                                         other) == PUSH_AWAY));
        cr_assert(SOON(section_push_home_sealed(percpu, HOT, &blocks[0], chain_address(&blocks[0]),
                                                other, 77) == PUSH_AWAY));
    }
    cr_assert(SOON(section_push_home(percpu, HOT, &blocks[0], chain_address(&blocks[0]), tag) ==
                   PUSH_DONE));
    cr_assert(SOON(section_push_home_sealed(percpu, HOT, &blocks[1], chain_address(&blocks[1]), tag,
                                            77 ^ (uintptr_t)&blocks[1]) == PUSH_DONE));
    chain_t link = block_link(&blocks[1].block, 77);
    cr_assert(block_is_sealed(&blocks[1].block, link, 77));
    cr_assert(chain_count(link) == 1 && chain_block(link) == &blocks[0].block);
    store_relaxed(&area->hot[CLASS].limit, 2);
    cr_assert(SOON(section_push_home(percpu, HOT, &blocks[2], chain_address(&blocks[2]), tag) ==
                   PUSH_MISSED));
    store_relaxed(&percpu->count, 0u);
    cr_assert(SOON(section_push_home(percpu, HOT, &blocks[2], chain_address(&blocks[2]), tag) ==
                   PUSH_MISSED));
}

/* ---- Modes ---- */

Test(percpu, modes_have_names)
{
    cr_assert(strcmp(percpu_mode_name(PERCPU_LOCKED), "locked") == 0);
    cr_assert(strcmp(percpu_mode_name(PERCPU_CPU_ID), "cpu_id") == 0);
    cr_assert(strcmp(percpu_mode_name(PERCPU_MM_CID), "mm_cid") == 0);
}

Test(percpu, wishes_choose_the_mode)
{
    percpu_start_process(NULL);
    percpu_mode_t best = percpu_mode;
    cr_assert(PERCPU_SECTIONS || best == PERCPU_LOCKED);
    static const char *const locked[] = {"0", "locked"};
    for (unsigned i = 0; i < 2; i++) {
        percpu_start_process(locked[i]);
        cr_assert(percpu_mode == PERCPU_LOCKED, "%s: %s", locked[i], name());
    }
    percpu_start_process("cpu");
    cr_assert(percpu_mode == (best == PERCPU_LOCKED ? PERCPU_LOCKED : PERCPU_CPU_ID), "%s", name());
    if (percpu_mode != PERCPU_LOCKED)
        cr_assert(percpu_index_offset == percpu_rseq_offset + RSEQ_CPU_ID);
    percpu_start_process("mm_cid");
    cr_assert(percpu_mode == best);
    if (best == PERCPU_MM_CID) {
        cr_assert(percpu_index_offset == percpu_rseq_offset + RSEQ_MM_CID);
        cr_assert(os_rseq_feature_size() >= RSEQ_MM_CID + 4);
    }
    if (best == PERCPU_CPU_ID) cr_assert(os_rseq_feature_size() < RSEQ_MM_CID + 4);
}

Test(percpu, without_the_right_to_fence_all_is_locked)
{
    fake_os_use();
    fake_os_refuse(FAKE_FENCE_REGISTER, 1, FAKE_FOREVER);
    percpu_start_process(NULL);
    cr_assert(percpu_mode == PERCPU_LOCKED);
    percpu_start_process("cpu");
    cr_assert(percpu_mode == PERCPU_LOCKED);
    fake_os_restore();
}

Test(percpu, the_index_is_a_processor)
{
    for (unsigned w = 0; w < WISHES; w++) {
        percpu_start_process(wishes[w]);
        for (unsigned i = 0; i < 1000; i++) {
            int index = percpu_index();
            cr_assert(index >= 0 && index < (int)processors(), "%s: %d", name(), index);
        }
    }
}

/* ---- The operations ---- */

static void push_and_pop(uint64_t key)
{
    enum { LIMIT = 3 };
    area_t *area = open_one(LIMIT);
    block_t *block;
    chain_t link, before = 0;
    for (unsigned i = 0; i < LIMIT; i++) {
        cr_assert(SOON(percpu_push(percpu, HOT, &blocks[i], key)), "%s: push %u", name(), i);
        chain_t word = load_relaxed(&area->hot[CLASS].word);
        cr_assert(chain_block(word) == &blocks[i].block && chain_count(word) == i + 1,
                  "%s: push %u", name(), i);
        cr_assert(block_link(&blocks[i].block, key) == before);
        if (key)
            cr_assert(block_is_sealed(&blocks[i].block, before, key), "%s: push %u", name(), i);
        else cr_assert(blocks[i].block.word[1] == 99, "%s: a FAST push writes one word", name());
        before = word;
    }
    for (unsigned i = 0; i < 10; i++)
        cr_assert(!percpu_push(percpu, HOT, &blocks[LIMIT], key), "%s: more than the limit",
                  name());
    cr_assert(load_relaxed(&area->hot[CLASS].word) == before);

    for (unsigned i = LIMIT; i-- > 0;) {
        cr_assert(SOON((block = percpu_pop(percpu, HOT, key, &link)) != NULL), "%s: pop %u", name(),
                  i);
        cr_assert(block == &blocks[i].block && link == block_link(&blocks[i].block, key),
                  "%s: pop %u", name(), i);
        cr_assert(load_relaxed(&area->hot[CLASS].word) == link);
    }
    cr_assert((block = percpu_pop(percpu, HOT, key, &link)) == NULL, "%s: empty", name());
    cr_assert(load_relaxed(&area->hot[CLASS].word) == 0);
}

Test(percpu, push_and_pop_are_a_bounded_stack)
{
    for (unsigned w = 0; w < WISHES; w++) {
        for (unsigned i = 0; i < 8; i++) blocks[i].block.word[1] = 99;
        begin(wishes[w]);
        push_and_pop(0);
        begin(wishes[w]);
        push_and_pop(0x5555aaaa12345679ull);
    }
}

Test(percpu, a_magazine_holds_as_many_as_its_limit_says)
{
    static block_t many[CHAIN_MAX] __attribute__((aligned(16)));
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        area_t *area = open_one(CHAIN_MAX);
        for (unsigned i = 0; i < CHAIN_MAX; i++)
            cr_assert(SOON(percpu_push(percpu, HOT, &many[i], 0)), "%s: push %u", name(), i);
        cr_assert(!percpu_push(percpu, HOT, &blocks[0], 0), "%s", name());
        chain_t word = load_relaxed(&area->hot[CLASS].word);
        cr_assert(chain_count(word) == CHAIN_MAX && chain_block(word) == &many[CHAIN_MAX - 1], "%s",
                  name());
        block_t *block;
        chain_t link;
        for (unsigned i = CHAIN_MAX; i-- > 0;)
            cr_assert(
                SOON((block = percpu_pop(percpu, HOT, 0, &link)) != NULL && block == &many[i]),
                "%s: pop %u", name(), i);
    }
}

/* Every other word of the area stays as it was. */
Test(percpu, operations_touch_one_word)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        area_t *area = open_one(9);
        cr_assert(SOON(percpu_push(percpu, HOT, &blocks[0], 0)) &&
                  SOON(percpu_push(percpu, PERCPU_HOT(OTHER), &blocks[1], 0)));
        chain_t hot = load_relaxed(&area->hot[CLASS].word),
                other = load_relaxed(&area->hot[OTHER].word);
        cr_assert(SOON(percpu_install(percpu, CLASS, SPARE, block_push(0, &blocks[2], 0))));
        for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
            chain_t wanted = cls == CLASS ? hot : cls == OTHER ? other : 0;
            cr_assert(load_relaxed(&area->hot[cls].word) == wanted, "%s: class %u", name(), cls);
            cr_assert(load_relaxed(&area->hot[cls].limit) == 9, "%s: class %u", name(), cls);
            cr_assert((load_relaxed(&area->spare[cls]) != 0) == (cls == CLASS), "%s: class %u",
                      name(), cls);
        }
        cr_assert(load_relaxed(&area->busy) == 0, "%s: nobody is inside", name());
    }
}

Test(percpu, chains_are_taken_and_installed_whole)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        area_t *area = open_one(7);
        chain_t chain = 0;
        for (unsigned i = 0; i < 7; i++) chain = block_push(chain, &blocks[i], 0);
        chain_t another = block_push(0, &blocks[9], 0);
        size_t places[2] = {HOT, SPARE};
        for (unsigned p = 0; p < 2; p++) {
            cr_assert(percpu_take(percpu, places[p]) == 0, "%s: empty", name());
            cr_assert(SOON(percpu_install(percpu, CLASS, places[p], chain)), "%s", name());
            cr_assert(!percpu_install(percpu, CLASS, places[p], another), "%s: it is not empty",
                      name());
            cr_assert(SOON(percpu_take(percpu, places[p]) == chain), "%s", name());
            cr_assert(percpu_take(percpu, places[p]) == 0, "%s: taken twice", name());
            /* More than the limit allows, which is 0 where the class does not run. */
            store_relaxed(&area->hot[CLASS].limit, 6);
            cr_assert(!percpu_install(percpu, CLASS, places[p], chain), "%s: limit 6", name());
            store_relaxed(&area->hot[CLASS].limit, 0);
            cr_assert(!percpu_install(percpu, CLASS, places[p], chain), "%s: limit 0", name());
            store_relaxed(&area->hot[CLASS].limit, 7);
        }
        cr_assert(percpu_is_empty(percpu, &all_classes, 0, CLASS_COUNT));
    }
}

static void must_miss(const char *what)
{
    chain_t link;
    chain_t chain = block_push(0, &blocks[1], 0);
    for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
        cr_assert(percpu_pop(percpu, PERCPU_HOT(cls), 0, &link) == NULL, "%s, %s: pop", name(),
                  what);
        cr_assert(!percpu_push(percpu, PERCPU_HOT(cls), &blocks[0], 0), "%s, %s: push", name(),
                  what);
        cr_assert(!percpu_push(percpu, PERCPU_HOT(cls), &blocks[0], 77), "%s, %s: sealed push",
                  name(), what);
        cr_assert(percpu_take(percpu, PERCPU_HOT(cls)) == 0, "%s, %s: take", name(), what);
        cr_assert(percpu_take(percpu, PERCPU_SPARE(cls)) == 0, "%s, %s: take", name(), what);
        cr_assert(!percpu_install(percpu, cls, PERCPU_HOT(cls), chain), "%s, %s: install", name(),
                  what);
        cr_assert(!percpu_install(percpu, cls, PERCPU_SPARE(cls), chain), "%s, %s: install", name(),
                  what);
    }
}

/* An area of zeros is empty and full at once, and beyond the table there is nothing. */
Test(percpu, where_there_is_no_area_all_misses)
{
    static const area_t zeros;
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        must_miss("nothing made");
        cr_assert(memcmp(&zero_area, &zeros, sizeof zeros) == 0);

        begin(wishes[w]);
        open_one(5);
        cr_assert(SOON(percpu_push(percpu, HOT, &blocks[7], 0)), "%s: a running area serves",
                  name());
        percpu_close(percpu);
        must_miss("closed");

        begin(wishes[w]);
        area_t *area = open_one(5);
        cr_assert(SOON(percpu_push(percpu, HOT, &blocks[7], 0)));
        store_relaxed(&percpu->count, 0u);
        store_relaxed(&percpu->slots, 0u);
        must_miss("an index beyond the table");
        cr_assert(chain_count(load_relaxed(&area->hot[CLASS].word)) == 1);
    }
}

/* ---- Areas ---- */

Test(percpu, each_index_has_its_area)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        for (unsigned i = 0; i < MANY; i += 3) percpu_adopt(percpu, i, &areas[i]);
        for (unsigned i = 0; i < MANY + 70; i++) {
            area_t *wanted = i < MANY && i % 3 == 0 ? &areas[i] : NULL;
            cr_assert(percpu_area(percpu, i) == wanted, "%s: index %u", name(), i);
            cr_assert(percpu_running(percpu, i) == wanted, "%s: index %u", name(), i);
        }
        percpu_close(percpu);
        cr_assert(percpu_running(percpu, 0) == NULL, "%s: closed", name());
    }
}

/* A CPU that was not there when the process began has no slot. */
Test(percpu, an_index_beyond_the_slots_is_none)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        cr_assert(percpu_index() >= 0, "%s", name());
        *percpu_idle(percpu) = &areas[0]; /* what lies behind the areas */
        cr_assert(percpu_area(percpu, percpu_slots) == NULL &&
                  percpu_running(percpu, percpu_slots) == NULL);
        percpu_slots = 0;
        cr_assert(percpu_index() == PERCPU_NONE, "%s", name());
    }
}

Test(percpu, halted_areas_miss_until_restarted)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        unsigned count = open_areas(4);
        percpu_halt(percpu);
        cr_assert(percpu_fence());
        must_miss("halted");
        for (unsigned i = 0; i < count; i++) {
            cr_assert(percpu_running(percpu, i) == NULL && percpu_area(percpu, i) == &areas[i]);
            percpu_restart(percpu, i);
            cr_assert(percpu_running(percpu, i) == &areas[i]);
        }
        percpu_restart(percpu, count); /* nothing there */
        cr_assert(SOON(percpu_push(percpu, HOT, &blocks[0], 0)), "%s", name());
        cr_assert(!percpu_is_empty(percpu, &all_classes, 0, CLASS_COUNT));
    }
}

Test(percpu, a_refused_fence_is_told)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        open_areas(4);
        fake_os_use();
        fake_os_refuse(FAKE_FENCE, 1, 1);
        percpu_halt(percpu);
        cr_assert(percpu_fence() == (percpu_mode == PERCPU_LOCKED), "%s", name());
        cr_assert(fake_os_calls(FAKE_FENCE) == (percpu_mode != PERCPU_LOCKED));
        percpu_restart_all(percpu);
        fake_os_restore();
        cr_assert(SOON(percpu_push(percpu, HOT, &blocks[0], 0)), "%s: it runs again", name());
    }
}

Test(percpu, a_retired_area_serves_another_index)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        percpu_adopt(percpu, 0, &areas[0]);
        percpu_adopt(percpu, 2, &areas[2]);
        store_relaxed(&areas[0].spare[OTHER], block_push(0, &blocks[0], 0));
        percpu_halt(percpu);
        cr_assert(percpu_fence());
        percpu_retire(percpu, 0);
        percpu_retire(percpu, 1); /* nothing there */
        percpu_retire(percpu, 2);
        cr_assert(percpu_area(percpu, 0) == NULL && percpu_running(percpu, 0) == NULL);
        cr_assert(*percpu_idle(percpu) == &areas[2] && areas[2].next == &areas[0], "%s", name());
        percpu_restart_all(percpu);
        cr_assert(percpu_running(percpu, 0) == NULL && percpu_running(percpu, 2) == NULL);

        percpu_adopt(percpu, 9, &areas[0]);
        cr_assert(percpu_running(percpu, 9) == &areas[0] && percpu_area(percpu, 0) == NULL);
        cr_assert(chain_block(load_relaxed(&areas[0].spare[OTHER])) == &blocks[0].block);
        cr_assert(load_relaxed(&areas[0].busy) == 0 && load_relaxed(&areas[2].busy) == 0,
                  "%s: nobody is inside", name());
    }
}

Test(percpu, emptiness_sees_every_word)
{
    begin("0");
    unsigned count = open_areas(4);
    cr_assert(percpu_is_empty(percpu, &all_classes, 0, CLASS_COUNT));
    for (unsigned i = 0; i < count; i++) {
        for (unsigned cls = 0; cls < CLASS_COUNT; cls++) {
            store_relaxed(&areas[i].hot[cls].word, 1);
            cr_assert(!percpu_is_empty(percpu, &all_classes, 0, CLASS_COUNT), "area %u, hot %u", i,
                      cls);
            store_relaxed(&areas[i].hot[cls].word, 0);
            store_relaxed(&areas[i].spare[cls], 1);
            cr_assert(!percpu_is_empty(percpu, &all_classes, 0, CLASS_COUNT), "area %u, spare %u",
                      i, cls);
            store_relaxed(&areas[i].spare[cls], 0);
        }
    }
    cr_assert(percpu_is_empty(percpu, &all_classes, 0, CLASS_COUNT));
}

/* In the twin, whoever finds an area busy goes without, and never waits. */
Test(percpu, a_busy_area_is_passed_by)
{
    begin("0");
    area_t *area = open_one(4);
    cr_assert(SOON(percpu_push(percpu, HOT, &blocks[0], 0)));
    store_relaxed(&area->busy, 1u);
    must_miss("busy");
    store_relaxed(&area->busy, 0u);
    block_t *block;
    chain_t link;
    cr_assert(
        SOON((block = percpu_pop(percpu, HOT, 0, &link)) != NULL && block == &blocks[0].block));
}

static void hold_area(void) { store_relaxed(&areas[0].busy, 1u); }
static void leave_area(void) { store_release(&areas[0].busy, 0u); }
static void halt(void) { percpu_halt(percpu); }

/* A halt of the twin sleeps while it waits for a thread that gets no CPU before. */
Test(percpu, a_halt_lets_lower_threads_run)
{
    begin("0");
    open_areas(4);
    double took = realtime_wait(hold_area, leave_area, halt);
    if (took < 0) cr_skip_test("no real-time priority here");
    cr_assert(took < 0.4, "%.3f s of CPU time", took);
    percpu_restart_all(percpu);
    cr_assert(load_relaxed(&areas[0].busy) == 0);
}

/* ---- Stops under load ---- */

/* BURST stops follow each other while the others run, then they get time to fetch what was
 * stolen. */
enum { THREADS = 3, EACH = 64, ALL = THREADS * EACH, STOPS = 60, BURST = 100 };
static const uint64_t KEYS[] = {0, 0x7777333312345671ull};

/* Blocks in somebody's hands. A block that is there twice must not make the test itself write
 * beyond an end. */
typedef struct pool {
    unsigned count;
    block_t *block[2 * ALL];
} pool_t;

/* Counters are each thread's own, so that nothing but the areas brings the threads together. */
typedef struct worker {
    pthread_t thread;
    unsigned number;
    pool_t own;
    _Atomic unsigned pushes, pops, takes, installs, broken;
} __attribute__((aligned(128))) worker_t;

static struct {
    uint64_t key;
    _Atomic bool end;
    pthread_mutex_t mutex; /* of returned */
    pool_t returned;       /* what stops have stolen; the threads use it again */
    unsigned broken;
    worker_t worker[THREADS];
} load;

static block_t shared_blocks[ALL] __attribute__((aligned(64)));

static void count(_Atomic unsigned *counter) { store_relaxed(counter, load_relaxed(counter) + 1); }

static bool is_whole(const block_t *block, chain_t link)
{
    return !load.key || block_is_sealed(block, link, load.key);
}

/* Takes a chain apart. False: a seal is broken, or there are more blocks than there can be. */
static bool add_chain(pool_t *pool, chain_t chain)
{
    bool whole = true;
    for (; chain && pool->count < 2 * ALL; chain = block_link(chain_block(chain), load.key)) {
        block_t *block = chain_block(chain);
        whole = whole && is_whole(block, block_link(block, load.key));
        pool->block[pool->count++] = block;
    }
    return whole && !chain;
}

static void fetch_returned(worker_t *worker)
{
    pthread_mutex_lock(&load.mutex);
    pool_t *from = &load.returned;
    while (from->count && worker->own.count < ALL)
        worker->own.block[worker->own.count++] = from->block[--from->count];
    pthread_mutex_unlock(&load.mutex);
}

static void push_one(worker_t *worker)
{
    pool_t *own = &worker->own;
    if (!own->count || !percpu_push(percpu, HOT, own->block[own->count - 1], load.key)) return;
    own->count--;
    count(&worker->pushes);
}

static void pop_one(worker_t *worker)
{
    chain_t link;
    block_t *block = worker->own.count < 2 * ALL ? percpu_pop(percpu, HOT, load.key, &link) : NULL;
    if (!block) return;
    if (!is_whole(block, link)) count(&worker->broken);
    worker->own.block[worker->own.count++] = block;
    count(&worker->pops);
}

static void take_one(worker_t *worker, size_t word)
{
    chain_t chain = percpu_take(percpu, word);
    if (!chain) return;
    if (!add_chain(&worker->own, chain)) count(&worker->broken);
    count(&worker->takes);
}

static void install_one(worker_t *worker, size_t word)
{
    pool_t *own = &worker->own;
    chain_t chain = 0;
    for (unsigned i = 0; i < 5 && own->count; i++)
        chain = block_push(chain, own->block[--own->count], load.key);
    if (!chain) return;
    if (percpu_install(percpu, CLASS, word, chain)) count(&worker->installs);
    else if (!add_chain(own, chain)) count(&worker->broken);
}

static void *work(void *arg)
{
    worker_t *worker = arg;
    randoms_t randoms = {worker->number};
    for (unsigned i = 0; !load_relaxed(&load.end); i++) {
        unsigned kind = random_below(&randoms, 32);
        if (kind < 15) push_one(worker);
        else if (kind < 28) pop_one(worker);
        else if (kind < 30) take_one(worker, kind == 28 ? HOT : SPARE);
        else install_one(worker, kind == 30 ? HOT : SPARE);
        if (i % 256 == 0) fetch_returned(worker);
    }
    return NULL;
}

static unsigned sum(size_t counter)
{
    unsigned total = 0;
    for (unsigned i = 0; i < THREADS; i++)
        total += load_relaxed((_Atomic unsigned *)(void *)((char *)&load.worker[i] + counter));
    return total;
}

/* Sleeps, so that the others run in between, on one processor and under valgrind too; at most 20
 * ms. */
static void wait_for_pushes(unsigned wanted)
{
    unsigned before = sum(offsetof(worker_t, pushes));
    for (unsigned i = 0; sum(offsetof(worker_t, pushes)) - before < wanted && i < 200; i++)
        usleep(100);
}

static void start_load(uint64_t key)
{
    memset((void *)&load, 0, sizeof load);
    load.key = key;
    pthread_mutex_init(&load.mutex, NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        worker_t *worker = &load.worker[i];
        worker->number = i;
        for (unsigned k = 0; k < EACH; k++)
            worker->own.block[worker->own.count++] = &shared_blocks[i * EACH + k];
        cr_assert(pthread_create(&worker->thread, NULL, work, worker) == 0);
    }
}

/* The areas belong to this thread between fence and restart, so that plain reads find whole
 * chains. */
static void stop_and_steal(unsigned area_count)
{
    chain_t stolen[2 * MANY / 16];
    unsigned words = 0;
    percpu_halt(percpu);
    cr_assert(percpu_fence());
    for (unsigned i = 0; i < area_count; i++) {
        stolen[words++] = load_relaxed(&areas[i].hot[CLASS].word);
        store_relaxed(&areas[i].hot[CLASS].word, 0);
        stolen[words++] = load_relaxed(&areas[i].spare[CLASS]);
        store_relaxed(&areas[i].spare[CLASS], 0);
    }
    percpu_restart_all(percpu);
    pthread_mutex_lock(&load.mutex);
    for (unsigned i = 0; i < words; i++)
        if (!add_chain(&load.returned, stolen[i])) load.broken++;
    pthread_mutex_unlock(&load.mutex);
}

static void see(unsigned *seen, const pool_t *pool)
{
    for (unsigned i = 0; i < pool->count; i++) seen[pool->block[i] - shared_blocks]++;
}

/* Ends the threads and finds every block in one place. */
static void end_load(unsigned area_count)
{
    store_relaxed(&load.end, true);
    for (unsigned i = 0; i < THREADS; i++) pthread_join(load.worker[i].thread, NULL);
    stop_and_steal(area_count);
    cr_assert(percpu_is_empty(percpu, &all_classes, 0, CLASS_COUNT));
    unsigned seen[ALL] = {0};
    see(seen, &load.returned);
    for (unsigned i = 0; i < THREADS; i++) see(seen, &load.worker[i].own);
    for (unsigned i = 0; i < ALL; i++)
        cr_assert(seen[i] == 1, "%s: block %u is %u times there", name(), i, seen[i]);
    cr_assert(load.broken + sum(offsetof(worker_t, broken)) == 0, "%s: broken seals", name());
}

/* The table is no longer than need be: a halt that is soon done meets more sections in the
 * middle. */
static unsigned open_few_areas(uint64_t limit)
{
    unsigned processor_count = processors();
    percpu_slots = processor_count;
    percpu_init(percpu);
    for (unsigned i = 0; i < processor_count; i++) {
        store_relaxed(&areas[i].hot[CLASS].limit, limit);
        percpu_adopt(percpu, i, &areas[i]);
    }
    return processor_count;
}

static void stop_under_load(uint64_t key)
{
    unsigned area_count = open_few_areas(20);
    start_load(key);
    for (unsigned stop = 0; stop < STOPS; stop++) {
        for (unsigned i = 0; i < BURST; i++) stop_and_steal(area_count);
        wait_for_pushes(20);
    }
    end_load(area_count);
    unsigned pushes = sum(offsetof(worker_t, pushes)), pops = sum(offsetof(worker_t, pops));
    unsigned takes = sum(offsetof(worker_t, takes)), installs = sum(offsetof(worker_t, installs));
    cr_assert(pushes > 500 && pops > 100 && takes > 10 && installs > 10,
              "%s: %u pushes, %u pops, %u takes, %u installs", name(), pushes, pops, takes,
              installs);
}

Test(percpu, stops_lose_no_block)
{
    for (unsigned w = 0; w < WISHES; w++) {
        for (unsigned k = 0; k < 2; k++) {
            begin(wishes[w]);
            stop_under_load(KEYS[k]);
        }
    }
}

/* Areas appear while threads push and pop. */
static void adopt_under_load(void)
{
    unsigned area_count = processors();
    for (unsigned i = 0; i < area_count; i++) store_relaxed(&areas[i].hot[CLASS].limit, 20);
    start_load(KEYS[1]);
    for (unsigned i = 0; i < area_count; i++) {
        percpu_adopt(percpu, i, &areas[i]);
        wait_for_pushes(200);
    }
    end_load(area_count);
    cr_assert(sum(offsetof(worker_t, pushes)) > 100, "%s: %u pushes", name(),
              sum(offsetof(worker_t, pushes)));
}

Test(percpu, areas_appear_under_load)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        adopt_under_load();
    }
}

/* Areas change their processor at each stop, as they do when a heap is trimmed, and their blocks
 * come along. */
static void retire_under_load(void)
{
    unsigned area_count = open_few_areas(20);
    start_load(KEYS[1]);
    for (unsigned stop = 0; stop < STOPS * BURST / 10; stop++) {
        percpu_halt(percpu);
        cr_assert(percpu_fence());
        for (unsigned i = 0; i < area_count; i++) percpu_retire(percpu, i);
        for (unsigned i = 0; i < area_count; i++) {
            area_t *area = *percpu_idle(percpu);
            *percpu_idle(percpu) = area->next;
            percpu_adopt(percpu, (i + stop) % area_count, area);
        }
        if (stop % 32 == 0) wait_for_pushes(20);
    }
    end_load(area_count);
}

Test(percpu, areas_change_hands_under_load)
{
    for (unsigned w = 0; w < WISHES; w++) {
        begin(wishes[w]);
        retire_under_load();
    }
}

/* ---- Threads without rseq ---- */

static hak_heap_t *make_heap(hak_level_t level)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "percpu";
    config.level = level;
    hak_heap_t *heap = hak_heap_create(&config);
    cr_assert(heap != NULL);
    return heap;
}

static size_t cached_bytes(const hak_heap_t *heap)
{
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    if (hak_heap_stats(heap, &stats) != 0) return SIZE_MAX;
    return stats.hot_bytes + stats.spare_bytes;
}

#if HAVE_LIBC_RSEQ
static bool unregister(void)
{
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    uint32_t bytes = __rseq_size > 32 ? __rseq_size : 32;
    return syscall(SYS_rseq, area, bytes, RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0;
}
#else
static bool unregister(void) { return false; }
#endif

typedef struct outcome {
    hak_heap_t *heap;
    bool unregistered;
    const char *wrong;
} outcome_t;

static const char *use_heap(hak_heap_t *heap)
{
    static const size_t sizes[] = {16, 200, 1024, 5000, 32768, 100000, 3000000};
    void *held[100];
    if (percpu_index() != PERCPU_NONE) return "it has an index";
    size_t cached = cached_bytes(heap);
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 100; i++) {
            size_t size = sizes[(i * 7 + round) % (i % 10 ? 5 : 7)];
            held[i] = hak_heap_malloc(heap, size);
            if (!held[i]) return "malloc failed";
            memset(held[i], (int)i + 1, size < 6000 ? size : 6000);
        }
        if (cached_bytes(heap) > cached) return "a magazine was filled";
        for (unsigned i = 0; i < 100; i++) {
            if (*(unsigned char *)held[i] != i + 1) return "content was lost";
            hak_heap_free(heap, held[i]);
        }
    }
    if (cached_bytes(heap) > cached) return "a magazine was filled";
    return hak_heap_check(heap) == 0 ? NULL : "the heap is broken";
}

static void *run_without_rseq(void *arg)
{
    outcome_t *outcome = arg;
    outcome->unregistered = unregister();
    if (outcome->unregistered) outcome->wrong = use_heap(outcome->heap);
    return NULL;
}

static uint64_t without_rseq(const hak_heap_t *heap)
{
    return load_relaxed(
        &((hak_heap_t *)(uintptr_t)heap)->counters.count[HAK_COUNTERS ? COUNTER_early_no_rseq : 0]);
}

Test(percpu, a_thread_without_rseq_uses_no_magazine)
{
    for (int level = HAK_LEVEL_FAST; level <= HAK_LEVEL_CHECKED; level++) {
        hak_heap_t *heap = make_heap((hak_level_t)level);
        if (percpu_mode == PERCPU_LOCKED) cr_skip_test("no rseq here");
        /* This thread fills magazines, which the other one must leave alone. */
        void *held[60];
        for (unsigned i = 0; i < 60; i++) cr_assert((held[i] = hak_heap_malloc(heap, 200)) != NULL);
        for (unsigned i = 0; i < 60; i++) hak_heap_free(heap, held[i]);
        cr_assert(cached_bytes(heap) > 0, "this thread has magazines");
        outcome_t outcome = {.heap = heap};
        pthread_t thread;
        cr_assert(pthread_create(&thread, NULL, run_without_rseq, &outcome) == 0);
        pthread_join(thread, NULL);
        cr_assert(outcome.unregistered, "rseq could not be unregistered");
        cr_assert(outcome.wrong == NULL, "%s", outcome.wrong);
        if (HAK_COUNTERS) cr_assert(without_rseq(heap) > 0);
        void *again = hak_heap_malloc(heap, 200);
        cr_assert(again != NULL && percpu_index() >= 0);
        hak_heap_free(heap, again);
        cr_assert(hak_heap_check(heap) == 0);
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- Locked mode ---- */

#if HAVE_LIBC_RSEQ
static uint64_t armed(void)
{
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    return load_relaxed((_Atomic uint64_t *)(void *)(area + RSEQ_CS));
}
#else
static uint64_t armed(void) { return 0; }
#endif

/* Nothing is to be aborted where nothing can succeed. */
Test(percpu, locked_mode_arms_no_section)
{
    percpu_start_process("0");
    setenv("HAKHEAP_RSEQ", "0", 1);
    hak_heap_t *heap = make_heap(HAK_LEVEL_FAST);
    /* What a section takes for its index there is no CPU's: it must find no table. */
    cr_assert(load_relaxed(&heap->percpu.count) == 0 &&
              load_relaxed(&heap->percpu.slots) == percpu_slots);
    for (int i = 0; i < 100; i++) {
        void *ptr = hak_heap_malloc(heap, 64);
        cr_assert(ptr != NULL && armed() == 0);
        hak_heap_free(heap, ptr);
        cr_assert(armed() == 0);
    }
    cr_assert(hak_heap_destroy(heap) == 0);
}

/* ---- A C library that registers nothing ---- */

static const char *serves_locked(void)
{
    hak_heap_t *heap = make_heap(HAK_LEVEL_CHECKED);
    if (percpu_mode != PERCPU_LOCKED) return "it is not locked";
    for (unsigned i = 0; i < 1000; i++) {
        void *ptr = hak_heap_malloc(heap, 64);
        if (!ptr) return "malloc failed";
        hak_heap_free(heap, ptr);
    }
    if (cached_bytes(heap) == 0) return "no magazine was used";
    if (hak_heap_check(heap) != 0) return "the heap is broken";
    return hak_heap_destroy(heap) == 0 ? NULL : "destroy failed";
}

/* This test again, in a process whose libc is told to leave rseq alone. BXFI_MAP would make it a
 * worker of ours. */
Test(percpu, without_a_registration_all_is_locked)
{
    static const char tunable[] = "GLIBC_TUNABLES=glibc.pthread.rseq=0";
    if (!HAVE_LIBC_RSEQ) cr_skip_test("a libc that does not register");
    if (getenv("HAK_TEST_NO_RSEQ")) {
        const char *wrong = serves_locked();
        cr_assert(wrong == NULL, "%s", wrong);
        return;
    }
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    cr_assert(length > 0);
    program[length] = '\0';
    static run_result_t result;
    run_program(&result, 300,
                (const char *const[]){"env", "-u", "BXFI_MAP", "-u", "HAKHEAP_RSEQ", tunable,
                                      "HAK_TEST_NO_RSEQ=1", program,
                                      "--filter=percpu/without_a_registration_all_is_locked",
                                      "--color=never", NULL});
    cr_assert(result.status == 0, "status %d:\n%s", result.status, result.text);
    cr_assert(strstr(result.text, "Tested: 1"), "%s", result.text);
}
