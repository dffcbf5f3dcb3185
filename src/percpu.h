/* hakheap level 6: percpu - a heap's hot and spare magazines, one area a CPU, without a lock */
#ifndef HAK_PERCPU_H
#define HAK_PERCPU_H

#include "block.h"
#include "registry.h"

/*
 * Role: the hot level of the two-level magazine. Callers: api (pop, push) and the ladders (the
 * rest). Memory: areas are given by the heap and live as long as it; the tables are the end of the
 * heap's own record. Lock: AREAS of the heap, for everything but these operations.
 *
 *   percpu.table  [ area of index 0 | area of index 1 | ... ]   index: mm_cid, or the CPU's number
 *                       |                  |
 *                       v                  v
 *                     area_t             zero_area   (not yet made, or stopped)
 *     hot[slot]   = { word, limit, tag }   16 bytes: pop and push touch one line
 *     spare[slot] = word                   a second chain: alternating at a boundary reaches no
 *                                          lock (Bonwick's "previous" magazine; Bonwick and Adams,
 *                                          USENIX 2001)
 *     outbox --> { word, limit }           by slot; blocks of another CPU, on their way back to it
 *
 * The operations (pop, push, post, take, install, fence) are Linux restartable sequences: a thread
 * that is preempted, migrated or signalled inside one is thrown out of it, and the operation has
 * missed. So between its first instruction and its one committing store it is alone with the area
 * of the CPU it runs on (rseq(2); Desnoyers' librseq; tcmalloc's "Restartable Sequence Mechanism").
 * The locked twin (sanitizers, valgrind, other architectures and C libraries, HAKHEAP_RSEQ=0) does
 * the same with a try-lock in each area.
 *
 * So an operation may miss although it could succeed. Callers take a miss as no more than that: the
 * ladders come to an end without any of these.
 *
 * An area of zeros is empty and full at once: limit 0 refuses every push and install, word 0 every
 * pop and take. The read-only zero_area is therefore the start state and the stopped state.
 *
 * To stop: store zero_area in the table, fence; every section that had read the old pointer has
 * ended or was aborted, and the areas belong to the lock's holder. Words are written by sections
 * with plain aligned stores (which are atomic on x86-64), and by the lock's holder while stopped.
 *
 * Where the thread has no rseq (cpu_id < 0) or its index is beyond the table (of a CPU that was
 * added to the machine while the process ran), every operation misses.
 */
/* Which classes a heap has used: no magazine of another holds anything, and no walk needs to
 * look. */
typedef struct class_bits {
    _Atomic uint64_t word[2];
} class_bits_t;

_Static_assert(CLASS_COUNT <= 128, "a bit for each class");

/* The first class from `cls` on that is there, or CLASS_COUNT. Acquire: pairs with the release in
 * class_bits_add. */
HAK_INLINE unsigned class_bits_next(const class_bits_t *bits, unsigned cls)
{
    for (; cls < CLASS_COUNT; cls = (cls / 64 + 1) * 64) {
        uint64_t left =
            load_acquire(&((class_bits_t *)(uintptr_t)bits)->word[cls / 64]) >> cls % 64;
        if (left) return cls + (unsigned)__builtin_ctzll(left);
    }
    return CLASS_COUNT;
}
#define FOR_CLASSES_IN(cls, bits, first, end)                          \
    for (unsigned cls = class_bits_next((bits), (first)); cls < (end); \
         cls = class_bits_next((bits), cls + 1))
#define FOR_CLASSES(cls, bits) FOR_CLASSES_IN (cls, bits, 0, CLASS_COUNT)

/* Lock: the writer of the bits has one. */
HAK_INLINE void class_bits_add(class_bits_t *bits, unsigned cls)
{
    _Atomic uint64_t *word = &bits->word[cls / 64];
    store_release(word, load_relaxed(word) | (uint64_t)1 << cls % 64);
}

typedef struct magazine {
    _Atomic chain_t word;
    _Atomic uint32_t
        limit; /* blocks; written by the slow path of any thread, read by push and install */
    /* Hot: of the blocks that are pushed without a look at their home; TAG_NONE: of none. Outbox:
     * of all its blocks, or-ed with TAG_KNOWN, HOME_LOOK where they have several homes; 0 before
     * the first; a hint, as every home is. Written like the limit. */
    _Atomic uint16_t tag;
    _Atomic uint16_t misses; /* of this period; slow paths of this CPU's threads; see adapt.c */
} magazine_t;

typedef struct area {
    magazine_t hot[SLOT_COUNT];
    _Atomic chain_t spare[CLASS_COUNT];
    /* relaxed: bytes of coarse classes that missed since the last look at them, with how many the
     * next one comes, and looks that gave back what they found; see drain.h */
    _Atomic uint32_t coarse_missed, coarse_most, coarse_given;
    magazine_t *_Atomic
        /* by class: blocks whose home is another CPU; NULL until there is one; then for ever */
        outbox;
    _Atomic uint32_t busy;   /* the locked twin's try-lock */
    _Atomic uint32_t misses; /* relaxed: of all its magazines in this period; see adapt.c */
    struct area *next;       /* lock: AREAS; list of areas without a CPU */
} area_t;

enum {
    PERCPU_NONE = -1,
    TAG_KNOWN = 1,     /* no entry's tag is odd: it marks the tag of an outbox, */
    TAG_NONE = 1,      /* and is what a hot magazine has that no block is pushed on; see adapt.c */
    PERCPU_FEWEST = 4, /* slots, which fill the heap's line */
    PERCPU_MOST = 0x8000, /* slots; sections compare 16 bits */
};

/*
 * The table is not behind a pointer, because each section would wait for one load more, and has a
 * slot for every CPU of the machine. After it come the areas of all indexes and the list of areas
 * without a CPU: see percpu_areas and percpu_idle.
 */
typedef struct percpu {
    _Atomic uint32_t
        count; /* of table, for sections; 0 where the twin serves, or the heap goes away */
    _Atomic uint32_t slots;  /* of table, for all others; 0 where the heap goes away */
    area_t *_Atomic table[]; /* what sections load */
} percpu_t;

typedef enum percpu_mode { PERCPU_LOCKED, PERCPU_CPU_ID, PERCPU_MM_CID } percpu_mode_t;

/* Of the process; const after percpu_start_process. Offsets are from the thread pointer; sections
 * name them. */
extern ptrdiff_t percpu_rseq_offset
    __attribute__((visibility("hidden"))); /* the thread's struct rseq */
extern ptrdiff_t percpu_index_offset
    __attribute__((visibility("hidden"))); /* the field that is the index */
extern percpu_mode_t percpu_mode;
extern uint32_t percpu_slots; /* of each heap */
extern const area_t zero_area;

/* Chooses the mode; once a process, before the first heap. `wish`: NULL, "0", "locked" or "cpu". */
void percpu_start_process(const char *wish);
const char *percpu_mode_name(percpu_mode_t mode);

/* What a percpu_t takes, tables and all. */
HAK_INLINE size_t percpu_bytes(void)
{
    return sizeof(percpu_t) + percpu_slots * (sizeof(area_t * _Atomic) + sizeof(area_t *)) +
           sizeof(area_t *);
}
/* By index: its area, stopped or not; NULL: none. Lock: AREAS. */
HAK_INLINE area_t **percpu_areas(const percpu_t *percpu)
{
    return (area_t **)(uintptr_t)(percpu->table + percpu_slots);
}
/* Areas without a CPU. Lock: AREAS. */
HAK_INLINE area_t **percpu_idle(const percpu_t *percpu)
{
    return percpu_areas(percpu) + percpu_slots;
}

void percpu_init(percpu_t *percpu);
/* Every operation misses from now on. For a heap that is going away. */
void percpu_close(percpu_t *percpu);

/* An eighth of the byte offset into an area: how sections name a magazine, because addressing
 * multiplies by 8 for free and a granule's entry carries the class's number times 2. */
#define PERCPU_HOT(cls)   ((size_t)(cls) * sizeof(magazine_t) / 8)
#define PERCPU_SPARE(cls) ((offsetof(area_t, spare) + (size_t)(cls) * sizeof(chain_t)) / 8)

typedef enum push { PUSH_DONE, PUSH_MISSED, PUSH_AWAY } push_t;

/* The sections, or twins that always miss. */
#include "percpu_rseq.h"

/* ---- The operations in every mode, for the ladders. `word` is PERCPU_HOT or PERCPU_SPARE of the
 * class. ---- */

/* NULL: a miss. A push that misses may have written into the block. */
block_t *percpu_pop(percpu_t *percpu, size_t hot, uint64_t key, chain_t *link);
bool percpu_push(percpu_t *percpu, size_t hot, void *ptr, uint64_t key);
/* The same into the outbox; false also where there is none. */
bool percpu_post(percpu_t *percpu, size_t hot, void *ptr, uint64_t key);
chain_t percpu_take(percpu_t *percpu, size_t word);
chain_t percpu_take_outbox(percpu_t *percpu, size_t hot);
/* A chain into an empty magazine; false where it is not empty, the chain has more blocks than the
 * limit allows, or the area is stopped or missing. */
bool percpu_install(percpu_t *percpu, unsigned cls, size_t word, chain_t chain);

/* Says which blocks a hot magazine takes without a look at their home. */
HAK_INLINE void percpu_tag(area_t *area, unsigned cls, uint16_t tag)
{
    /* Relaxed: a home is a hint, and the rest of the tag never changes; see registry.h. */
    if (load_relaxed(&area->hot[cls].tag) != tag) store_relaxed(&area->hot[cls].tag, tag);
}

/* What a limit of so many blocks takes from the heap's budget: a hot magazine's is also the limit
 * of the spare one. */
HAK_INLINE size_t percpu_limit_bytes(const area_t *area, const magazine_t *magazine, unsigned cls,
                                     uint32_t blocks)
{
    return (magazine == &area->hot[cls] ? 2 : 1) * (size_t)blocks * size_classes[cls].bytes;
}

/* The index of the running thread, PERCPU_NONE where it can use no magazine. */
int percpu_index(void);

/* The area that sections of this index reach now; NULL where it is stopped or missing. Any thread,
 * no lock. */
area_t *percpu_running(percpu_t *percpu, unsigned index);

/* ---- Areas; lock: AREAS ---- */

/* The area of an index; NULL where there is none, or the index is beyond the table. */
area_t *percpu_area(const percpu_t *percpu, unsigned index);
/* Gives an index its area, zeroed but for its limits, and starts it. */
void percpu_adopt(percpu_t *percpu, unsigned index, area_t *area);
/* Halts all areas; after percpu_fence or, in the twin, at once, they belong to the caller. */
void percpu_halt(percpu_t *percpu);
/* One fence for any number of halted heaps. False: refused, and the halted may only be
 * restarted. */
bool percpu_fence(void);
void percpu_restart(percpu_t *percpu, unsigned index);
void percpu_restart_all(percpu_t *percpu);
/* Takes a halted area from its index, for another to adopt. */
void percpu_retire(percpu_t *percpu, unsigned index);

/*
 * Areas that have an index, one after another, and the words that each has of a class, in the order
 * of the ladder. Whether a chain may be followed is another matter: while an area runs, its chains
 * belong to its threads, and a link may be the program's data by the time it is read.
 *     FOR_AREAS (at, percpu)
 *         FOR_WORDS (kind, at) look(load_relaxed(area_word(at, cls, kind)));
 */
typedef struct area_at {
    area_t *area;       /* NULL: all were visited */
    magazine_t *outbox; /* NULL: it has none */
    unsigned index;
} area_at_t;

/* Acquire: pairs with the release in area_outbox. */
HAK_INLINE area_at_t area_at(area_t *area, unsigned index)
{
    return (area_at_t){area, area ? load_acquire(&area->outbox) : NULL, index};
}
/* The first from an index on. */
HAK_INLINE area_at_t area_at_from(const percpu_t *percpu, unsigned index)
{
    area_t *const *areas = percpu_areas(percpu);
    unsigned slots = load_relaxed(&percpu->slots);
    while (index < slots && !areas[index]) index++;
    return area_at(index < slots ? areas[index] : NULL, index);
}
#define FOR_AREAS(at, percpu)                                 \
    for (area_at_t at = area_at_from((percpu), 0); (at).area; \
         at = area_at_from((percpu), (at).index + 1))

typedef enum area_kind { AREA_HOT, AREA_SPARE, AREA_OUTBOX, AREA_KINDS } area_kind_t;
#define FOR_WORDS(kind, at) \
    for (unsigned kind = 0; kind < ((at).outbox ? AREA_KINDS : AREA_OUTBOX); kind++)

HAK_INLINE _Atomic chain_t *area_word(area_at_t at, unsigned cls, unsigned kind)
{
    if (kind == AREA_SPARE) return &at.area->spare[cls];
    return kind == AREA_HOT ? &at.area->hot[cls].word : &at.outbox[cls].word;
}
/* The magazine whose limit the word has: the spare word has the hot one's. */
HAK_INLINE magazine_t *area_magazine(area_at_t at, unsigned cls, unsigned kind)
{
    return kind == AREA_OUTBOX ? &at.outbox[cls] : &at.area->hot[cls];
}

/* Whether every word of these classes from `first` to before `end` in every area reads empty,
 * without stopping anybody. */
bool percpu_is_empty(const percpu_t *percpu, const class_bits_t *classes, unsigned first,
                     unsigned end);

#endif
