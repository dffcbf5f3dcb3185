/* hakheap level 0: base - compiler macros, named atomics, ranked lock, assert and fatal */
#ifndef HAK_BASE_H
#define HAK_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * Role: what every other file needs and libc does not name. No memory, no state but the calling
 * thread's lock ranks and its depth in the ladders.
 */

/* Build switches: `make DEBUG=1` compiles asserts and stall points in, `make COUNTERS=1`
 * counters. */
#ifndef HAK_DEBUG
#define HAK_DEBUG 0
#endif
#ifndef HAK_COUNTERS
#define HAK_COUNTERS 0
#endif

#define HAK_LIKELY(x)   __builtin_expect(!!(x), 1)
#define HAK_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define HAK_NOINLINE    __attribute__((noinline))
#define HAK_INLINE      static inline __attribute__((always_inline, unused))
#define HAK_COLD        __attribute__((cold, noinline))
#define HAK_HOT     \
    __attribute__(( \
        hot,        \
        aligned(64))) /* a cache line: how calls fall into lines must not depend on other code */

enum {
    HAK_LINE = 64,   /* a cache line */
    HAK_PAGE = 4096, /* the smallest unit the kernel gives and takes */
    HAK_PAGE_SHIFT = 12,
};

#define HAK_KIB ((size_t)1024)
#define HAK_MIB (1024 * HAK_KIB)
#define HAK_GIB (1024 * HAK_MIB)

#if defined(__x86_64__)
#define hak_pause() __builtin_ia32_pause()
#else
#define hak_pause() atomic_signal_fence(memory_order_seq_cst)
#endif

HAK_INLINE size_t hak_round_up(size_t n, size_t unit) { return (n + unit - 1) & ~(unit - 1); }
HAK_INLINE size_t hak_min(size_t a, size_t b) { return a < b ? a : b; }
HAK_INLINE size_t hak_max(size_t a, size_t b) { return a > b ? a : b; }

/* ---- Atomics, named by their order. A release names its acquire where it is used. ---- */

#define load_relaxed(p)        atomic_load_explicit((p), memory_order_relaxed)
#define load_acquire(p)        atomic_load_explicit((p), memory_order_acquire)
#define load_ordered(p)        atomic_load_explicit((p), memory_order_seq_cst)
#define store_relaxed(p, v)    atomic_store_explicit((p), (v), memory_order_relaxed)
#define store_release(p, v)    atomic_store_explicit((p), (v), memory_order_release)
#define store_ordered(p, v)    atomic_store_explicit((p), (v), memory_order_seq_cst)
#define add_relaxed(p, v)      atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define sub_relaxed(p, v)      atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define add_ordered(p, v)      atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define sub_release(p, v)      atomic_fetch_sub_explicit((p), (v), memory_order_release)
#define or_relaxed(p, v)       atomic_fetch_or_explicit((p), (v), memory_order_relaxed)
#define or_acquire(p, v)       atomic_fetch_or_explicit((p), (v), memory_order_acquire)
#define and_relaxed(p, v)      atomic_fetch_and_explicit((p), (v), memory_order_relaxed)
#define and_release(p, v)      atomic_fetch_and_explicit((p), (v), memory_order_release)
#define exchange_acquire(p, v) atomic_exchange_explicit((p), (v), memory_order_acquire)
#define exchange_acq_rel(p, v) atomic_exchange_explicit((p), (v), memory_order_acq_rel)
#define cas_relaxed(p, old, new)                                                   \
    atomic_compare_exchange_weak_explicit((p), (old), (new), memory_order_relaxed, \
                                          memory_order_relaxed)
/* The same where it is tried once: it fails only where the value is another. */
#define cas_once_relaxed(p, old, new)                                                \
    atomic_compare_exchange_strong_explicit((p), (old), (new), memory_order_relaxed, \
                                            memory_order_relaxed)
#define cas_release(p, old, new)                                                   \
    atomic_compare_exchange_weak_explicit((p), (old), (new), memory_order_release, \
                                          memory_order_relaxed)
#define cas_acquire(p, old, new)                                                     \
    atomic_compare_exchange_strong_explicit((p), (old), (new), memory_order_acquire, \
                                            memory_order_relaxed)

#define cas_acq_rel(p, old, new)                                                     \
    atomic_compare_exchange_strong_explicit((p), (old), (new), memory_order_acq_rel, \
                                            memory_order_relaxed)

/* ---- Asserts, in debug builds ---- */

#define hak_assert(x)                                                                   \
    do {                                                                                \
        if (HAK_DEBUG && HAK_UNLIKELY(!(x))) hak_assert_failed(#x, __FILE__, __LINE__); \
    } while (0)

_Noreturn void hak_assert_failed(const char *what, const char *file, int line);

/*
 * Ends the process after one line on standard error:
 *   hakheap: <code>: <operation> ptr=<p> heap="<name>" class=<bytes>: <words>
 * Async-signal-safe; allocates nothing. The line stays in `hak_fatal_line` for a core dump.
 */
typedef struct hak_fault {
    const char *code;      /* DOUBLE_FREE, FOREIGN, ... */
    const char *operation; /* free, malloc, check, ... */
    const void *ptr;
    const char *heap;   /* a heap's name, NULL where none is known */
    const char *other;  /* a second heap's name, for WRONG_HEAP */
    size_t class_bytes; /* bytes a block, 0 where none is known */
    const char *words;
} hak_fault_t;

extern char hak_fatal_line[512];
_Noreturn void hak_fatal(const hak_fault_t *fault);
void hak_complain(const hak_fault_t *fault); /* the line alone; no cancellation point */

/* ---- The lock: four bytes, waits in the kernel, knows its rank. ---- */

/* The one order in which locks nest: a thread takes only ranks above those it holds. */
typedef enum lock_rank {
    RANK_GATE_CLOSE = 1, /* one closer of the fork gate at a time */
    RANK_SQUEEZE,        /* one recall of a tree of heaps at a time */
    RANK_TRIM,           /* one trim or check of a heap at a time */
    RANK_AREAS,          /* a heap's areas: from stop to restart */
    RANK_CLASS,          /* one size class of one heap */
    RANK_HEAP,           /* a heap's SuperSlabs, large blocks and metadata pages */
    RANK_META,           /* the process's metadata pages */
    RANK_RESERVE,        /* the process's SuperSlabs: reservations, reserve, nursery */
    RANK_REGISTRY,       /* tables of the registry, written when they are made */
    RANK_TREE,           /* the process's trees of heaps */
} lock_rank_t;

typedef struct hak_lock {
    _Atomic uint32_t word; /* 0 free, 1 held, 2 held and a thread waits */
} hak_lock_t;

/* Waits for another thread to take a step, where no lock says whose turn it is: `turn` counts the
 * waits from 0. A few spins, then sleeps of some 50 us: a loop of yields never gives the CPU to a
 * thread of lower priority. No cancellation point. May change errno. */
void hak_wait(unsigned turn);

bool lock_try(hak_lock_t *lock, lock_rank_t rank);
void lock_acquire(hak_lock_t *lock, lock_rank_t rank);
void lock_release(hak_lock_t *lock, lock_rank_t rank);
/* The same of a lock that may be free: something has reset it since this thread took it. */
void lock_release_reset(hak_lock_t *lock, lock_rank_t rank);
/* Releases, and where a thread waits sleeps a moment, so that the other gets it: the lock is not
 * fair, and a thread that takes it again at once keeps it. May change errno. */
void lock_pass(hak_lock_t *lock, lock_rank_t rank);
/* Whether a thread waits for a lock that the caller holds, and that moment, for a caller that
 * releases several. */
HAK_INLINE bool lock_is_wanted(hak_lock_t *lock) { return load_relaxed(&lock->word) == 2; }
void lock_rest(void);
/* Waits only where the caller may; false: the lock is busy. */
HAK_INLINE bool lock_enter(hak_lock_t *lock, lock_rank_t rank, bool may_wait)
{
    if (!may_wait) return lock_try(lock, rank);
    lock_acquire(lock, rank);
    return true;
}
/* For check, which holds every class lock of one heap at once: same rank, in the order of the class
 * index. */
void lock_acquire_next(hak_lock_t *lock, lock_rank_t rank);
void lock_release_next(hak_lock_t *lock);
/* Debug builds: a bit for each rank that this thread holds; else 0. */
uint32_t lock_ranks(void);
HAK_INLINE bool lock_is_held(hak_lock_t *lock) { return load_relaxed(&lock->word) != 0; }

#endif
