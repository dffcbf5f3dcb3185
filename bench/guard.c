/*
 * Fixed sequences of operations for guard.sh, which counts the instructions that each takes. The
 * same sequence does the same in every run: one thread, one seed, and a heap in the locked mode,
 * because valgrind has no rseq.
 *
 *   build/bench/guard --list                     the names of the sequences
 *   build/bench/guard <sequence> fast|checked|limited
 *
 * A limited heap is a fast one that has limits and a parent with limits; none of them is reached.
 *
 * A sequence is an act, done some times, and what prepares each. Only the acts are counted: all of
 * them, and nothing else, run in `sequence`, which guard.sh names to callgrind. Its own few
 * instructions an operation count as well.
 */
#define _GNU_SOURCE

#include "harness.h"

#include "adapter_hakheap.h"
#include "workload.h"

enum {
    BATCH = 1000,
    SMALL_SLOTS = 1000,
    MID_SLOTS = 16,
    LARGE_SLOTS = 8,
    FEW = 100,
    SESSION = 30,
    QUERY = 1000,
    BULK = 4096,
    WAVE = 32768 /* blocks of 256 bytes: 8 MiB */
};

static const char *level;
static hak_heap_t *root; /* of limited heaps; NULL: heaps have no limits */
static harness_rng_t rng = {1};
static hak_heap_t *created[FEW];
static void *slots[WAVE]; /* the largest of all */

static void *take(hak_heap_t *heap, size_t size)
{
    void *block = hak_heap_malloc(heap, size);
    if (!block) harness_exit(HARNESS_FAILED, "malloc of %zu bytes failed: %m", size);
    return block;
}

static uint32_t draw(uint32_t min, uint32_t max)
{
    return min + harness_below((uint32_t)harness_draw(&rng), max - min + 1);
}

/* ---- Acts ---- */

static void pairs(hak_heap_t *heap)
{
    for (int i = 0; i < 5000; i++) hak_heap_free(heap, take(heap, 64));
}

/* Random blocks of `count` are replaced by blocks of random size. */
static void replace(hak_heap_t *heap, uint32_t count, uint32_t min, uint32_t max, int times)
{
    for (int i = 0; i < times; i++) {
        void **slot = &slots[draw(0, count - 1)];
        hak_heap_free(heap, *slot);
        *slot = take(heap, draw(min, max));
    }
}

static void small(hak_heap_t *heap) { replace(heap, SMALL_SLOTS, 8, 1000, 5000); }
static void mid(hak_heap_t *heap) { replace(heap, MID_SLOTS, 40000, 400000, 500); }
static void large(hak_heap_t *heap) { replace(heap, LARGE_SLOTS, 3 << 20, 8 << 20, 200); }

/* Allocates and frees in the same order. */
static void rise_and_fall(hak_heap_t *heap, int blocks, size_t size)
{
    for (int i = 0; i < blocks; i++) slots[i] = take(heap, size);
    for (int i = 0; i < blocks; i++) hak_heap_free(heap, slots[i]);
}

static void batch(hak_heap_t *heap) { rise_and_fall(heap, BATCH, 48); }
static void bulk(hak_heap_t *heap) { rise_and_fall(heap, BULK, 64); }
static void wave(hak_heap_t *heap) { rise_and_fall(heap, WAVE, 256); }

static void grow_from(hak_heap_t *heap, size_t from, size_t to)
{
    void *block = NULL;
    for (size_t size = from; size <= to; size += size / 2) {
        block = hak_heap_realloc(heap, block, size);
        if (!block) harness_exit(HARNESS_FAILED, "realloc to %zu bytes failed: %m", size);
    }
    hak_heap_free(heap, block);
}

/* Sizes that are not copied at length: the C library's copy is not what is counted. */
static void grow(hak_heap_t *heap)
{
    for (int i = 0; i < 20; i++) grow_from(heap, 16, 2048);
    grow_from(heap, 1 << 20, 16 << 20);
}

static hak_heap_t *create_by(hak_heap_config_t *config)
{
    config->name = "bench"; /* to print a name takes longer than to create a heap */
    config->level = strcmp(level, "checked") == 0 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config->parent = root;
    if (root) config->live_limit = config->committed_limit = (size_t)2 << 30;
    hak_heap_t *heap = hak_heap_create(config);
    if (!heap) harness_exit(HARNESS_FAILED, "cannot create a heap: %m");
    return heap;
}

static hak_heap_t *create(void)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    return create_by(&config);
}

/* All of its blocks come from slabs; without caches, one by one. */
static hak_heap_t *create_of_slabs(bool caches)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.region_bytes = 1;
    if (!caches) config.cache_bytes = 1;
    return create_by(&config);
}

static void create_root(void)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "root";
    config.live_limit = config.committed_limit = (size_t)4 << 30;
    root = hak_heap_create(&config);
    if (!root) harness_exit(HARNESS_FAILED, "cannot create a heap: %m");
}

static void create_destroy(hak_heap_t *heap)
{
    (void)heap;
    hak_heap_destroy(create());
}

static void create_use_destroy(hak_heap_t *heap)
{
    heap = create();
    for (uint32_t i = 0; i < FEW; i++) (void)!take(heap, 16 + i * 8);
    hak_heap_destroy(heap);
}

/* What sessions.c and queries.c do with a heap. */
static void live(uint32_t blocks)
{
    workload_law_t law = workload_law(16, 1023);
    hak_heap_t *heap = create();
    for (uint32_t i = 0; i < blocks; i++) (void)!take(heap, workload_size(&law, &rng));
    hak_heap_destroy(heap);
}

static void session(hak_heap_t *heap)
{
    (void)heap;
    live(SESSION);
}

static void query(hak_heap_t *heap)
{
    (void)heap;
    live(QUERY);
}

static void create_many(hak_heap_t *heap)
{
    (void)heap;
    for (int i = 0; i < FEW; i++) created[i] = create();
    for (int i = 0; i < FEW; i++) hak_heap_destroy(created[i]);
}

static void flush(hak_heap_t *heap) { hak_heap_flush(heap); }
static void trim(hak_heap_t *heap) { hak_heap_trim(heap, 0); }

/* ---- What comes before each act ---- */

static void nothing(hak_heap_t *heap) { (void)heap; }

/* Half of the blocks live, the others cached. */
static void scatter(hak_heap_t *heap)
{
    for (int i = 0; i < BATCH; i++) {
        hak_heap_free(heap, slots[i]);
        slots[i] = take(heap, draw(8, 1000));
    }
    for (int i = 0; i < BATCH; i += 2) {
        hak_heap_free(heap, slots[i]);
        slots[i] = NULL;
    }
}

/* ---- The table ---- */

typedef void step_t(hak_heap_t *heap);

/* The heap: as a program gets it; of slabs only; and without caches. */
enum { USUAL, SLABS, UNCACHED };

static const struct {
    const char *name;
    step_t *prepare, *act;
    int warm, times; /* acts that are not counted, and that are */
    int heap;
} sequences[] = {
    {"pairs", nothing, pairs, 1, 1, USUAL},
    {"slab-pairs", nothing, pairs, 1, 1, SLABS},
    {"misses", nothing, pairs, 1, 1, UNCACHED},
    {"small", nothing, small, 1, 1, USUAL},
    {"batch", nothing, batch, 1, 5, USUAL},
    {"mid", nothing, mid, 1, 1, USUAL},
    {"large", nothing, large, 1, 1, USUAL},
    {"realloc", nothing, grow, 1, 3, USUAL},
    {"create-destroy", nothing, create_destroy, 1, 20, USUAL},
    {"create-100-destroy", nothing, create_use_destroy, 1, 5, USUAL},
    {"100-heaps", nothing, create_many, 1, 1, USUAL},
    {"session", nothing, session, 1, 20, USUAL},
    {"query", nothing, query, 1, 5, USUAL},
    {"bulk", nothing, bulk, 1, 3, USUAL},
    {"wave", nothing, wave, 1, 2, USUAL},
    {"flush", scatter, flush, 1, 5, USUAL},
    {"trim", scatter, trim, 1, 5, USUAL},
};
enum { SEQUENCES = sizeof sequences / sizeof sequences[0] };

/* What is counted. Neither inlined nor made for one caller: callgrind finds it by its name. */
__attribute__((noinline)) static void sequence(step_t *act, hak_heap_t *heap)
{
    act(heap);
    __asm__ volatile("" ::: "memory"); /* a jump to `act` would leave it */
}

static void run(unsigned which)
{
    int kind = sequences[which].heap;
    hak_heap_t *heap = kind == USUAL ? create() : create_of_slabs(kind == SLABS);
    for (int i = 0; i < sequences[which].warm + sequences[which].times; i++) {
        step_t *volatile act = sequences[which].act;
        sequences[which].prepare(heap);
        if (i < sequences[which].warm) act(heap);
        else sequence(act, heap);
    }
    hak_heap_destroy(heap);
}

int main(int argc, char **argv)
{
    static const char *const levels[] = {"fast", "checked", "limited"};
    const char *names[SEQUENCES];
    for (unsigned i = 0; i < SEQUENCES; i++) names[i] = sequences[i].name;
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (unsigned i = 0; i < SEQUENCES; i++) puts(names[i]);
        return 0;
    }
    if (argc != 3) harness_exit(HARNESS_USAGE, "takes a sequence and a level, or --list");
    unsigned which = harness_choice("sequence", argv[1], names, SEQUENCES);
    level = levels[harness_choice("level", argv[2], levels, 3)];
    if (strcmp(hak_percpu_mode(), "locked") != 0)
        harness_exit(HARNESS_FAILED, "the mode is %s, and must be locked: set HAKHEAP_RSEQ=0",
                     hak_percpu_mode());
    if (strcmp(level, "limited") == 0) create_root();
    run(which);
    return 0;
}
