/**
 * @file hakheap.h
 * @brief Embeddable, instance-based heaps: one `hak_heap_t` per subsystem, tenant or query.
 *
 * A heap owns its memory (2 MiB SuperSlabs) and its caches (magazines, one set per heap and CPU).
 * Any thread may allocate from any heap at any time and any thread may free; no call needs a
 * per-thread set-up, and nothing is left behind when a thread ends. A heap can be flushed, trimmed,
 * measured, reset and destroyed on its own while the rest of the program runs. malloc is never
 * replaced.
 *
 * **Errors.** Calls that return a pointer return NULL and set `errno`. Control calls return 0 or an
 * errno value and leave `errno` alone, as do free, flush and trim. A call that is a bug of the
 * caller (a foreign pointer, a double free, a block freed into the wrong heap) prints one line that
 * begins with `hakheap: <CODE>:` on standard error and calls `abort()`. Where memory is refused,
 * every existing block and all state are as they were.
 *
 * **Thread-safety.** Every function may be called from every thread at any time unless its
 * description says otherwise. In a signal handler that interrupted this library, in the same
 * thread, control calls return EDEADLK, and flush and trim 0 (hak_last_error() is
 * HAK_ERROR_REENTERED). The one rule is that a program destroys or resets a heap only after every
 * other call that names the heap or frees one of its blocks.
 *
 * **Copies.** Each module that links the static library has a copy of its own, whose blocks no
 * other copy knows. Where blocks cross modules, all of them link the shared library.
 *
 * **fork.** A child may use every heap at once. vfork children and children made with CLONE_VM must
 * not call this library.
 *
 * **Signals.** free may be called from a signal handler, and never waits for what the handler has
 * interrupted. malloc in a handler that
 * has interrupted this library in the same thread may return NULL with `errno` EDEADLK; it never
 * deadlocks.
 */
#ifndef HAKHEAP_H
#define HAKHEAP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Major version of this header. */
#define HAK_VERSION_MAJOR 0
/** Minor version of this header. */
#define HAK_VERSION_MINOR 1
/** Patch version of this header. */
#define HAK_VERSION_PATCH 0
/** The version of this header as one number: major * 10000 + minor * 100 + patch. */
#define HAK_VERSION (HAK_VERSION_MAJOR * 10000 + HAK_VERSION_MINOR * 100 + HAK_VERSION_PATCH)

/** @cond internal */
#if defined(__GNUC__)
#define HAK_API             __attribute__((visibility("default")))
#define HAK_NODISCARD       __attribute__((warn_unused_result))
#define HAK_MALLOC          __attribute__((malloc))
#define HAK_ALLOC_SIZE(...) __attribute__((alloc_size(__VA_ARGS__)))
#define HAK_ALLOC_ALIGN(n)  __attribute__((alloc_align(n)))
#else
#define HAK_API
#define HAK_NODISCARD
#define HAK_MALLOC
#define HAK_ALLOC_SIZE(...)
#define HAK_ALLOC_ALIGN(n)
#endif
/** @endcond */

/** An instance heap. Created by hak_heap_create(), owned by the caller until hak_heap_destroy(). */
typedef struct hak_heap hak_heap_t;

/** How much a heap checks. Chosen at create; heaps of different levels live side by side. */
typedef enum hak_level {
    /** What the environment variable HAKHEAP_LEVEL names (fast, checked), else HAK_LEVEL_FAST. */
    HAK_LEVEL_DEFAULT = 0,
    /** Catches foreign, misaligned and wrong-heap pointers, and frees of memory that the heap has
     * given back. */
    HAK_LEVEL_FAST = 1,
    /** FAST, and of small blocks double frees, writes after free, interior pointers and wrong
     * sizes, as far as
     *  docs/reliability.md says. */
    HAK_LEVEL_CHECKED = 2,
    /** Reserved: hak_heap_create() refuses it with ENOTSUP. */
    HAK_LEVEL_HARDENED = 3
} hak_level_t;

/**
 * Told that a limit refuses a request, before the request fails, and that a soft limit is passed,
 * after the request has succeeded. It runs once for a request, on the thread that asks, with nothing
 * locked: it may free blocks of any heap, also of this one, allocate
 * in heaps that are not below the full one, lower or raise limits, and leave by longjmp(). It may
 * not destroy or reset the full heap, or one above or below it, nor free the block that a realloc
 * asks for. Afterwards the request is tried once more. A request that is refused in a callback, or
 * in a signal handler that interrupts it, calls none. So a program that leaves by longjmp() calls
 * hak_heap_refused_by() where it lands: without that, a request from deeper in the stack than the
 * one that was left would count as one of the callback.
 * @param ctx what the config of the full heap says.
 * A callback of a soft limit that is left so loses the block of its request.
 * @param full the heap whose limit refuses, or whose soft limit is passed.
 * @param bytes what the request is charged; 0: a soft limit is passed.
 */
typedef void (*hak_pressure_fn)(void *ctx, hak_heap_t *full, size_t bytes);

/** A limit that refuses nothing, for a heap that shall count, or may get a limit later. */
#define HAK_NO_LIMIT SIZE_MAX

/** What a heap is created with. Initialise with #HAK_HEAP_CONFIG_INIT, then set fields. */
typedef struct hak_heap_config {
    /** Size of this struct in bytes. Set by #HAK_HEAP_CONFIG_INIT. */
    size_t struct_size;
    /** Name used in every report and error line; copied, cut to 31 bytes. NULL: "unnamed". */
    const char *name;
    /** What to check on every call. */
    hak_level_t level;
    /** Must be 0. */
    uint32_t flags;
    /**
     * Bytes that all of the heap's magazines (hot, spare, cold and outboxes) together may hold
     * free. 0: the environment variable HAKHEAP_CACHE_BYTES, else 32 MiB. At most 1 GiB. Magazines
     * also stay a fraction of the blocks in use.
     */
    size_t cache_bytes;
    /**
     * Bytes of freed large blocks that the heap may leave to the process, with their pages, for
     * large blocks of any heap; what is beyond goes to the system at once. How much of it all heaps
     * together keep, and for how long, hak_reserve_set_limit() says. 0: the environment variable
     * HAKHEAP_LARGE_CACHE_BYTES, else 64 GiB, which is the most.
     */
    size_t large_cache_bytes;
    /**
     * Bytes of blocks of one size class, of 4 KiB at most, that lie in regions, side by side with
     * blocks of other sizes, before the class gets pages and magazines of its own. More makes a small heap denser,
     * less makes its malloc and free faster. 0: the environment variable HAKHEAP_REGION_BYTES, else
     * 32 KiB. At most 1 MiB; 1: every class has pages of its own from its first block on.
     */
    size_t region_bytes;
    /**
     * The heap above this one, or NULL. What this heap has live counts in all heaps above it, and
     * is bounded by their limits. Destroying or resetting a heap destroys all heaps below it. The
     * parent must count: see `live_limit`.
     */
    hak_heap_t *parent;
    /**
     * Bytes that this heap and all heaps below it may have live together: for each block
     * hak_good_size() of what was asked for. A request beyond it fails with ENOMEM and
     * HAK_ERROR_LIMIT, at the same byte whatever caches hold. #HAK_NO_LIMIT: none, but the heap
     * counts. 0: none, and a heap without parent does not count: it costs nothing, and can neither
     * get a limit nor a child later.
     */
    size_t live_limit;
    /**
     * Bytes that this heap and all heaps below it may use together, whatever lies in them: granules
     * (16 KiB) in use, free pages that may have been written, large blocks, and records. A request
     * that would need more fails as with `live_limit`; before that, caches of this heap and of those
     * below go back, and with them free pages and empty granules. No heap is ever above it. It is
     * coarse: what fits depends on how the blocks lie. An empty heap has 16 KiB; 0 and #HAK_NO_LIMIT:
     * none. What heaps share counts for none of them: see docs/design.md.
     */
    size_t committed_limit;
    /**
     * Bytes of live blocks of which `on_pressure` is told once this heap and all heaps below it have
     * more, and once more after there was an eighth less of them. Refuses nothing. What caches hold
     * and heaps have borrowed ahead counts. Below both other limits. 0 and #HAK_NO_LIMIT: none.
     */
    size_t soft_limit;
    /** Called before a request fails because this heap is full; NULL: nothing is. */
    hak_pressure_fn on_pressure;
    /** Passed to `on_pressure`. */
    void *pressure_ctx;
} hak_heap_config_t;

/** A config of defaults, for this version of the struct. */
#define HAK_HEAP_CONFIG_INIT                                                                      \
    {                                                                                             \
        sizeof(hak_heap_config_t), NULL, HAK_LEVEL_DEFAULT, 0, 0, 0, 0, NULL, 0, 0, 0, NULL, NULL \
    }

/**
 * Creates a heap.
 * @param config what to create, or NULL for defaults; read during the call only.
 * @return the heap, owned by the caller; NULL and `errno`: EINVAL (a struct size, flag, level or
 *         value that this version does not know, a parent that is destroyed or does not count, or
 *         limits that do not fit each other or an empty heap: hak_last_error() says which),
 *         E2BIG (the parent is the 32nd of its chain), ENOTSUP (HAK_LEVEL_HARDENED, or a system whose
 *         pages are not of 4096 bytes), ENOMEM (the system refused memory, or a `committed_limit`
 *         above: hak_heap_refused_by() of the parent says whose), EDEADLK (in a signal
 *         handler that interrupted this library). The first call of a process waits for another
 *         thread's first call. No cancellation point.
 */
HAK_API HAK_NODISCARD hak_heap_t *hak_heap_create(const hak_heap_config_t *config);

/**
 * Destroys a heap and every block in it, and before that all heaps below it. Takes time that follows
 * the number of SuperSlabs and large blocks, not the number of blocks.
 * @param heap the heap. Every other call that names it or a heap below it, as its parent too, or
 *         frees one of their blocks must have happened before. Heaps above it, and others below
 *         those, may be used meanwhile.
 * @return 0; EINVAL (NULL, or a heap that is already destroyed).
 */
HAK_API int hak_heap_destroy(hak_heap_t *heap);

/**
 * Frees every block of a heap at once and keeps the heap; heaps below it are destroyed.
 * @param heap the heap. No other call on it or its blocks may run at the same time, nor one on heaps
 *         below it: see hak_heap_destroy().
 * @return 0; EINVAL (NULL, or a destroyed heap).
 */
HAK_API int hak_heap_reset(hak_heap_t *heap);

/**
 * Allocates a block aligned to 16 bytes, with undefined content.
 * @param heap the heap.
 * @param size bytes; 0 gives a unique block that can be freed.
 * @return the block, owned by the caller; NULL and `errno`: EINVAL (NULL or destroyed heap), ENOMEM
 *         (no memory, a size that no system could map, or a limit: hak_last_error() says which),
 *         EDEADLK (called from a signal handler
 *         that interrupted this library).
 */
HAK_API HAK_NODISCARD void *hak_heap_malloc(hak_heap_t *heap, size_t size) HAK_MALLOC
    HAK_ALLOC_SIZE(2);

/**
 * Allocates a block of `count * size` zero bytes, aligned to 16 bytes.
 * @param heap the heap.
 * @param count number of elements.
 * @param size bytes an element.
 * @return as hak_heap_malloc(); a product that overflows gives NULL and ENOMEM.
 */
HAK_API HAK_NODISCARD void *hak_heap_calloc(hak_heap_t *heap, size_t count, size_t size) HAK_MALLOC
    HAK_ALLOC_SIZE(2, 3);

/**
 * Changes the size of a block, moving it where that is needed.
 * @param heap the heap that `ptr` belongs to.
 * @param ptr the block, or NULL for hak_heap_malloc().
 * @param size the size in bytes; 0 gives a minimal block, never a hidden free.
 * @return the block, which replaces `ptr`; on failure NULL and `errno` as hak_heap_malloc(), and
 *         `ptr` is still whole and still the caller's. Content up to the smaller size is kept.
 */
HAK_API HAK_NODISCARD void *hak_heap_realloc(hak_heap_t *heap, void *ptr, size_t size)
    HAK_ALLOC_SIZE(3);

/**
 * Allocates a block with a given alignment.
 * @param heap the heap.
 * @param alignment a power of two, in bytes; may be larger than a page or a SuperSlab.
 * @param size bytes; need not be a multiple of `alignment`.
 * @return as hak_heap_malloc(); an alignment that is no power of two gives NULL and EINVAL.
 */
HAK_API HAK_NODISCARD void *hak_heap_aligned_alloc(hak_heap_t *heap, size_t alignment,
                                                   size_t size) HAK_MALLOC HAK_ALLOC_SIZE(3)
    HAK_ALLOC_ALIGN(2);

/**
 * Frees a block. Preserves `errno`. Where another thread works on the same size class, the block is
 * left to it; only where as many blocks wait as `cache_bytes` allows, or 65,535 of the class, does
 * the call wait, for a step of the other thread (some hundred blocks). In a signal handler that
 * interrupted this library, and during a fork, it never waits.
 * @param heap the heap that the block came from; NULL, with a block, aborts with code HEAP.
 * @param ptr the block, or NULL. What is no block of this heap aborts with code WRONG_HEAP,
 *         FOREIGN, INTERIOR, DOUBLE_FREE, DESTROYED or CORRUPT, as far as the heap's level catches
 *         it: see docs/reliability.md.
 */
HAK_API void hak_heap_free(hak_heap_t *heap, void *ptr);

/**
 * Frees a block whose size the caller knows, as hak_heap_free().
 * @param heap the heap that the block came from.
 * @param ptr the block, or NULL.
 * @param size the size it was last asked for by malloc, calloc or realloc; of a block from
 *         hak_heap_aligned_alloc(), that size, at least 1, rounded up to the alignment. In CHECKED
 *         heaps a size that this block cannot have aborts with code SIZE.
 */
HAK_API void hak_heap_free_sized(hak_heap_t *heap, void *ptr, size_t size);

/**
 * Frees a block of whatever heap, as hak_heap_free().
 * @param ptr a block of any heap, or NULL; any other pointer aborts.
 */
HAK_API void hak_free(void *ptr);

/**
 * How large a block is. More than was asked for belongs to the caller only once it is asked for:
 * the compiler is told what was (`alloc_size`), and ends a program that writes beyond it
 * (_FORTIFY_SOURCE=3). `hak_heap_realloc(heap, ptr, hak_usable_size(ptr))` asks: it returns `ptr`,
 * never moves the block and never fails.
 * @param ptr the start of a live block of any heap.
 * @return bytes, at least what was asked for; 0 for NULL and for every pointer that is in no heap.
 *         Never faults.
 */
HAK_API size_t hak_usable_size(const void *ptr);

/**
 * The size of the class that serves a request: asking for it costs no more memory than asking for
 * `size`. For callers that grow buffers: what is asked for may be used.
 * @param size bytes.
 * @return bytes, at least `size`; `size` itself where no heap could serve it.
 */
HAK_API size_t hak_good_size(size_t size);

/**
 * The heap that a pointer belongs to.
 * @param ptr any value at all.
 * @return the heap that owns the memory at `ptr`; NULL for a foreign pointer. Never faults, never
 *         reads at `ptr`.
 */
HAK_API hak_heap_t *hak_heap_of(const void *ptr);

/**
 * Enters a scope: from here on the calling thread's requests that name no heap, those of
 * hak_scope_malloc() and its kind, are served by this heap. For hooks that carry no context, such
 * as those of SQLite, OpenSSL, libcurl and libxml2. Scopes nest; each is left by the thread that
 * entered it, with what entering it has returned:
 *
 *     hak_heap_t *outer = hak_scope_enter(heap);
 *     ...
 *     hak_scope_leave(outer);
 *
 * No thread inherits a scope: another thread, begun inside of it too, has none. Costs one
 * thread-local pointer; never fails. The heap is not looked at before it is asked for a block, and
 * must not be destroyed before the scope is left.
 * @param heap the heap; NULL for the process's default.
 * @return the heap of the scope around this one, for hak_scope_leave(); NULL where there is none.
 */
HAK_API hak_heap_t *hak_scope_enter(hak_heap_t *heap);

/**
 * Leaves a scope. A program that jumps out of a scope (longjmp, a C++ exception) leaves it itself.
 * @param outer what hak_scope_enter() has returned.
 */
HAK_API void hak_scope_leave(hak_heap_t *outer);

/** @return the heap that serves the calling thread's next hak_scope_malloc(): that of its scope, or
 *          the process's default; NULL where there is neither. */
HAK_API hak_heap_t *hak_scope_heap(void);

/**
 * Names the heap that serves requests of threads that are in no scope. Thread-safe.
 * @param heap the heap, which must not be destroyed before another one is named; NULL for none.
 * @return 0; EINVAL (destroyed heap).
 */
HAK_API int hak_scope_set_default(hak_heap_t *heap);

/**
 * hak_heap_malloc() from the current scope's heap. hak_free() frees the block, in whatever scope.
 * @param size bytes.
 * @return as hak_heap_malloc(); NULL and EINVAL where there is neither a scope nor a default.
 */
HAK_API HAK_NODISCARD void *hak_scope_malloc(size_t size) HAK_MALLOC HAK_ALLOC_SIZE(1);

/**
 * hak_heap_calloc() from the current scope's heap.
 * @param count number of elements.
 * @param size bytes an element.
 * @return as hak_scope_malloc(); a product that overflows gives NULL and ENOMEM.
 */
HAK_API HAK_NODISCARD void *hak_scope_calloc(size_t count, size_t size) HAK_MALLOC
    HAK_ALLOC_SIZE(1, 2);

/**
 * Changes the size of a block as hak_heap_realloc(). The block stays in the heap it came from,
 * whatever the scope: what one owner has is not charged to another.
 * @param ptr the block, or NULL for hak_scope_malloc().
 * @param size the size in bytes; 0 gives a minimal block, never a hidden free.
 * @return as hak_heap_realloc().
 */
HAK_API HAK_NODISCARD void *hak_scope_realloc(void *ptr, size_t size) HAK_ALLOC_SIZE(2);

/**
 * Returns every cached block of a heap, on every CPU, to its slab. Synchronous; other threads may
 * allocate and free meanwhile. Blocks that another thread holds in the middle of a call are not
 * reached. Preserves `errno`.
 * @param heap the heap.
 * @return bytes moved from caches to slabs; 0 where there was nothing, or where heap is NULL or
 *         destroyed. Where the kernel refused the fence, hak_last_error() is HAK_ERROR_FENCE, and
 *         only what the running CPU had cached has moved.
 */
HAK_API size_t hak_heap_flush(hak_heap_t *heap);

/**
 * hak_heap_flush() for one size class.
 * @param heap the heap.
 * @param size_class an index below hak_size_class_count(); others move nothing.
 * @return as hak_heap_flush().
 */
HAK_API size_t hak_heap_flush_class(hak_heap_t *heap, unsigned size_class);

/**
 * Flushes a heap, then returns free memory to the operating system: pages of large blocks that it
 * left to the process, free pages of SuperSlabs, whole pages inside slabs that no block overlaps. Other threads may use the
 * heap meanwhile, and wait for no more than a SuperSlab's pages; trims of one heap go one after
 * another. Preserves `errno`.
 * @param heap the heap.
 * @param keep_bytes how many bytes of free memory the heap may keep for itself.
 * @return bytes returned to the operating system; 0 also where heap is NULL or destroyed, or where
 *         the fence was refused (hak_last_error() is HAK_ERROR_FENCE). Where the kernel does not
 *         take memory back, hak_last_error() is HAK_ERROR_PURGE, and the memory stays counted and
 *         usable.
 */
HAK_API size_t hak_heap_trim(hak_heap_t *heap, size_t keep_bytes);

/**
 * Returns to the operating system what destroyed, reset and trimmed heaps left in the process-wide
 * reserve, and what the nursery and the record pages hold free. Any thread. Preserves `errno`.
 * Errors as hak_heap_trim().
 * @return bytes returned.
 */
HAK_API size_t hak_reserve_trim(void);

/**
 * How much memory the process may keep that no heap holds: empty SuperSlabs, free pages of the
 * nursery, and pages of freed large blocks. Inside this bound it keeps as much as was in use in the last second or so, and gives the
 * rest back as time goes on: now and then an allocation, of any heap, that finds no block in its
 * caches looks at the clock, and each one of a large block does. So a process that stops calling keeps what it has until
 * hak_reserve_trim(). Any thread.
 * @param bytes the bound; 0 keeps nothing, SIZE_MAX whatever was in use. Until the first call: the
 *        environment variable HAKHEAP_RESERVE_BYTES, else an eighth of the machine's memory.
 * @return 0, with what is beyond the bound given back; EDEADLK (in a signal handler that
 *         interrupted this library); ENOMEM, ENOTSUP (the library cannot be set up, as in
 *         hak_heap_create()).
 */
HAK_API int hak_reserve_set_limit(size_t bytes);

/* ---- Limits and trees ---- */

/** What heaps may have live and in use, as in hak_heap_config_t; 0: as #HAK_NO_LIMIT. Initialise
 * `struct_size` with the size of the struct. */
typedef struct hak_limits {
    /** Size of this struct in bytes; set by the caller. */
    size_t struct_size;
    /** Bytes of live blocks. */
    size_t live_limit;
    /** Bytes of memory in use. */
    size_t committed_limit;
    /** Bytes of live blocks of which `on_pressure` is told. */
    size_t soft_limit;
} hak_limits_t;

/**
 * Changes all limits of a heap. Where more is in use than they allow, what this heap and those below
 * it have cached, and memory that they have free, goes back first. Any thread. No cancellation
 * point.
 * @param heap a heap that counts: see `live_limit` in hak_heap_config_t.
 * @param limits the limits; read during the call only.
 * @return 0; EBUSY (more is live, or in use, and no limit has changed); EAGAIN (the kernel refused the fence);
 *         EINVAL (NULL or destroyed heap, one that does not count, a struct size that this version
 *         does not know, or limits that hak_heap_create() would refuse: see hak_last_error()); EDEADLK (in a signal handler that interrupted this library).
 */
HAK_API int hak_heap_set_limits(hak_heap_t *heap, const hak_limits_t *limits);

/**
 * Moves a heap, with all heaps below it, below another parent. Any thread; other threads may use
 * all these heaps meanwhile. Which callbacks a request meets changes with the move.
 * @param heap a heap that counts.
 * @param parent a heap that counts, or NULL: `heap` becomes the root of a tree of its own.
 * @return 0; ENOMEM and HAK_ERROR_LIMIT (a heap above the new place has no room for what is live);
 *         EINVAL (NULL or destroyed heap, one that does not count, or `parent` lies below `heap`, or
 *         is `heap`); E2BIG (the tree would have more than 32 levels; a heap counts as many below
 *         it as it ever had, until it has none); EAGAIN (the kernel refused the fence); EDEADLK as
 *         above. Where it is not 0, nothing has changed but that caches may be empty.
 */
HAK_API int hak_heap_move(hak_heap_t *heap, hak_heap_t *parent);

/** A callback of hak_heap_on_destroy(), in memory of the caller. */
typedef struct hak_on_destroy {
    /** Written by the library. */
    struct hak_on_destroy *next;
    /**
     * Runs once. The heap still gives and takes blocks; the callback may not destroy or reset it.
     * @param ctx the field below.
     * @param heap the heap whose blocks go.
     */
    void (*run)(void *ctx, hak_heap_t *heap);
    /** Passed to `run`. */
    void *ctx;
} hak_on_destroy_t;

/**
 * Has a callback run before the blocks of a heap go, by hak_heap_destroy() or hak_heap_reset() of it
 * or of a heap above it: to close what its blocks refer to. The callback registered last runs first,
 * on the thread that destroys, with nothing locked; those of heaps below have run by then. Any
 * thread. Never waits, never fails for lack of memory.
 * @param heap the heap.
 * @param node the callback, with `run` and `ctx` set. It may lie in the heap itself, and must stay as
 *         it is until it has run.
 * @return 0; EINVAL (NULL or destroyed heap, NULL node, or one without `run`).
 */
HAK_API int hak_heap_on_destroy(hak_heap_t *heap, hak_on_destroy_t *node);

/**
 * Closes a heap: from here on it gives no block, and frees go on. A request fails with ESHUTDOWN
 * and HAK_ERROR_CLOSED; a realloc still succeeds where the block can stay in its place. What caches
 * hold goes back. There is no way to open a heap again. Any thread.
 * @param heap the heap. Heaps below it stay open.
 * @return 0, also where it is closed already; EAGAIN (the kernel refused the fence, and the heap is
 *         open); EINVAL (NULL or destroyed heap); EDEADLK (in a signal handler that interrupted this
 *         library).
 */
HAK_API int hak_heap_close(hak_heap_t *heap);

/**
 * Destroys a heap that has no live block and no heap below it: for subsystems that must have freed
 * everything.
 * @param heap the heap. No other call may use it meanwhile, as for hak_heap_destroy().
 * @param blocks receives the number of live blocks where that is not 0; may be NULL.
 * @return 0; EBUSY (there are live blocks, or heaps below it; nothing has changed); EINVAL, EDEADLK
 *         as hak_heap_close().
 */
HAK_API int hak_heap_destroy_if_empty(hak_heap_t *heap, size_t *blocks);

/** What a heap that counts, and all heaps below it, have in use. Bytes. */
typedef struct hak_usage {
    /** Size of this struct in bytes; set by the caller, and no more than that is written. */
    size_t struct_size;
    /** Blocks of this heap in the program's hands or in caches, by what they are charged. */
    size_t live_bytes;
    /** The same with all heaps below, and with what each has borrowed ahead from its limit: what
     * the limit is held to. Exact after this heap has refused a request, until heaps borrow again;
     * at most #live_limit always. */
    size_t tree_bytes;
    /** The highest `tree_bytes` so far. */
    size_t tree_peak_bytes;
    /** The limit; #HAK_NO_LIMIT: none. */
    size_t live_limit;
    /** Memory that this heap alone uses, as `committed_limit` counts it; at least `live_bytes`. */
    size_t committed_bytes;
    /** The highest `committed_bytes` so far. */
    size_t peak_bytes;
    /** `committed_bytes` of this heap and all heaps below, and room that they keep for what they
     * allocate next: what the limit is held to; at most #committed_limit always. */
    size_t tree_committed_bytes;
    /** The highest `tree_committed_bytes` so far. */
    size_t tree_committed_peak_bytes;
    /** The limit; #HAK_NO_LIMIT: none. */
    size_t committed_limit;
    /** The soft limit; #HAK_NO_LIMIT: none. */
    size_t soft_limit;
    /** Requests that failed because this heap was full, by `live_limit` or `committed_limit`, of
     * this heap and of those below. */
    size_t refusals;
    /** Part of `refusals`: by `committed_limit`. */
    size_t committed_refusals;
    /** Requests of this heap that failed: a limit of its own refused them. */
    size_t failed_here;
    /** A limit of a heap above refused them. */
    size_t failed_above;
    /** The system refused memory, or the fence. */
    size_t failed_system;
    /** The heap was closed, or the call came from a signal handler that had interrupted the library. */
    size_t failed_turned_away;
    /** Requests of this heap and of all below that failed for one of the first three reasons. What
     * a heap had counted stays when it goes. */
    size_t tree_failed;
} hak_usage_t;

/**
 * Reads what a heap has in use, without a lock and without a walk: some loads, however large the
 * heap and its tree are. Any thread, at any time; while others work each figure is of a moment of
 * its own, inside the bounds that hak_usage_t states.
 * @param heap a heap that counts.
 * @param out receives the figures; `out->struct_size` must be set.
 * @return 0; EINVAL (NULL or destroyed heap, one that does not count, or a struct size smaller than
 *         its first field).
 */
HAK_API int hak_heap_usage(const hak_heap_t *heap, hak_usage_t *out);

/**
 * Which heap was full. Any thread. Ends a callback that was left by longjmp(): see hak_pressure_fn.
 * @param heap a heap that counts.
 * @return the heap whose limit refused the last request of `heap` that failed with HAK_ERROR_LIMIT:
 *         `heap` itself or one above it; NULL where none has, or that one is above it no longer, or
 *         `heap` is NULL, destroyed or does not count.
 */
HAK_API hak_heap_t *hak_heap_refused_by(const hak_heap_t *heap);

/** Figures of one heap. All sizes in bytes. Exact when no other call runs on the heap, and no limit
 *  refuses a call on another heap of its tree; otherwise no part, and no sum of parts, is above
 *  `committed_bytes`, of which `large_cached_bytes` is none. At any time `large_bytes` is at most
 *  `live_bytes`, `phantom_superslabs` at most `superslabs`, and `resident_bytes` and
 *  `committed_bytes` at most `peak_bytes` and `mapped_bytes`. */
typedef struct hak_stats {
    /** Size of this struct in bytes; set by the caller, and no more than that is written. */
    size_t struct_size;
    /** Blocks in the program's hands, by usable size. */
    size_t live_bytes;
    /** Number of such blocks. */
    size_t live_blocks;
    /** Free blocks in hot magazines. */
    size_t hot_bytes;
    /** Free blocks in spare magazines. */
    size_t spare_bytes;
    /** Free blocks in cold chains. */
    size_t cold_bytes;
    /** Free blocks on remote lists and in outboxes. */
    size_t remote_bytes;
    /** What the heap left to the process of freed large blocks, as far as no block has taken it and
     *  it has not gone to the system. hak_heap_trim() returns it. No part of `committed_bytes`. */
    size_t large_cached_bytes;
    /** Free memory in slabs and SuperSlabs that has been used before. */
    size_t free_bytes;
    /** Memory in slabs and SuperSlabs that was not written since it came from the system. */
    size_t untouched_bytes;
    /** The allocator's own records for this heap. */
    size_t metadata_bytes;
    /** Readable and writable memory the heap holds: the sum of all the above. */
    size_t committed_bytes;
    /** The highest `committed_bytes` so far. */
    size_t peak_bytes;
    /** Address space the heap holds. */
    size_t mapped_bytes;
    /** SuperSlabs the heap owns. */
    size_t superslabs;
    /** SuperSlabs that are in use, but hold no live block for certain, so that a flush gives them
     *  back: as many as are more than what the live blocks could lie in, if they lay as far from
     *  each other as they can. There may be more. Zero after a flush. */
    size_t phantom_superslabs;
    /** Live large blocks. */
    size_t large_blocks;
    /** Their bytes, part of `live_bytes`. */
    size_t large_bytes;
    /** Part of `committed_bytes`: what has been written, or handed out to be, and not been given
     *  back to the system. Of slabs and of free memory each page is known. Blocks of more than
     *  32 KiB count whole, whether or not the program has written all of them; so do the
     *  allocator's records. hak_heap_trim() lowers it by what it returns of this. */
    size_t resident_bytes;
} hak_heap_stats_t;

/**
 * Measures a heap, without stopping other threads. Cheap enough to be called often: it reads sums,
 * whose number follows size classes in use and CPUs, and not blocks or memory.
 * @param heap the heap.
 * @param out receives the figures; `out->struct_size` must be set.
 * @return 0; EINVAL (NULL, destroyed heap, or a struct size smaller than its first field).
 */
HAK_API int hak_heap_stats(const hak_heap_t *heap, hak_heap_stats_t *out);

/** Figures of one size class of one heap. Sizes are numbers of blocks. */
typedef struct hak_class_stats {
    /** Size of this struct in bytes; set by the caller, and no more than that is written. */
    size_t struct_size;
    /** Bytes a block. */
    size_t block_bytes;
    /** Slabs of this class. */
    size_t slabs;
    /** Blocks in the program's hands. */
    size_t live_blocks;
    /** Free blocks in hot magazines. */
    size_t hot_blocks;
    /** Free blocks in spare magazines. */
    size_t spare_blocks;
    /** Free blocks in cold chains. */
    size_t cold_blocks;
    /** Free blocks on the remote list and in outboxes. */
    size_t remote_blocks;
    /** Free blocks in slabs that have been used before. */
    size_t free_blocks;
    /** Blocks in slabs that was not written since the slab was made. */
    size_t untouched_blocks;
} hak_class_stats_t;

/**
 * Measures one size class of a heap.
 * @param heap the heap.
 * @param size_class an index below hak_size_class_count().
 * @param out receives the figures; `out->struct_size` must be set.
 * @return 0; EINVAL as hak_heap_stats(), or an unknown class.
 */
HAK_API int hak_heap_class_stats(const hak_heap_t *heap, unsigned size_class,
                                 hak_class_stats_t *out);

/** @return the number of size classes. */
HAK_API unsigned hak_size_class_count(void);

/**
 * @param size_class an index below hak_size_class_count().
 * @return bytes a block; 0 for an unknown class.
 */
HAK_API size_t hak_size_class_bytes(unsigned size_class);

/**
 * @param size bytes.
 * @return the smallest class that holds `size`, or hak_size_class_count() where blocks of that size
 *         have no class. A heap with few blocks may serve it from a larger class; hak_usable_size()
 *         tells which.
 */
HAK_API unsigned hak_size_class_of(size_t size);

/**
 * Proves a heap sound: walks every slab, magazine, chain and large block, finds each block exactly
 * once and compares the sums with the counts the heap keeps; what a heap is charged with what it has
 * only where the process has one thread. Allocations of other threads that miss their magazines wait
 * meanwhile; frees do not, they go without a cache.
 * @param heap the heap.
 * @return 0; EFAULT after a line on standard error that says what is wrong; EINVAL (NULL or
 *         destroyed heap); ENOMEM (no memory for the walk); EAGAIN (the kernel refused the fence).
 */
HAK_API int hak_heap_check(const hak_heap_t *heap);

/**
 * Receives a piece of report text.
 * @param ctx what was given to hak_heap_report().
 * @param text the text, not terminated, valid during the call only.
 * @param length its length in bytes.
 * @return 0 to go on; anything else ends the report.
 */
typedef int (*hak_write_fn)(void *ctx, const char *text, size_t length);

/**
 * Writes the state of a heap as aligned text: totals, classes in use and, in builds with
 * COUNTERS=1, the counters of refill stages, the free pipeline and early returns. Allocates
 * nothing; holds no lock while `write` runs, which may call anything, on this heap too.
 * @param heap the heap.
 * @param write receives the text in pieces.
 * @param ctx passed to `write`.
 * @return 0; EINVAL (NULL or destroyed heap, NULL write); ECANCELED (`write` did not return 0).
 */
HAK_API int hak_heap_report(const hak_heap_t *heap, hak_write_fn write, void *ctx);

/** Why the calling thread's last call that failed did so, more exactly than `errno` can say. */
typedef enum hak_error {
    HAK_ERROR_NONE = 0,  /**< Nothing has failed. */
    HAK_ERROR_ARGUMENT,  /**< A NULL or destroyed heap, or an argument out of its range. */
    HAK_ERROR_SIZE,      /**< A size, product or alignment beyond the address space. */
    HAK_ERROR_RESERVE,   /**< The system refused address space. */
    HAK_ERROR_COMMIT,    /**< The system refused memory. */
    HAK_ERROR_PURGE,     /**< The system refused to take memory back; it is still counted. */
    HAK_ERROR_FENCE,     /**< The system refused membarrier; other CPUs' caches were not flushed. */
    HAK_ERROR_REENTERED, /**< A signal handler interrupted this library and called it. */
    HAK_ERROR_PAGES,     /**< The system's pages are not of 4096 bytes. */
    HAK_ERROR_LIMIT,     /**< A limit refuses: hak_heap_refused_by() says whose. */
    HAK_ERROR_CLOSED,    /**< The heap is closed. */
    HAK_ERROR_LIVE,      /**< The heap has live blocks, or heaps below it. */
    HAK_ERROR_DEPTH,     /**< A tree of heaps would have more than 32 levels. */
    HAK_ERROR_UNHEARD,   /**< A soft limit without a callback that could be told. */
    HAK_ERROR_SOFT_LIMIT,     /**< A soft limit that another limit keeps from being passed. */
    HAK_ERROR_COMMITTED_LIMIT /**< A committed limit below what an empty heap uses. */
} hak_error_t;

/** @return why the calling thread's last failed call failed. Thread-local; a call that succeeds
 *         does not reset it. */
HAK_API hak_error_t hak_last_error(void);

/**
 * @param error a value of hak_last_error().
 * @return a sentence in English; static.
 */
HAK_API const char *hak_error_text(hak_error_t error);

/** @return #HAK_VERSION of the library that is running. */
HAK_API int hak_version(void);

/**
 * How magazines are reached in this process. Sets the library up where no heap was created yet.
 * Thread-safe; leaves `errno` as it was.
 * @return "mm_cid", "cpu_id" or "locked"; "starting" in a signal handler that interrupted the
 *         thread that sets the library up, when it is not known yet. Static.
 */
HAK_API const char *hak_percpu_mode(void);

#ifdef __cplusplus
}
#endif

#endif
