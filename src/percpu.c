/* hakheap level 6: percpu - choosing the mode, areas, and the locked twin */
#include "percpu.h"

#include "options.h"
#include "os.h"
#include "stall.h"
#include "tls.h"

#ifdef __GLIBC__
/* Weak: a C library before glibc 2.35 has neither. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));
#endif

_Static_assert(sizeof(magazine_t) == 16, "slots are multiplied by 8");
_Static_assert(PERCPU_HOT(1) == 1 << ENTRY_CODE_SHIFT,
               "a granule's entry carries the class's slot");
_Static_assert(offsetof(area_t, hot) == 0, "sections use slots as offsets");

const area_t zero_area;
ptrdiff_t percpu_rseq_offset __attribute__((used));
ptrdiff_t percpu_index_offset __attribute__((used));
percpu_mode_t percpu_mode;
uint32_t percpu_slots;

/* ---- Process and thread ---- */

#ifdef __x86_64__
static char *thread_pointer(void)
{
    char *at;
    __asm__("movq %%fs:0,%0" : "=r"(at));
    return at;
}
#else
static char *thread_pointer(void) { return __builtin_thread_pointer(); }
#endif

/* A field of the thread's rseq area, which the kernel writes when it likes. */
static int thread_field(ptrdiff_t offset)
{
    return (int)load_relaxed((_Atomic uint32_t *)(void *)(thread_pointer() + offset));
}

/* Bytes of the rseq area that the C library has registered for each thread; 0: it has none. */
static size_t registered_bytes(ptrdiff_t *offset)
{
#ifdef __GLIBC__
    if (&__rseq_offset && &__rseq_size && __rseq_size) {
        *offset = __rseq_offset;
        /* glibc before 2.40 says 20 or 32 and registers 32 bytes; later ones say what the kernel
         * maintains. */
        return hak_max(__rseq_size, RSEQ_BYTES);
    }
#endif
    *offset = 0;
    return 0;
}

static percpu_mode_t choose(const char *wish, ptrdiff_t *offset)
{
    bool locked = wish && (strcmp(wish, "0") == 0 || strcmp(wish, "locked") == 0);
    bool by_cpu = wish && strcmp(wish, "cpu") == 0;
    if (wish && *wish && !locked && !by_cpu)
        options_unknown("HAKHEAP_RSEQ", wish, "the best there is", "0, locked, cpu");
    size_t registered = PERCPU_SECTIONS ? registered_bytes(offset) : 0;
    if (locked || !registered || !os->fence_register() || thread_field(*offset + RSEQ_CPU_ID) < 0)
        return PERCPU_LOCKED;
    size_t end_of_mm_cid = RSEQ_MM_CID + sizeof(uint32_t);
    if (by_cpu || os_rseq_feature_size() < end_of_mm_cid || registered < end_of_mm_cid)
        return PERCPU_CPU_ID;
    return PERCPU_MM_CID;
}

/* Sections arm themselves before they read the count, which is 0 in locked mode: here, in a record
 * of every thread that no kernel reads. So nothing is aborted where every section misses. */
static ptrdiff_t unregistered_offset(void)
{
    _Static_assert(offsetof(hak_tls_t, section) == RSEQ_CS, "sections arm there");
    return (char *)&hak_tls - thread_pointer();
}

/* Before the process starts, too: what is handed to malloc may be no heap, and a section arms
 * itself before it finds out. */
static __attribute__((constructor)) void point_at_no_registration(void)
{
    if (PERCPU_SECTIONS) percpu_rseq_offset = unregistered_offset();
}

/* One for each CPU that the machine has, rounded up. */
static uint32_t count_slots(void)
{
    size_t cpus = hak_max(os_cpu_count(), PERCPU_FEWEST);
    return (uint32_t)hak_min(hak_round_up(cpus, PERCPU_FEWEST), PERCPU_MOST);
}

void percpu_start_process(const char *wish)
{
    percpu_slots = count_slots();
    percpu_mode = choose(wish, &percpu_rseq_offset);
    if (percpu_mode == PERCPU_LOCKED) percpu_rseq_offset = unregistered_offset();
    percpu_index_offset =
        percpu_rseq_offset + (percpu_mode == PERCPU_MM_CID ? RSEQ_MM_CID : RSEQ_CPU_ID);
}

const char *percpu_mode_name(percpu_mode_t mode)
{
    static const char *const names[] = {
        [PERCPU_LOCKED] = "locked", [PERCPU_CPU_ID] = "cpu_id", [PERCPU_MM_CID] = "mm_cid"};
    return names[mode];
}

int percpu_index(void)
{
    int index = PERCPU_NONE;
    if (percpu_mode == PERCPU_LOCKED) index = (int)os_cpu();
    else if (thread_field(percpu_rseq_offset + RSEQ_CPU_ID) >= 0)
        index = thread_field(percpu_index_offset);
    return (uint32_t)index < percpu_slots ? index : PERCPU_NONE;
}

/* ---- Areas ---- */

#define STOPPED \
    ((area_t *)(uintptr_t)&zero_area) /* read-only memory: nothing is ever stored there */

void percpu_init(percpu_t *percpu)
{
    for (uint32_t i = 0; i < percpu_slots; i++) {
        store_relaxed(&percpu->table[i], STOPPED);
        percpu_areas(percpu)[i] = NULL;
    }
    *percpu_idle(percpu) = NULL;
    store_release(&percpu->slots, percpu_slots);
    store_release(&percpu->count, percpu_mode == PERCPU_LOCKED ? 0 : percpu_slots);
}

void percpu_close(percpu_t *percpu)
{
    store_release(&percpu->count, 0u);
    store_release(&percpu->slots, 0u);
}

area_t *percpu_area(const percpu_t *percpu, unsigned index)
{
    return index < load_relaxed(&percpu->slots) ? percpu_areas(percpu)[index] : NULL;
}

area_t *percpu_running(percpu_t *percpu, unsigned index)
{
    /* Acquire: pairs with percpu_init, and with start. */
    if (index >= load_acquire(&percpu->slots)) return NULL;
    area_t *area = load_acquire(&percpu->table[index]);
    return area == STOPPED ? NULL : area;
}

static void start(percpu_t *percpu, unsigned index)
{
    /* Release: pairs with the section's load (address dependency) and the twin's acquire in
     * locked_enter. */
    store_release(&percpu->table[index], percpu_areas(percpu)[index]);
}

void percpu_adopt(percpu_t *percpu, unsigned index, area_t *area)
{
    hak_assert(index < load_relaxed(&percpu->slots) && !percpu_areas(percpu)[index]);
    percpu_areas(percpu)[index] = area;
    start(percpu, index);
}

/* The twin's try-lock, which a halt holds from halt to restart. Release pairs with acquire. */
static bool busy_try(area_t *area)
{
    uint32_t idle = 0;
    return cas_acquire(&area->busy, &idle, 1u);
}
static void busy_leave(area_t *area) { store_release(&area->busy, 0u); }

void percpu_halt(percpu_t *percpu)
{
    for (uint32_t i = 0; i < load_relaxed(&percpu->slots); i++) {
        store_release(&percpu->table[i], STOPPED);
        area_t *area = percpu_areas(percpu)[i];
        if (percpu_mode != PERCPU_LOCKED || !area) continue;
        for (unsigned turn = 0; !busy_try(area); turn++) hak_wait(turn);
    }
    STALL(areas_halted);
}

bool percpu_fence(void) { return percpu_mode == PERCPU_LOCKED || os->fence(); }

void percpu_restart(percpu_t *percpu, unsigned index)
{
    area_t *area = percpu_area(percpu, index);
    if (!area) return;
    start(percpu, index);
    if (percpu_mode == PERCPU_LOCKED) busy_leave(area);
}

void percpu_restart_all(percpu_t *percpu)
{
    for (uint32_t i = 0; i < load_relaxed(&percpu->slots); i++) percpu_restart(percpu, i);
}

void percpu_retire(percpu_t *percpu, unsigned index)
{
    area_t *area = percpu_area(percpu, index);
    if (!area) return;
    percpu_areas(percpu)[index] = NULL;
    area->next = *percpu_idle(percpu);
    *percpu_idle(percpu) = area;
    if (percpu_mode == PERCPU_LOCKED) busy_leave(area);
}

bool percpu_is_empty(const percpu_t *percpu, const class_bits_t *classes, unsigned first,
                     unsigned end)
{
    FOR_AREAS (at, percpu)
        FOR_CLASSES_IN (cls, classes, first, end)
            FOR_WORDS (kind, at)
                if (load_relaxed(area_word(at, cls, kind))) return false;
    return true;
}

/* ---- The locked twin ---- */

/* The running CPU's area, its try-lock held; NULL where it is busy, stopped or missing: the caller
 * goes without. */
static area_t *locked_enter(percpu_t *percpu)
{
    unsigned index = os_cpu();
    area_t *area = percpu_running(percpu, index);
    STALL(twin_chosen);
    if (!area || !busy_try(area)) return NULL;
    /* A halt may have come and gone in between, and the area to another CPU. */
    if (percpu_running(percpu, index) == area) return area;
    busy_leave(area);
    return NULL;
}

static _Atomic chain_t *word_at(area_t *area, size_t word)
{
    return (_Atomic chain_t *)(void *)((char *)area + word * 8);
}
static uint32_t limit_at(area_t *area, size_t hot)
{
    return load_relaxed(&area->hot[hot / PERCPU_HOT(1)].limit);
}

static block_t *locked_pop(percpu_t *percpu, size_t hot, uint64_t key, chain_t *link)
{
    area_t *area = locked_enter(percpu);
    if (!area) return NULL;
    _Atomic chain_t *word = word_at(area, hot);
    block_t *block = chain_block(load_relaxed(word));
    if (block) {
        *link = block_link(block, key);
        store_relaxed(word, *link);
    }
    busy_leave(area);
    return block;
}

static bool push_on(magazine_t *magazine, void *ptr, uint64_t key)
{
    chain_t word = load_relaxed(&magazine->word);
    if (chain_count(word) >= load_relaxed(&magazine->limit)) return false;
    store_relaxed(&magazine->word, block_push(word, ptr, key));
    return true;
}

static bool locked_push(percpu_t *percpu, size_t hot, void *ptr, uint64_t key)
{
    area_t *area = locked_enter(percpu);
    if (!area) return false;
    bool done = push_on(&area->hot[hot / PERCPU_HOT(1)], ptr, key);
    busy_leave(area);
    return done;
}

static bool locked_post(percpu_t *percpu, size_t hot, void *ptr, uint64_t key)
{
    area_t *area = locked_enter(percpu);
    if (!area) return false;
    magazine_t *outbox = load_acquire(&area->outbox);
    bool done = outbox && push_on(&outbox[hot / PERCPU_HOT(1)], ptr, key);
    busy_leave(area);
    return done;
}

static chain_t locked_take_outbox(percpu_t *percpu, size_t hot)
{
    area_t *area = locked_enter(percpu);
    if (!area) return 0;
    magazine_t *outbox = load_acquire(&area->outbox);
    chain_t chain = outbox ? load_relaxed(&outbox[hot / PERCPU_HOT(1)].word) : 0;
    if (chain) store_relaxed(&outbox[hot / PERCPU_HOT(1)].word, 0);
    busy_leave(area);
    return chain;
}

static chain_t locked_take(percpu_t *percpu, size_t word)
{
    area_t *area = locked_enter(percpu);
    if (!area) return 0;
    chain_t chain = load_relaxed(word_at(area, word));
    store_relaxed(word_at(area, word), 0);
    busy_leave(area);
    return chain;
}

static bool locked_install(percpu_t *percpu, size_t hot, size_t word, chain_t chain)
{
    area_t *area = locked_enter(percpu);
    if (!area) return false;
    bool room = !load_relaxed(word_at(area, word)) && chain_count(chain) <= limit_at(area, hot);
    if (room) store_relaxed(word_at(area, word), chain);
    busy_leave(area);
    return room;
}

/* ---- In every mode ---- */

block_t *percpu_pop(percpu_t *percpu, size_t hot, uint64_t key, chain_t *link)
{
    if (percpu_mode == PERCPU_LOCKED) return locked_pop(percpu, hot, key, link);
    return key_seals(key) ? section_pop_marked(percpu, hot | SLOT_MARK, link)
                          : section_pop(percpu, hot, link);
}

bool percpu_push(percpu_t *percpu, size_t hot, void *ptr, uint64_t key)
{
    if (percpu_mode == PERCPU_LOCKED) return locked_push(percpu, hot, ptr, key);
    if (!key_seals(key)) return section_push(percpu, hot, ptr, chain_address(ptr), 0) == PUSH_DONE;
    return section_push_sealed(percpu, hot, ptr, chain_address(ptr), 0, key ^ (uintptr_t)ptr) ==
           PUSH_DONE;
}

bool percpu_post(percpu_t *percpu, size_t hot, void *ptr, uint64_t key)
{
    if (percpu_mode == PERCPU_LOCKED) return locked_post(percpu, hot, ptr, key);
    if (!key_seals(key)) return section_post(percpu, hot, ptr, chain_address(ptr), 0) == PUSH_DONE;
    return section_post_sealed(percpu, hot, ptr, chain_address(ptr), 0, key ^ (uintptr_t)ptr) ==
           PUSH_DONE;
}

chain_t percpu_take(percpu_t *percpu, size_t word)
{
    if (percpu_mode == PERCPU_LOCKED) return locked_take(percpu, word);
    return section_take(percpu, word);
}

chain_t percpu_take_outbox(percpu_t *percpu, size_t hot)
{
    if (percpu_mode == PERCPU_LOCKED) return locked_take_outbox(percpu, hot);
    return section_take_outbox(percpu, hot);
}

bool percpu_install(percpu_t *percpu, unsigned cls, size_t word, chain_t chain)
{
    size_t hot = PERCPU_HOT(cls);
    if (percpu_mode == PERCPU_LOCKED) return locked_install(percpu, hot, word, chain);
    return section_install(percpu, hot, word, chain);
}
