#define _GNU_SOURCE
#include "player.h"

#include <errno.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support_contract.h"

enum { BURST_BYTES = 4 << 20, CONTENT_WHOLE = 32 << 10, PAGE = 4096 };

/* ---- Contents: whole to 32 KiB, beyond that the beginning and a word of each page ---- */

static uint64_t word_at(uint32_t seed, size_t at)
{
    return (seed + 1ull) * 0x9e3779b97f4a7c15ull + at * 0xd1342543de82ef95ull;
}

static size_t step_at(size_t at, size_t bytes)
{
    return bytes <= CONTENT_WHOLE || at < PAGE ? sizeof(uint64_t) : PAGE;
}

static void content_write(const block_t *block)
{
    char *to = block->at;
    size_t at = 0;
    for (; at + 8 <= block->asked; at += step_at(at, block->asked)) {
        uint64_t word = word_at(block->seed, at);
        memcpy(to + at, &word, sizeof word);
    }
    if (block->asked < 8) memset(to, (int)(block->seed & 0xff), block->asked);
}

/* Of a block that was written with `block->asked` bytes, and lies at `at` now. */
static void content_prove(const block_t *block, const void *now, size_t kept)
{
    const char *from = now;
    if (block->asked < 8) {
        for (size_t at = 0; at < kept && at < block->asked; at++)
            if ((unsigned char)from[at] != (block->seed & 0xff))
                fuzz_fail("block %p of %zu bytes: byte %zu is wrong", now, block->asked, at);
        return;
    }
    for (size_t at = 0; at + 8 <= kept; at += step_at(at, block->asked)) {
        uint64_t word = word_at(block->seed, at);
        if (memcmp(from + at, &word, sizeof word) != 0)
            fuzz_fail("block %p of %zu bytes: the word at %zu is wrong", now, block->asked, at);
    }
}

static void block_prove(const block_t *block, const place_t *place)
{
    content_prove(block, block->at, block->asked);
    if (hak_heap_of(block->at) != place->heap)
        fuzz_fail("block %p belongs to %p, not %p", block->at, (void *)hak_heap_of(block->at),
                  (void *)place->heap);
    if (hak_usable_size(block->at) != block->usable)
        fuzz_fail("block %p of %zu bytes: usable %zu, was %zu", block->at, block->asked,
                  hak_usable_size(block->at), block->usable);
}

/* ---- Blocks come ---- */

static void account(place_t *place, int64_t blocks, int64_t bytes)
{
    atomic_fetch_add_explicit(&place->live_blocks, blocks, memory_order_relaxed);
    atomic_fetch_add_explicit(&place->live_bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&world.live_bytes, bytes, memory_order_relaxed);
}

/* What a block may have at most: reliability.md, "Limits". */
static void prove_usable(size_t size, size_t usable)
{
    size_t waste = usable - size;
    FUZZ_REQUIRE(usable >= size);
    if (size <= 32 << 10)
        FUZZ_REQUIRE(waste <= (size < 16 ? 16 : size <= 1024 ? size : size / 8) + 15);
    else if (size <= 1 << 20) FUZZ_REQUIRE(waste <= 16 << 10);
    else FUZZ_REQUIRE(waste < 3 * size);
}

/* What a request is charged: README.md, "Limits and trees". */
static size_t charge_of(size_t size, size_t alignment)
{
    if (alignment <= 16) return hak_good_size(size);
    if (size == 0) size = 1;
    size_t up = (size + alignment - 1) & ~(alignment - 1);
    if (alignment <= 16 << 10 && up <= 32 << 10) return hak_good_size(up);
    size_t unit = alignment <= 1 << 20 && size <= 1 << 20 ? 16 << 10 : 4096;
    return (size + unit - 1) & ~(unit - 1);
}

/* Judges what an allocation gave, and writes it. False: it was refused, as it may be. `charge`: by
 * how much more lives then. */
static bool block_take(player_t *player, block_t *block, place_t *place, unsigned refusals,
                       int64_t charge)
{
    player->calls++;
    if (world_fits(place, charge, block->at != NULL) != (block->at != NULL) &&
        !world_may_refuse(refusals))
        fuzz_fail("%zu bytes, charged %lld: %s by a limit", block->asked, (long long)charge,
                  block->at ? "not refused" : "refused");
    if (!block->at && hak_last_error() == HAK_ERROR_LIMIT && errno == ENOMEM) return false;
    if (!block->at) {
        if (errno != ENOMEM || !world_may_refuse(refusals))
            fuzz_fail("no block of %zu bytes, errno %d: %s", block->asked, errno,
                      hak_error_text(hak_last_error()));
        return false;
    }
    block->seed = player->seeds++;
    block->lineage = place->lineage;
    block->usable = hak_usable_size(block->at);
    FUZZ_REQUIRE(block->usable >= block->asked);
    FUZZ_REQUIRE((uintptr_t)block->at % 16 == 0);
    FUZZ_REQUIRE(hak_heap_of(block->at) == place->heap);
    account(place, 1, (int64_t)block->usable);
    content_write(block);
    return true;
}

static block_t *slot_of(player_t *player, unsigned number)
{
    return &player->slots[number % world.slots];
}

static void slot_free(player_t *player, block_t *slot, unsigned choice);

/* An allocation by the operation's verb into an empty slot. */
static void allocate(player_t *player, const fuzz_operation_t *operation, block_t *slot,
                     size_t size)
{
    unsigned number = operation->place % world.places;
    place_t *place = world_enter(number);
    if (!place) return;
    unsigned refusals = atomic_load(&world.refusals);
    size_t alignment = 16;
    *slot = (block_t){.asked = size, .sized = size, .place = number};
    errno = 0;
    switch (fuzz_verb(operation)) {
    case FUZZ_CALLOC:
        slot->at = size % 8 == 0 ? hak_heap_calloc(place->heap, size / 8, 8)
                                 : hak_heap_calloc(place->heap, 1, size);
        if (slot->at && !contract_is_zero(slot->at, size))
            fuzz_fail("calloc of %zu bytes: not zero", size);
        break;
    case FUZZ_ALIGNED:
        alignment <<=
            operation->choice % 16 ? operation->choice / 16 % 9 : operation->choice / 16 % 23;
        slot->at = hak_heap_aligned_alloc(place->heap, alignment, size);
        slot->sized = ((size ? size : 1) + alignment - 1) / alignment * alignment;
        FUZZ_REQUIRE((uintptr_t)slot->at % alignment == 0);
        break;
    default: slot->at = hak_heap_malloc(place->heap, size);
    }
    if (block_take(player, slot, place, refusals, (int64_t)charge_of(size, alignment)) &&
        alignment == 16)
        prove_usable(size, slot->usable);
    slot->large = size > 1 << 20 || alignment > 1 << 20;
    world_leave(place);
}

static void do_allocate(player_t *player, const fuzz_operation_t *operation)
{
    block_t *slot = slot_of(player, operation->slot);
    slot_free(player, slot, operation->choice);
    allocate(player, operation, slot, world_size(operation));
}

static void do_burst(player_t *player, const fuzz_operation_t *operation)
{
    size_t size = world_size(operation);
    unsigned count = 1 + operation->choice % 256;
    for (unsigned i = 0; i < count && i < world.slots && i * size < BURST_BYTES; i++) {
        block_t *slot = slot_of(player, operation->slot + i);
        slot_free(player, slot, operation->choice);
        allocate(player, operation, slot, world_size(operation));
    }
}

/* ---- Blocks change and go ---- */

/* The place of a slot's block, entered; NULL, and an empty slot, where there is none. */
static place_t *slot_enter(block_t *slot)
{
    if (!slot->at) return NULL;
    place_t *place = &world.place[slot->place];
    pthread_rwlock_rdlock(&place->lock);
    if (place->heap && place->lineage == slot->lineage) return place;
    pthread_rwlock_unlock(&place->lock);
    slot->at = NULL;
    return NULL;
}

static void call_free(block_t *block, place_t *place, unsigned choice)
{
    switch (choice % 5) {
    case 0: hak_heap_free_sized(place->heap, block->at, block->sized); break;
    case 1: hak_free(block->at); break;
    case 2:
        FUZZ_REQUIRE(hak_heap_realloc(place->heap, block->at, block->usable) == block->at);
        hak_heap_free_sized(place->heap, block->at, block->usable);
        break;
    default: hak_heap_free(place->heap, block->at);
    }
}

static void slot_free(player_t *player, block_t *slot, unsigned choice)
{
    place_t *place = slot_enter(slot);
    if (!place) return;
    block_prove(slot, place);
    account(place, -1, -(int64_t)slot->usable);
    errno = 12345;
    call_free(slot, place, choice);
    if (choice % 5 != 2) FUZZ_REQUIRE(errno == 12345);
    player->calls++;
    slot->at = NULL;
    world_leave(place);
}

static void do_free(player_t *player, const fuzz_operation_t *operation)
{
    slot_free(player, slot_of(player, operation->slot), operation->choice);
}

static void do_free_run(player_t *player, const fuzz_operation_t *operation)
{
    unsigned count = 1 + operation->choice / 2 % 512;
    for (unsigned i = 0; i < count && i < world.slots; i++) {
        unsigned number = operation->choice & 1 ? i : count - 1 - i;
        slot_free(player, slot_of(player, operation->slot + number), operation->choice);
    }
}

/* A large block stays where it has the same pages, also where it is large by its alignment. */
static size_t charge_after(const block_t *block, size_t size)
{
    bool stays = block->large && ((size + 4095) & ~(size_t)4095) == block->usable;
    return stays ? block->usable : charge_of(size, 16);
}

static void do_realloc(player_t *player, const fuzz_operation_t *operation)
{
    block_t *slot = slot_of(player, operation->slot);
    size_t size = world_size(operation);
    place_t *place = slot_enter(slot);
    if (!place) return;
    block_prove(slot, place);
    block_t moved = *slot;
    unsigned refusals = atomic_load(&world.refusals);
    errno = 0;
    moved.at = hak_heap_realloc(place->heap, slot->at, size);
    moved.asked = moved.sized = size;
    int64_t charge = (int64_t)charge_after(slot, size) - (int64_t)slot->usable;
    if (moved.at) content_prove(slot, moved.at, size < slot->asked ? size : slot->asked);
    if (block_take(player, &moved, place, refusals, charge)) {
        account(place, -1, -(int64_t)slot->usable);
        moved.large = size > 1 << 20 || (slot->large && moved.at == slot->at);
        *slot = moved;
    } else block_prove(slot, place);
    world_leave(place);
}

static void do_exchange(player_t *player, const fuzz_operation_t *operation)
{
    mailbox_t *mailbox = &world.mailbox[operation->choice % WORLD_MAILBOXES];
    block_t *slot = slot_of(player, operation->slot);
    pthread_mutex_lock(&mailbox->lock);
    block_t block = mailbox->block;
    mailbox->block = *slot;
    *slot = block;
    pthread_mutex_unlock(&mailbox->lock);
}

static void do_prove(player_t *player, const fuzz_operation_t *operation)
{
    block_t *slot = slot_of(player, operation->slot);
    place_t *place = slot_enter(slot);
    /* Any value at all may be asked about. */
    uintptr_t any = (uintptr_t)operation->choice << 32 | (uintptr_t)operation->size << 16;
    (void)hak_usable_size((void *)any);
    (void)hak_heap_of((void *)any);
    if (!place) return;
    block_prove(slot, place);
    const char *inside = (const char *)slot->at + operation->choice % slot->usable;
    FUZZ_REQUIRE(hak_heap_of(inside) == place->heap);
    player->calls += 3;
    world_leave(place);
}

/* What must be refused changes nothing. */
static void do_bad(player_t *player, const fuzz_operation_t *operation)
{
    static const struct {
        size_t count, size;
    } products[] = {{SIZE_MAX, 2}, {(size_t)1 << 32, (size_t)1 << 32}, {3, SIZE_MAX / 3 + 1}};
    volatile size_t huge = SIZE_MAX - operation->choice; /* unknown to gcc */
    volatile size_t odd = 3 * (size_t)operation->size;   /* no power of two */
    unsigned which = operation->choice % 3;
    place_t *place = world_enter(operation->place % world.places);
    if (!place) return;
    block_t *slot = slot_of(player, operation->slot);
    FUZZ_REQUIRE(hak_heap_malloc(place->heap, huge) == NULL && errno == ENOMEM);
    FUZZ_REQUIRE(!hak_heap_calloc(place->heap, products[which].count, products[which].size));
    FUZZ_REQUIRE(errno == ENOMEM);
    FUZZ_REQUIRE(!hak_heap_aligned_alloc(place->heap, odd, 100) && errno == EINVAL);
    FUZZ_REQUIRE(!hak_heap_aligned_alloc(place->heap, 1 << (4 + which), huge) && errno == ENOMEM);
    if (slot->at && slot->place == operation->place % world.places &&
        slot->lineage == place->lineage) {
        FUZZ_REQUIRE(!hak_heap_realloc(place->heap, slot->at, huge) && errno == ENOMEM);
        block_prove(slot, place);
    }
    world_leave(place);
}

static void do_hop(player_t *player, const fuzz_operation_t *operation)
{
    if (player->cpu_count > 1)
        (void)contract_move_to(player->cpus[operation->choice % player->cpu_count]);
}

/* ---- What concerns a whole heap ---- */

static int write_nothing(void *ctx, const char *text, size_t length)
{
    size_t *written = ctx;
    *written += length;
    return text[0] == '\0' ? 1 : 0;
}

/* Whether figures are exact: nothing else runs, and the system grants all. */
static bool is_exact(void) { return !world.shared && !(atomic_load(&world.refusals) & 1); }

static void do_flush(place_t *place, const fuzz_operation_t *operation)
{
    hak_heap_stats_t before = contract_stats(place->heap);
    size_t moved = hak_heap_flush(place->heap);
    (void)operation;
    if (!is_exact()) return;
    hak_heap_stats_t after = contract_stats(place->heap);
    FUZZ_REQUIRE(contract_cached(&after) == 0 && moved == contract_cached(&before));
    FUZZ_REQUIRE(after.phantom_superslabs == 0);
}

static void do_flush_class(place_t *place, const fuzz_operation_t *operation)
{
    hak_class_stats_t stats = {.struct_size = sizeof stats};
    unsigned cls = operation->choice % (hak_size_class_count() + 1);
    (void)hak_heap_flush_class(place->heap, cls);
    if (!is_exact() || hak_heap_class_stats(place->heap, cls, &stats) != 0) return;
    FUZZ_REQUIRE(stats.hot_blocks + stats.spare_blocks + stats.cold_blocks + stats.remote_blocks ==
                 0);
}

static void do_trim(place_t *place, const fuzz_operation_t *operation)
{
    size_t keep = operation->choice & 1 ? 0 : fuzz_size(operation->size);
    hak_heap_stats_t before = contract_stats(place->heap);
    (void)hak_heap_trim(place->heap, keep);
    if (!is_exact()) return;
    hak_heap_stats_t after = contract_stats(place->heap);
    FUZZ_REQUIRE(contract_cached(&after) == 0);
    FUZZ_REQUIRE(keep != 0 || after.large_cached_bytes == 0);
    FUZZ_REQUIRE(after.resident_bytes <= before.resident_bytes);
}

static void do_stats(place_t *place, const fuzz_operation_t *operation)
{
    (void)operation;
    world_sample(place);
}

static void do_class_stats(place_t *place, const fuzz_operation_t *operation)
{
    hak_class_stats_t stats = {.struct_size = sizeof stats};
    size_t live = 0;
    for (unsigned cls = 0; cls < hak_size_class_count(); cls++) {
        FUZZ_REQUIRE(hak_heap_class_stats(place->heap, cls, &stats) == 0);
        FUZZ_REQUIRE(stats.block_bytes == hak_size_class_bytes(cls));
        live += stats.live_blocks;
    }
    if (!world.shared) FUZZ_REQUIRE(live <= (size_t)place->live_blocks);
    FUZZ_REQUIRE(hak_heap_class_stats(place->heap, hak_size_class_count() + operation->choice,
                                      &stats) == EINVAL);
}

static void do_report(place_t *place, const fuzz_operation_t *operation)
{
    size_t written = 0;
    (void)operation;
    FUZZ_REQUIRE(hak_heap_report(place->heap, write_nothing, &written) == 0);
    FUZZ_REQUIRE(written > 0);
}

static void do_check(place_t *place, const fuzz_operation_t *operation)
{
    (void)operation;
    world_prove(place);
}

static void do_reset(place_t *place, const fuzz_operation_t *operation)
{
    static _Atomic uint64_t lineages = 1ull << 63;
    (void)operation;
    atomic_fetch_sub(&world.live_bytes, place->live_bytes);
    place->live_blocks = place->live_bytes = 0;
    place->lineage = atomic_fetch_add(&lineages, 1);
    FUZZ_REQUIRE(hak_heap_reset(place->heap) == 0);
    world_prove(place);
}

static void do_replace(place_t *place, const fuzz_operation_t *operation)
{
    world_replace(place, operation->place % world.places, operation->choice);
}

static void do_limit(place_t *place, const fuzz_operation_t *operation)
{
    world_limit(place, operation);
}

static void do_move(place_t *place, const fuzz_operation_t *operation)
{
    (void)operation;
    world_move(place);
}

/* ---- Fork ---- */

/* The child has one thread, and locks of the model that its parent's threads may hold are of no
 * use: it looks at places without them. */
static void in_child(player_t *player)
{
    alarm(300);
    world_allow();
    for (unsigned i = 0; i < world.slots; i++) {
        block_t *block = &player->slots[i];
        place_t *place = &world.place[block->place];
        if (!block->at || !place->heap || place->lineage != block->lineage) continue;
        block_prove(block, place);
        if (i % 2) continue;
        account(place, -1, -(int64_t)block->usable);
        call_free(block, place, i);
        block->at = NULL;
    }
    for (unsigned i = 0; i < world.places; i++) {
        place_t *place = &world.place[i];
        if (!place->heap) continue;
        if (!world.shared) world_prove(place);
        else FUZZ_REQUIRE(hak_heap_check(place->heap) == 0);
        for (unsigned n = 0; n < 40; n++) {
            block_t block = {.asked = fuzz_size((uint16_t)(n * 1300)), .place = i};
            block.at = hak_heap_malloc(place->heap, block.asked);
            if (!block_take(player, &block, place, world.refusals,
                            (int64_t)charge_of(block.asked, 16)))
                continue;
            block_prove(&block, place);
            if (n % 2 == 0) continue;
            account(place, -1, -(int64_t)block.usable);
            hak_free(block.at);
        }
        (void)hak_heap_trim(place->heap, 0);
        FUZZ_REQUIRE(hak_heap_check(place->heap) == 0);
        FUZZ_REQUIRE(hak_heap_destroy(place->heap) == 0);
        place->heap = NULL;
    }
    (void)hak_reserve_trim();
    _exit(0);
}

static void do_fork(player_t *player, const fuzz_operation_t *operation)
{
    (void)operation;
    if (!(world.header.forks & 1) || (world.shared && CONTRACT_SANITIZED)) return;
    /* No destroy and no reset is under way: the child's heaps are whole. */
    for (unsigned i = 0; i < world.places; i++) pthread_rwlock_rdlock(&world.place[i].lock);
    pid_t pid = fork();
    if (pid == 0) in_child(player);
    for (unsigned i = 0; i < world.places; i++) pthread_rwlock_unlock(&world.place[i].lock);
    int status = -1;
    if (pid < 0) return;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        fuzz_fail("a child of fork ended with status %x", (unsigned)status);
}

/* ---- By verb ---- */

typedef struct act {
    void (*with_blocks)(player_t *player, const fuzz_operation_t *operation);
    void (*with_heap)(place_t *place, const fuzz_operation_t *operation);
    bool alone; /* no other call may run on the heap */
} act_t;

static void do_refuse(player_t *player, const fuzz_operation_t *operation)
{
    (void)player;
    world_refuse(operation);
}

static void do_allow(player_t *player, const fuzz_operation_t *operation)
{
    (void)player;
    (void)operation;
    world_allow();
}

static void do_reserve_trim(player_t *player, const fuzz_operation_t *operation)
{
    (void)player;
    (void)operation;
    (void)hak_reserve_trim();
}

static const act_t acts[FUZZ_VERBS] = {
    [FUZZ_MALLOC] = {.with_blocks = do_allocate},
    [FUZZ_CALLOC] = {.with_blocks = do_allocate},
    [FUZZ_ALIGNED] = {.with_blocks = do_allocate},
    [FUZZ_BURST] = {.with_blocks = do_burst},
    [FUZZ_EXCHANGE] = {.with_blocks = do_exchange},
    [FUZZ_REALLOC] = {.with_blocks = do_realloc},
    [FUZZ_FREE] = {.with_blocks = do_free},
    [FUZZ_FREE_RUN] = {.with_blocks = do_free_run},
    [FUZZ_PROVE] = {.with_blocks = do_prove},
    [FUZZ_BAD] = {.with_blocks = do_bad},
    [FUZZ_HOP] = {.with_blocks = do_hop},
    [FUZZ_FLUSH] = {.with_heap = do_flush},
    [FUZZ_FLUSH_CLASS] = {.with_heap = do_flush_class},
    [FUZZ_TRIM] = {.with_heap = do_trim},
    [FUZZ_RESERVE_TRIM] = {.with_blocks = do_reserve_trim},
    [FUZZ_STATS] = {.with_heap = do_stats},
    [FUZZ_CLASS_STATS] = {.with_heap = do_class_stats},
    [FUZZ_REPORT] = {.with_heap = do_report},
    [FUZZ_CHECK] = {.with_heap = do_check, .alone = true},
    [FUZZ_RESET] = {.with_heap = do_reset, .alone = true},
    [FUZZ_REPLACE] = {.with_heap = do_replace, .alone = true},
    [FUZZ_REFUSE] = {.with_blocks = do_refuse},
    [FUZZ_ALLOW] = {.with_blocks = do_allow},
    [FUZZ_FORK] = {.with_blocks = do_fork},
    [FUZZ_LIMIT] = {.with_heap = do_limit, .alone = true},
    [FUZZ_MOVE] = {.with_heap = do_move, .alone = true},
};

static void act(player_t *player, const fuzz_operation_t *operation)
{
    const act_t *act = &acts[fuzz_verb(operation)];
    player->calls++;
    if (act->with_blocks) {
        act->with_blocks(player, operation);
        return;
    }
    place_t *place = world_enter(operation->place % world.places);
    if (!place) return;
    if (act->alone) {
        world_leave(place);
        pthread_rwlock_wrlock(&place->lock);
    }
    if (place->heap) act->with_heap(place, operation);
    pthread_rwlock_unlock(&place->lock);
}

/* ---- The other thread ---- */

struct hand {
    pthread_t thread;
    sem_t begin, end;
    const fuzz_operation_t *operation; /* NULL: end */
};

static void *hand_run(void *arg)
{
    player_t *player = arg;
    hand_t *hand = player->hand;
    for (;;) {
        while (sem_wait(&hand->begin) != 0) {
        }
        if (!hand->operation) return NULL;
        act(player, hand->operation);
        sem_post(&hand->end);
    }
}

static void act_by_hand(player_t *player, const fuzz_operation_t *operation)
{
    if (!player->hand) {
        hand_t *hand = player->hand = calloc(1, sizeof *hand);
        FUZZ_REQUIRE(hand != NULL);
        sem_init(&hand->begin, 0, 0);
        sem_init(&hand->end, 0, 0);
        FUZZ_REQUIRE(pthread_create(&hand->thread, NULL, hand_run, player) == 0);
    }
    player->hand->operation = operation;
    sem_post(&player->hand->begin);
    while (operation && sem_wait(&player->hand->end) != 0) {
    }
}

void player_do(player_t *player, const fuzz_operation_t *operation)
{
    if (operation->verb & FUZZ_OTHER_THREAD) act_by_hand(player, operation);
    else act(player, operation);
}

void player_begin(player_t *player, uint32_t seeds)
{
    *player = (player_t){.seeds = seeds, .slots = calloc(world.slots, sizeof *player->slots)};
    FUZZ_REQUIRE(player->slots != NULL);
    player->cpu_count = contract_cpus(player->cpus, 64);
}

void player_end(player_t *player)
{
    for (unsigned i = 0; i < world.slots; i++) slot_free(player, &player->slots[i], i);
    if (player->hand) {
        act_by_hand(player, NULL);
        pthread_join(player->hand->thread, NULL);
        sem_destroy(&player->hand->begin);
        sem_destroy(&player->hand->end);
        free(player->hand);
    }
    free(player->slots);
    atomic_fetch_add(&world.calls, player->calls);
}
