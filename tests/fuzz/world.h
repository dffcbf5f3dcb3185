/*
 * The world of a sequence, and the shadow model of it: heaps, what must live in them, mailboxes
 * between threads, what the system refuses, and what the process held before. One a process.
 */
#ifndef HAK_FUZZ_WORLD_H
#define HAK_FUZZ_WORLD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hakheap.h"
#include "operation.h"

/* A block, as the model knows it. `at` NULL: none. */
typedef struct block {
    void *at;
    size_t asked;     /* bytes asked for: what is written */
    size_t sized;     /* what hak_heap_free_sized() must be told */
    size_t usable;    /* what hak_usable_size() says, as long as it lives */
    uint64_t lineage; /* of its heap; another one there: the block is gone */
    uint32_t seed;    /* of its content */
    uint32_t place;
    bool large; /* a mapping of its own, by its size or its alignment */
} block_t;

/*
 * Where a heap lives. `lock` is held for reading around every call that names the heap or one of
 * its blocks, and for writing where the contract asks that no such call runs, or where figures must
 * be exact. Model figures change under the lock for reading.
 */
typedef struct place {
    pthread_rwlock_t lock;
    hak_heap_t *heap; /* NULL: the system refused it */
    uint64_t lineage;
    size_t cache_bytes, large_cache_bytes; /* what the heap may keep */
    size_t limit; /* of what lives here; FUZZ_NO_LIMIT where limits are not played */
    unsigned root;
    _Atomic int64_t live_blocks, live_bytes;
} place_t;

enum { WORLD_ROOTS = 2 };

/* A heap above others, which has no blocks itself. Limits change under its lock for writing. */
typedef struct root {
    hak_heap_t *heap;
    size_t limit;
} root_t;

#define FUZZ_NO_LIMIT SIZE_MAX

enum { WORLD_MAILBOXES = 64, WORLD_LIVE_MOST = 256 << 20 };

typedef struct mailbox {
    pthread_mutex_t lock;
    block_t block;
} mailbox_t;

typedef struct world {
    fuzz_header_t header;
    unsigned places, slots;
    bool shared; /* by several players: figures are exact under a lock for writing only */
    place_t place[FUZZ_MOST_PLACES];
    mailbox_t mailbox[WORLD_MAILBOXES];
    root_t root[WORLD_ROOTS];
    _Atomic int64_t live_bytes; /* of all places: bounded, so that a run fits into a machine */
    _Atomic uint64_t calls;     /* of the library by ended players */
    /* Odd: the system refuses something now. */
    _Atomic unsigned refusals;
    size_t resident, mappings; /* before the first operation */
} world_t;

extern world_t world;

/* Once a process, before any thread runs. */
void world_set_up(void);
void world_begin(const fuzz_header_t *header, bool shared);
/* After the players have ended: proves every heap and destroys it, and that the process holds what
 * it held before. `threads` have run. */
void world_end(unsigned threads);

/* The place, locked for reading, with a heap in it; NULL and not locked where the system refuses
 * one. */
place_t *world_enter(unsigned number);
void world_leave(place_t *place);
/* The bytes that an operation asks for: few where much lives already. */
size_t world_size(const fuzz_operation_t *operation);

/* Destroys and creates, at a place that is locked for writing. */
void world_replace(place_t *place, unsigned number, unsigned choice);
/* Proves a heap, its balance and the model's, at a place that is locked for writing or that no
 * other thread uses. */
void world_prove(place_t *place);
/* Proves what holds at every instant. */
void world_sample(place_t *place);

void world_refuse(const fuzz_operation_t *operation);
void world_allow(void);
/* Whether a call that began when `before` was world.refusals may have been refused. */
bool world_may_refuse(unsigned before);

/* Whether the model says that so many bytes more, or fewer, fit at a place; where several play it
 * cannot know: then what it is asked to expect is right. */
bool world_fits(const place_t *place, int64_t bytes, bool expected);
/* Another limit, of a place or of its root; and another root. */
void world_limit(place_t *place, const fuzz_operation_t *operation);
void world_move(place_t *place);

/* What a supervisor sees of a run. The memory is shared with its children. */
typedef struct fuzz_progress {
    _Atomic uint64_t number; /* operations begun */
    _Atomic uint64_t calls;  /* of the library, where the run has ended well */
    _Atomic bool failed;
    char message[512];
} fuzz_progress_t;

extern fuzz_progress_t *progress; /* NULL: nothing watches */

/* Says what is wrong, and ends the process by abort(). */
_Noreturn void fuzz_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define FUZZ_REQUIRE(x)                                                     \
    do {                                                                    \
        if (!(x)) fuzz_fail("%s:%d: not true: %s", __FILE__, __LINE__, #x); \
    } while (0)

#endif
