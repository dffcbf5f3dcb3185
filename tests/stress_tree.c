/*
 * Trees of heaps: threads create children below a few limited parents, fill them to where a limit
 * refuses, of what is live or of what is in use, move, empty and destroy them; others free their
 * blocks, lower and raise limits; one reads usage all the time. No ancestor is above its limits at
 * any look, every block's content is proved, and at the end every sum is exact. Prints how many
 * children came a second: eight threads make 1,000 on two CPUs.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "heap.h"
#include "support_contract.h"
#include "support_stress.h"

enum { PARENTS = 4, PLACES = 8, BLOCKS = 100, MAILBOXES = 64, LIMIT = 4 << 20 };
/* Of what is in use: of all, and of a parent. Both kinds of limits are met. */
enum { COMMITTED = 14 << 20, COMMITTED_PARENT = 6 << 20 };

/* A child, which one thread owns; the others free its blocks under `lock` for reading. */
typedef struct place {
    pthread_rwlock_t lock;
    hak_heap_t *heap;
    uint64_t generation;
} place_t;

typedef struct parcel {
    void *block;
    place_t *place;
    uint64_t generation;
} parcel_t;

static hak_heap_t *root, *parents[PARENTS];
static place_t places[64][PLACES];
static _Atomic(parcel_t *) mailboxes[MAILBOXES];
static _Atomic size_t children, refused, moved, freed, looks, pressed, passed;

static void on_pressure(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)ctx, (void)full;
    atomic_fetch_add_explicit(bytes ? &pressed : &passed, 1, memory_order_relaxed);
}

static hak_heap_t *create(hak_heap_t *parent, size_t limit, size_t committed, int level)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "tree";
    config.parent = parent;
    config.live_limit = limit;
    config.committed_limit = committed;
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    if (!parent) config.on_pressure = on_pressure, config.soft_limit = limit / 8;
    hak_heap_t *heap = hak_heap_create(&config);
    bool full = parent && hak_last_error() == HAK_ERROR_LIMIT;
    if (!heap && !full) stress_fail("no heap: %s", hak_error_text(hak_last_error()));
    return heap;
}

static void open_parcel(parcel_t *parcel)
{
    pthread_rwlock_rdlock(&parcel->place->lock);
    if (parcel->generation == parcel->place->generation) {
        (void)stress_prove(parcel->block, NULL);
        hak_free(parcel->block);
        atomic_fetch_add_explicit(&freed, 1, memory_order_relaxed);
    }
    pthread_rwlock_unlock(&parcel->place->lock);
    free(parcel);
}

/* To another thread, which frees it, or nobody does before the heap goes. */
static void post(randoms_t *randoms, place_t *place, void *block)
{
    parcel_t *parcel = malloc(sizeof *parcel);
    if (!parcel) stress_fail("no memory for a parcel");
    *parcel = (parcel_t){block, place, place->generation};
    parcel = atomic_exchange(&mailboxes[random_below(randoms, MAILBOXES)], parcel);
    if (parcel) open_parcel(parcel);
}

static void fill(randoms_t *randoms, place_t *place)
{
    void *blocks[BLOCKS] = {NULL};
    for (unsigned i = 0; i < BLOCKS; i++) {
        size_t bytes = stress_size(randoms);
        blocks[i] = hak_heap_malloc(place->heap, bytes);
        if (!blocks[i]) {
            STRESS_REQUIRE(errno == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT);
            atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed);
            continue;
        }
        stress_write(blocks[i], bytes, (uint32_t)random_next(randoms), 1);
    }
    for (unsigned i = 0; i < BLOCKS; i++) {
        if (!blocks[i] || random_below(randoms, 8) == 0) continue;
        (void)stress_prove(blocks[i], NULL);
        if (random_below(randoms, 4)) hak_heap_free(place->heap, blocks[i]);
        else post(randoms, place, blocks[i]);
    }
}

static void move(randoms_t *randoms, place_t *place)
{
    int error = hak_heap_move(place->heap, parents[random_below(randoms, PARENTS)]);
    STRESS_REQUIRE(error == 0 || (error == ENOMEM && hak_last_error() == HAK_ERROR_LIMIT));
    atomic_fetch_add_explicit(&moved, error == 0, memory_order_relaxed);
}

/* With nobody else at the heap. A check takes as long as some lives of children. */
static void replace(randoms_t *randoms, place_t *place)
{
    pthread_rwlock_wrlock(&place->lock);
    place->generation++;
    if (place->heap && random_below(randoms, 8) == 0)
        STRESS_REQUIRE(hak_heap_check(place->heap) == 0);
    if (place->heap && random_below(randoms, 3) == 0) {
        STRESS_REQUIRE(hak_heap_reset(place->heap) == 0);
    } else {
        if (place->heap) STRESS_REQUIRE(hak_heap_destroy(place->heap) == 0);
        place->heap = create(parents[random_below(randoms, PARENTS)],
                             random_below(randoms, 2) ? LIMIT / 8 : HAK_NO_LIMIT,
                             random_below(randoms, 2) ? LIMIT / 4 : HAK_NO_LIMIT,
                             (int)random_below(randoms, 2));
        atomic_fetch_add_explicit(&children, place->heap != NULL, memory_order_relaxed);
    }
    pthread_rwlock_unlock(&place->lock);
}

static void *work(void *arg)
{
    place_t *mine = arg;
    randoms_t randoms = {(uintptr_t)arg};
    while (!stress_is_over()) {
        place_t *place = &mine[random_below(&randoms, PLACES)];
        unsigned what = random_below(&randoms, 20);
        if (!place->heap || what < 14) {
            replace(&randoms, place);
            if (place->heap) fill(&randoms, place), move(&randoms, place);
        } else if (what < 16) {
            move(&randoms, place);
        } else if (what < 17) {
            (void)hak_heap_trim(place->heap, 0);
        } else {
            fill(&randoms, place);
        }
    }
    return NULL;
}

/* Those that watch and change leave the CPU to those that work. */
static void rest(long microseconds)
{
    struct timespec time = {.tv_nsec = microseconds * 1000};
    nanosleep(&time, NULL);
}

static void require_bounds(const hak_heap_t *heap)
{
    hak_usage_t usage = {.struct_size = sizeof usage};
    STRESS_REQUIRE(hak_heap_usage(heap, &usage) == 0);
    STRESS_REQUIRE(usage.live_bytes <= usage.tree_bytes && usage.tree_bytes <= usage.live_limit);
    STRESS_REQUIRE(usage.live_bytes <= usage.committed_bytes);
    STRESS_REQUIRE(usage.committed_bytes <= usage.peak_bytes);
    STRESS_REQUIRE(usage.tree_bytes <= usage.tree_peak_bytes);
    STRESS_REQUIRE(usage.committed_bytes <= usage.tree_committed_bytes);
    STRESS_REQUIRE(usage.tree_committed_bytes <= usage.committed_limit);
    atomic_fetch_add_explicit(&looks, 1, memory_order_relaxed);
}

static void *read_usage(void *arg)
{
    (void)arg;
    while (!stress_is_over()) {
        require_bounds(root);
        /* As it is, and not as usage shows it, inside of its bound. */
        STRESS_REQUIRE(load_relaxed(&root->ledger->of[FOOTPRINT].sum) <= COMMITTED);
        for (unsigned i = 0; i < PARENTS; i++) require_bounds(parents[i]);
        rest(50);
    }
    return NULL;
}

static void *change_limits(void *arg)
{
    randoms_t randoms = {1};
    (void)arg;
    while (!stress_is_over()) {
        hak_limits_t limits = {.struct_size = sizeof limits,
                               .live_limit = LIMIT / 2 + random_below(&randoms, LIMIT),
                               .committed_limit =
                                   COMMITTED_PARENT / 2 + random_below(&randoms, COMMITTED_PARENT)};
        int error = hak_heap_set_limits(parents[random_below(&randoms, PARENTS)], &limits);
        STRESS_REQUIRE(error == 0 || error == EBUSY);
        rest(1000);
    }
    return NULL;
}

static void start(pthread_t *thread, void *(*run)(void *), void *arg)
{
    STRESS_REQUIRE(pthread_create(thread, NULL, run, arg) == 0);
}

/* What is charged is what is live, block by block. */
static void prove_child(hak_heap_t *heap)
{
    (void)hak_heap_flush(heap);
    STRESS_REQUIRE(hak_heap_check(heap) == 0);
    STRESS_REQUIRE(ledger_live(heap->ledger) == contract_stats(heap).live_bytes);
}

static void end(unsigned threads)
{
    for (unsigned i = 0; i < MAILBOXES; i++) {
        parcel_t *parcel = atomic_exchange(&mailboxes[i], NULL);
        if (parcel) open_parcel(parcel);
    }
    for (unsigned t = 0; t < threads; t++)
        for (unsigned i = 0; i < PLACES; i++)
            if (places[t][i].heap) prove_child(places[t][i].heap);
    STRESS_REQUIRE(ledger_is_sound(root->ledger));
    STRESS_REQUIRE(hak_heap_reset(root) == 0);
    hak_usage_t usage = {.struct_size = sizeof usage};
    STRESS_REQUIRE(hak_heap_usage(root, &usage) == 0 && usage.tree_bytes == 0);
    STRESS_REQUIRE(usage.tree_committed_bytes == usage.committed_bytes);
    STRESS_REQUIRE(usage.tree_committed_peak_bytes <= COMMITTED && usage.committed_bytes < HAK_MIB);
    STRESS_REQUIRE(hak_heap_check(root) == 0 && ledger_is_sound(root->ledger));
    STRESS_REQUIRE(hak_heap_destroy(root) == 0);
}

int main(int argc, char *argv[])
{
    stress_options_t options = stress_begin(argc, argv, 8);
    pthread_t workers[64], reader, changer;
    if (options.threads > 64) stress_fail("at most 64 threads");
    root = create(NULL, 3 * (size_t)LIMIT, COMMITTED, 0);
    for (unsigned i = 0; i < PARENTS; i++)
        parents[i] = create(root, LIMIT, COMMITTED_PARENT, (int)i & 1);
    for (unsigned t = 0; t < options.threads; t++)
        for (unsigned i = 0; i < PLACES; i++) pthread_rwlock_init(&places[t][i].lock, NULL);
    for (unsigned t = 0; t < options.threads; t++) start(&workers[t], work, places[t]);
    start(&reader, read_usage, NULL);
    start(&changer, change_limits, NULL);
    stress_wait(&options);
    for (unsigned t = 0; t < options.threads; t++) pthread_join(workers[t], NULL);
    pthread_join(reader, NULL);
    pthread_join(changer, NULL);
    end(options.threads);
    printf("%zu children, %zu a second; %zu moves, %zu refusals, %zu callbacks, %zu soft limits "
           "passed, %zu frees by others, %zu looks\n",
           (size_t)children, (size_t)children / options.seconds, (size_t)moved, (size_t)refused,
           (size_t)pressed, (size_t)passed, (size_t)freed, (size_t)looks);
    return 0;
}
