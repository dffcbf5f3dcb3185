/*
 * Everything comes and goes: threads that live for an instant, hop over heaps and over CPUs, and
 * free each other's blocks; heaps that their owners destroy and create again meanwhile, half of
 * them divided (heap.h). Every block's content is proved before it is freed.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support_contract.h"
#include "support_stress.h"

enum { PLACES = 12, MAILBOXES = 128, HELD = 64, STEPS = 3000, MOST_CPUS = 64 };

/*
 * Where a heap lives. The contract: who destroys a heap does so after every call that names it or
 * frees one of its blocks. Users hold `lock` for reading around their calls; the owner destroys
 * under it for writing, and its generation then tells everybody that blocks of the heap before are
 * gone.
 */
typedef struct place {
    pthread_rwlock_t lock;
    hak_heap_t *heap;
    uint64_t generation;
} place_t;

/* A block in somebody's hands, or on its way. */
typedef struct parcel {
    void *block;
    uint64_t generation;
    unsigned place;
} parcel_t;

static place_t places[PLACES];
static _Atomic(parcel_t *) mailboxes[MAILBOXES];
static _Atomic size_t threads_run, heaps_run, proved, gone, posted;
static int cpus[MOST_CPUS];
static size_t cpu_count;
static stress_options_t options;

static void destroy_at(unsigned at)
{
    atomic_fetch_add(&posted, stress_posted(places[at].heap));
    if (hak_heap_destroy(places[at].heap) != 0) stress_fail("destroy failed");
}

static void create_at(unsigned at)
{
    places[at].heap = contract_heap((int)(at & 1), at & 1 ? "checked" : "fast");
    if (!places[at].heap) stress_fail("no heap: %s", hak_error_text(hak_last_error()));
    if (at & 2) stress_divide(places[at].heap);
    places[at].generation++;
    atomic_fetch_add(&heaps_run, 1);
}

/* Frees a parcel's block where its heap still lives. By hak_free, half of the time: nobody names
 * the heap then. */
static void release(randoms_t *randoms, parcel_t *parcel)
{
    place_t *place = &places[parcel->place];
    pthread_rwlock_rdlock(&place->lock);
    if (place->generation == parcel->generation) {
        uint16_t mark;
        (void)stress_prove(parcel->block, &mark);
        if (mark != parcel->place)
            stress_fail("block %p of place %u says %u", parcel->block, parcel->place, mark);
        if (hak_heap_of(parcel->block) != place->heap)
            stress_fail("block %p is in another heap", parcel->block);
        if (random_below(randoms, 2)) hak_free(parcel->block);
        else hak_heap_free(place->heap, parcel->block);
        atomic_fetch_add_explicit(&proved, 1, memory_order_relaxed);
    } else {
        atomic_fetch_add_explicit(&gone, 1, memory_order_relaxed);
    }
    pthread_rwlock_unlock(&place->lock);
    free(parcel);
}

static parcel_t *obtain(randoms_t *randoms)
{
    parcel_t *parcel = malloc(sizeof *parcel);
    if (!parcel) stress_fail("no memory for a parcel");
    parcel->place = random_below(randoms, PLACES);
    place_t *place = &places[parcel->place];
    size_t bytes = stress_size(randoms);
    pthread_rwlock_rdlock(&place->lock);
    parcel->generation = place->generation;
    parcel->block = hak_heap_malloc(place->heap, bytes);
    if (!parcel->block)
        stress_fail("no memory for %zu bytes: %s", bytes, hak_error_text(hak_last_error()));
    stress_write(parcel->block, bytes, (uint32_t)random_next(randoms), (uint16_t)parcel->place);
    pthread_rwlock_unlock(&place->lock);
    return parcel;
}

static void hop(randoms_t *randoms)
{
    if (cpu_count > 1) (void)contract_move_to(cpus[random_below(randoms, (unsigned)cpu_count)]);
}

/* A thread's whole life. What it holds at the end it leaves to whoever comes. */
static void *live_briefly(void *arg)
{
    randoms_t randoms = {(uint64_t)(uintptr_t)arg};
    parcel_t *held[HELD] = {NULL};
    for (unsigned step = 0; step < STEPS && !stress_is_over(); step++) {
        parcel_t **slot = &held[random_below(&randoms, HELD)];
        if (random_below(&randoms, 100) == 0) hop(&randoms);
        if (!*slot) {
            *slot = obtain(&randoms);
        } else if (random_below(&randoms, 3) == 0) {
            *slot = atomic_exchange(&mailboxes[random_below(&randoms, MAILBOXES)], *slot);
        } else {
            release(&randoms, *slot);
            *slot = NULL;
        }
    }
    for (unsigned i = 0; i < HELD; i++) {
        if (!held[i]) continue;
        parcel_t *before = atomic_exchange(&mailboxes[random_below(&randoms, MAILBOXES)], held[i]);
        if (before) release(&randoms, before);
    }
    atomic_fetch_add(&threads_run, 1);
    return NULL;
}

/* Replaces its thread as soon as it ends. */
static void *breed(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg;
    while (!stress_is_over()) {
        pthread_t thread;
        seed = seed * 6364136223846793005ull + 1;
        STRESS_REQUIRE(pthread_create(&thread, NULL, live_briefly, (void *)(uintptr_t)seed) == 0);
        pthread_join(thread, NULL);
    }
    return NULL;
}

/* Destroys, resets, flushes and trims other people's heaps: the first two under the lock for
 * writing only. */
static void *own(void *arg)
{
    randoms_t randoms = {(uint64_t)(uintptr_t)arg};
    while (!stress_is_over()) {
        unsigned at = random_below(&randoms, PLACES);
        place_t *place = &places[at];
        unsigned what = random_below(&randoms, 16);
        if (what < 2) {
            pthread_rwlock_wrlock(&place->lock);
            if (hak_heap_check(place->heap) != 0)
                stress_fail("a heap fails its check before it goes");
            if (what == 0) {
                destroy_at(at);
                create_at(at);
            } else {
                if (hak_heap_reset(place->heap) != 0) stress_fail("reset failed");
                place->generation++;
                int line = contract_unsound(place->heap, 0);
                if (line) stress_fail("after a reset: support_contract.c:%d", line);
            }
        } else {
            pthread_rwlock_rdlock(&place->lock);
            /* So that SuperSlabs go from the nursery to heaps, and back. */
            if (what < 4) (void)hak_reserve_trim();
            else if (what < 8) (void)hak_heap_flush(place->heap);
            else if (what < 15) (void)hak_heap_trim(place->heap, what % 2 ? 0 : 100000);
            else if (hak_heap_check(place->heap) != 0) stress_fail("a heap fails its check");
        }
        pthread_rwlock_unlock(&place->lock);
    }
    return NULL;
}

int main(int argc, char *argv[])
{
    options = stress_begin(argc, argv, 6);
    cpu_count = contract_cpus(cpus, MOST_CPUS);
    /* A reader that comes again and again must not keep the owner out for ever. */
    pthread_rwlockattr_t fair;
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    for (unsigned i = 0; i < PLACES; i++) {
        pthread_rwlock_init(&places[i].lock, &fair);
        create_at(i);
    }
    pthread_t breeders[256], owner;
    for (unsigned i = 0; i < options.threads; i++)
        STRESS_REQUIRE(pthread_create(&breeders[i], NULL, breed,
                                      (void *)(uintptr_t)(options.seed * 100 + i)) == 0);
    STRESS_REQUIRE(pthread_create(&owner, NULL, own, (void *)(uintptr_t)(options.seed + 7)) == 0);
    stress_wait(&options);
    for (unsigned i = 0; i < options.threads; i++) pthread_join(breeders[i], NULL);
    pthread_join(owner, NULL);

    randoms_t randoms = {options.seed};
    for (unsigned i = 0; i < MAILBOXES; i++) {
        parcel_t *parcel = atomic_exchange(&mailboxes[i], NULL);
        if (parcel) release(&randoms, parcel);
    }
    for (unsigned i = 0; i < PLACES; i++) {
        stress_prove_empty(places[i].heap, i & 1 ? "checked" : "fast");
        destroy_at(i);
        pthread_rwlock_destroy(&places[i].lock);
    }
    pthread_rwlockattr_destroy(&fair);
    stress_prove_posted(posted);
    printf("%zu threads, %zu heaps, %zu blocks proved, %zu gone with their heaps\n",
           (size_t)threads_run, (size_t)heaps_run, (size_t)proved, (size_t)gone);
    return 0;
}
