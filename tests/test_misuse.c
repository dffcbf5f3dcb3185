/*
 * Misuse: every row of the catalogue ends a child process by abort() after exactly one line, for
 * each kind of block and each level where the row applies. What the row says of a level where a bug
 * cannot be seen is a row of its own.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "hakheap.h"
#include "sizeclass.h"
#include "support_child.h"
#include "support_contract.h"

TestSuite(misuse, .init = contract_slabs_only, .timeout = 600);

/* ---- What a row may use; all of it in the child ---- */

typedef enum kind { SMALL, TINY, WIDE, MID, LARGE, KINDS } kind_t;

/* Requests whose usable size is what was asked for. */
static const size_t kind_bytes[KINDS] = {256, 16, SMALL_MAX, 5 * GRANULE, 3 * HAK_MIB + HAK_PAGE};
static const char *const kind_names[KINDS] = {"small", "tiny", "wide", "mid", "large"};

enum {
    ON_SMALL = 1 << SMALL | 1 << TINY | 1 << WIDE,
    ON_BIG = 1 << MID | 1 << LARGE,
    ON_ALL = ON_SMALL | ON_BIG,
    IN_FAST = 1,
    IN_CHECKED = 2,
    IN_BOTH = 3
};

typedef struct scene {
    int level;
    size_t bytes;
    hak_heap_t *heap; /* "mine" */
    hak_heap_t *other;
} scene_t;

/* What the child tells its parent before it misbehaves: the address that the line must name. Shared
 * memory. */
typedef struct told {
    const void *ptr;
    bool survived;
} told_t;
static told_t *told;

static void *block(const scene_t *scene)
{
    void *ptr = hak_heap_malloc(scene->heap, scene->bytes);
    if (!ptr) _exit(99);
    memset(ptr, 0x5a, scene->bytes);
    return ptr;
}

/* A neighbour on each side and more of the same class, so that the block's slab stays in use. The
 * first ones go to slabs that have room for few. */
static void *block_among_others(const scene_t *scene)
{
    for (int i = 0; i < 9; i++) (void)block(scene);
    void *ptr = block(scene);
    for (int i = 0; i < 8; i++) (void)block(scene);
    return ptr;
}

/* Names the address, and only then frees it. */
static void bad_free(const scene_t *scene, const void *ptr)
{
    told->ptr = ptr;
    hak_heap_free(scene->heap, (void *)(uintptr_t)ptr);
}

static void in_a_thread(void *(*run)(void *), void *arg)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, arg) != 0) _exit(98);
    pthread_join(thread, NULL);
}

/* ---- FOREIGN ---- */

static int a_global = 1;

static void foreign_global(const scene_t *scene)
{
    bad_free(scene, (void *)((uintptr_t)&a_global & ~(uintptr_t)15));
}
static void foreign_code(const scene_t *scene)
{
    bad_free(scene, (void *)((uintptr_t)&foreign_global & ~(uintptr_t)15));
}
static void foreign_constant(const scene_t *scene)
{
    bad_free(scene, (void *)((uintptr_t)kind_bytes & ~(uintptr_t)15));
}
static void foreign_stack(const scene_t *scene)
{
    char here[64];
    bad_free(scene, (void *)(((uintptr_t)here + 15) & ~(uintptr_t)15));
}
static void foreign_malloc(const scene_t *scene) { bad_free(scene, malloc(100)); }
static void foreign_low(const scene_t *scene) { bad_free(scene, (void *)(uintptr_t)16); }
static void foreign_unmapped(const scene_t *scene)
{
    void *page = mmap(NULL, HAK_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, HAK_PAGE);
    bad_free(scene, page);
}
static void foreign_protected(const scene_t *scene)
{
    bad_free(scene, mmap(NULL, HAK_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}
static void foreign_top_of_user_half(const scene_t *scene)
{
    bad_free(scene, (void *)(uintptr_t)0x7ffffffffff0);
}
static void foreign_two_to_47(const scene_t *scene)
{
    bad_free(scene, (void *)(uintptr_t)0x800000000000);
}
static void foreign_kernel_half(const scene_t *scene)
{
    bad_free(scene, (void *)(uintptr_t)0xffff800000000000);
}
static void foreign_last_word(const scene_t *scene)
{
    bad_free(scene, (void *)(uintptr_t)0xfffffffffffffff0);
}
/* A real block's address with a bit that no address has: what would be left if only the low 47 were
 * looked at. */
static void foreign_tagged(const scene_t *scene)
{
    bad_free(scene, (void *)((uintptr_t)block(scene) | (uintptr_t)1 << 56));
}
/* The library's own records are in no heap. */
static void foreign_heap_itself(const scene_t *scene) { bad_free(scene, scene->heap); }
/* Beside a large mapping, in the same 2 MiB. */
static void foreign_after_large(const scene_t *scene)
{
    char *large = hak_heap_malloc(scene->heap, kind_bytes[LARGE]);
    bad_free(scene, large + kind_bytes[LARGE]);
}
static void foreign_misaligned(const scene_t *scene)
{
    bad_free(scene, (void *)((uintptr_t)malloc(100) + 3));
}
static void foreign_hak_free(const scene_t *scene)
{
    (void)scene;
    hak_free((void *)(told->ptr = malloc(100)));
}
static void foreign_realloc(const scene_t *scene)
{
    void *ptr = malloc(100);
    told->ptr = ptr;
    told->survived = hak_heap_realloc(scene->heap, ptr, 200) != NULL;
}
static void foreign_free_sized(const scene_t *scene)
{
    void *ptr = malloc(100);
    told->ptr = ptr;
    hak_heap_free_sized(scene->heap, ptr, 100);
}

/* ---- HEAP ---- */

static void null_heap_free(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    hak_heap_free(NULL, ptr);
}
static void null_heap_free_sized(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    hak_heap_free_sized(NULL, ptr, scene->bytes);
}

/* ---- INTERIOR ---- */

static void interior_by(const scene_t *scene, size_t offset)
{
    bad_free(scene, (char *)block_among_others(scene) + offset);
}
static void interior_1(const scene_t *scene) { interior_by(scene, 1); }
static void interior_8(const scene_t *scene) { interior_by(scene, 8); }
static void interior_16(const scene_t *scene) { interior_by(scene, 16); }
static void interior_half(const scene_t *scene) { interior_by(scene, scene->bytes / 2); }
static void interior_last_16(const scene_t *scene) { interior_by(scene, scene->bytes - 16); }
static void interior_granule(const scene_t *scene) { interior_by(scene, GRANULE); }
static void interior_hak_free(const scene_t *scene)
{
    char *ptr = (char *)block_among_others(scene) + 16;
    told->ptr = ptr;
    hak_free(ptr);
}
static void interior_realloc(const scene_t *scene)
{
    char *ptr = (char *)block_among_others(scene) + 16;
    told->ptr = ptr;
    told->survived = hak_heap_realloc(scene->heap, ptr, 1) != NULL;
}

/* ---- DOUBLE_FREE ---- */

static void double_at_once(const scene_t *scene)
{
    void *ptr = block_among_others(scene);
    hak_heap_free(scene->heap, ptr);
    bad_free(scene, ptr);
}
static void double_at_once_alone(const scene_t *scene)
{
    void *ptr = block(scene);
    hak_heap_free(scene->heap, ptr);
    bad_free(scene, ptr);
}
static void double_by_hak_free(const scene_t *scene)
{
    void *ptr = block_among_others(scene);
    hak_free(ptr);
    told->ptr = ptr;
    hak_free(ptr);
}
static void double_later(const scene_t *scene)
{
    enum { OTHERS = 300 };
    static void *others[OTHERS];
    scene_t few = *scene;
    if (few.bytes > HAK_MIB) few.bytes = 1000;
    void *ptr = block_among_others(scene);
    for (int i = 0; i < OTHERS; i++) others[i] = block(&few);
    hak_heap_free(scene->heap, ptr);
    for (int i = 0; i < OTHERS; i++) hak_heap_free(scene->heap, others[i]);
    bad_free(scene, ptr);
}
/* First in, last out: more than a hundred frees lie above it, in other magazines than it, or in
 * slabs, which all stay in use. */
static void double_deep(const scene_t *scene)
{
    enum { OTHERS = 200 };
    static void *others[OTHERS];
    for (int i = 0; i < OTHERS; i++) others[i] = block(scene);
    for (int i = 0; i < OTHERS - 1; i++)
        if (i % 4 != 1) hak_heap_free(scene->heap, others[i]);
    bad_free(scene, others[0]);
}

typedef struct errand {
    const scene_t *scene;
    void *ptr;
} errand_t;
static void *free_errand(void *arg)
{
    const errand_t *errand = arg;
    hak_heap_free(errand->scene->heap, errand->ptr);
    return NULL;
}
static void double_second_in_thread(const scene_t *scene)
{
    errand_t errand = {scene, block_among_others(scene)};
    hak_heap_free(scene->heap, errand.ptr);
    told->ptr = errand.ptr;
    in_a_thread(free_errand, &errand);
}
static void double_first_in_thread(const scene_t *scene)
{
    errand_t errand = {scene, block_among_others(scene)};
    in_a_thread(free_errand, &errand);
    bad_free(scene, errand.ptr);
}
static void double_after_flush(const scene_t *scene)
{
    void *ptr = block_among_others(scene);
    hak_heap_free(scene->heap, ptr);
    (void)hak_heap_flush(scene->heap);
    bad_free(scene, ptr);
}
static void double_after_trim(const scene_t *scene)
{
    void *ptr = block_among_others(scene);
    hak_heap_free(scene->heap, ptr);
    (void)hak_heap_trim(scene->heap, 0);
    bad_free(scene, ptr);
}
/* The page has gone and the block's seal with it; its slab stays, because each granule keeps a
 * block. */
static void double_in_released_page(const scene_t *scene)
{
    enum { MOST = 3072 };
    static void *blocks[MOST];
    size_t each = scene->bytes < 8192 ? 16384 / scene->bytes : 2;
    size_t count = 3 * each;
    /* Each slab keeps one, also where two are carved in turns. */
    size_t stays = each > 4 ? each / 2 : each;
    for (size_t i = 0; i < count; i++) blocks[i] = block(scene);
    for (size_t i = 0; i < count; i++)
        if (i % stays) hak_heap_free(scene->heap, blocks[i]);
    (void)hak_heap_trim(scene->heap, 0);
    bad_free(scene, blocks[each + stays / 2]);
}
/* The slab, run or mapping itself has gone. */
static void double_given_back(const scene_t *scene)
{
    void *ptr = block(scene);
    hak_heap_free(scene->heap, ptr);
    (void)hak_heap_trim(scene->heap, 0);
    bad_free(scene, ptr);
}
/* The same from a SuperSlab of the heap's own, which goes to the process's reserve. */
static void double_superslab_given_back(const scene_t *scene)
{
    enum { MOST = 4096 };
    static void *blocks[MOST];
    size_t count = 6 * HAK_MIB / scene->bytes < MOST ? 6 * HAK_MIB / scene->bytes : MOST;
    for (size_t i = 0; i < count; i++) blocks[i] = block(scene);
    for (size_t i = 0; i < count; i++) hak_heap_free(scene->heap, blocks[i]);
    (void)hak_heap_trim(scene->heap, 0);
    bad_free(scene, blocks[count - 1]);
}
static void double_given_back_hak_free(const scene_t *scene)
{
    void *ptr = block(scene);
    hak_heap_free(scene->heap, ptr);
    (void)hak_heap_trim(scene->heap, 0);
    told->ptr = ptr;
    hak_free(ptr);
}
static void double_realloc(const scene_t *scene)
{
    void *ptr = block_among_others(scene);
    hak_heap_free(scene->heap, ptr);
    told->ptr = ptr;
    told->survived = hak_heap_realloc(scene->heap, ptr, scene->bytes) != NULL;
}
static void double_free_sized(const scene_t *scene)
{
    void *ptr = block_among_others(scene);
    hak_heap_free_sized(scene->heap, ptr, scene->bytes);
    told->ptr = ptr;
    hak_heap_free_sized(scene->heap, ptr, scene->bytes);
}
/* realloc has moved the block: the old address is free. */
static void double_after_move(const scene_t *scene)
{
    void *ptr = block_among_others(scene);
    /* A mid block might grow where it is: only as a large one it surely moves. */
    bool mid = scene->bytes > 32 * HAK_KIB && scene->bytes <= HAK_MIB;
    void *moved = hak_heap_realloc(scene->heap, ptr, mid ? 3 * HAK_MIB : 3 * scene->bytes);
    if (!moved || moved == ptr) _exit(97);
    bad_free(scene, ptr);
}

/* ---- WRONG_HEAP ---- */

static void wrong_free(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    hak_heap_free(scene->other, ptr);
}
static void wrong_free_sized(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    hak_heap_free_sized(scene->other, ptr, scene->bytes);
}
static void wrong_realloc(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    told->survived = hak_heap_realloc(scene->other, ptr, 2 * scene->bytes) != NULL;
}
/* The heap that is named wrongly has blocks of the class, so its magazines would take it. */
static void wrong_free_warm(const scene_t *scene)
{
    void *warm = hak_heap_malloc(scene->other, scene->bytes);
    hak_heap_free(scene->other, warm);
    wrong_free(scene);
}

/* ---- DESTROYED ---- */

static void reset_then_free(const scene_t *scene)
{
    void *ptr = block(scene);
    if (hak_heap_reset(scene->heap) != 0) _exit(96);
    bad_free(scene, ptr);
}
static void reset_then_hak_free(const scene_t *scene)
{
    void *ptr = block(scene);
    if (hak_heap_reset(scene->heap) != 0) _exit(96);
    told->ptr = ptr;
    hak_free(ptr);
}
static void reset_then_realloc(const scene_t *scene)
{
    void *ptr = block(scene);
    if (hak_heap_reset(scene->heap) != 0) _exit(96);
    told->ptr = ptr;
    told->survived = hak_heap_realloc(scene->heap, ptr, 10) != NULL;
}
static void destroy_then_free(const scene_t *scene)
{
    void *ptr = block(scene);
    if (hak_heap_destroy(scene->heap) != 0) _exit(96);
    bad_free(scene, ptr);
}
static void destroy_then_hak_free(const scene_t *scene)
{
    void *ptr = block(scene);
    if (hak_heap_destroy(scene->heap) != 0) _exit(96);
    told->ptr = ptr;
    hak_free(ptr);
}
static void destroy_superslabs_then_hak_free(const scene_t *scene)
{
    void *ptr = NULL;
    for (size_t bytes = 0; bytes < 6 * HAK_MIB; bytes += scene->bytes) ptr = block(scene);
    if (hak_heap_destroy(scene->heap) != 0) _exit(96);
    told->ptr = ptr;
    hak_free(ptr);
}

/* ---- SIZE ---- */

static void size_too_large(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    hak_heap_free_sized(scene->heap, ptr, scene->bytes + 1);
}
static void size_too_small(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    /* A mapping may be reused for less than it is, so only far less is surely wrong. */
    hak_heap_free_sized(scene->heap, ptr,
                        scene->bytes > MID_MAX ? scene->bytes / 16 : scene->bytes / 2 - 1);
}
static void size_zero(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    hak_heap_free_sized(scene->heap, ptr, 0);
}
static void size_huge(const scene_t *scene)
{
    void *ptr = block(scene);
    told->ptr = ptr;
    hak_heap_free_sized(scene->heap, ptr, SIZE_MAX);
}

/* ---- CORRUPT ---- */

static void write_after_free(const scene_t *scene, int word)
{
    uint64_t *ptr = block_among_others(scene);
    hak_heap_free(scene->heap, ptr);
    told->ptr = ptr;
    ((volatile uint64_t *)ptr)[word] ^= 1;
    told->survived = hak_heap_malloc(scene->heap, scene->bytes) != NULL;
}
static void written_word_0(const scene_t *scene) { write_after_free(scene, 0); }
static void written_word_1(const scene_t *scene) { write_after_free(scene, 1); }

/* Two blocks of which the second begins where the first ends; a slab may end in between. */
static char *block_with_neighbour(const scene_t *scene)
{
    char *before = block(scene);
    for (;;) {
        char *next = block(scene);
        if (next == before + scene->bytes) return before;
        before = next;
    }
}

/* The block's neighbour is free, and the program writes on beyond its own. */
static void overflow_into_free(const scene_t *scene)
{
    (void)block_among_others(scene);
    char *mine = block_with_neighbour(scene);
    char *neighbour = mine + scene->bytes;
    hak_heap_free(scene->heap, neighbour);
    told->ptr = neighbour;
    for (size_t i = 0; i < 16; i++) ((volatile char *)mine)[scene->bytes + i] = 'o';
    told->survived = hak_heap_malloc(scene->heap, scene->bytes) != NULL;
}
/* The write happens while the block lies in its slab's freelist. */
static void written_in_slab(const scene_t *scene)
{
    uint64_t *ptr = block_among_others(scene);
    hak_heap_free(scene->heap, ptr);
    (void)hak_heap_flush(scene->heap);
    told->ptr = ptr;
    ((volatile uint64_t *)ptr)[1] ^= 1;
    for (int i = 0; i < 10000; i++) (void)block(scene);
    told->survived = true;
}
static void written_found_by_flush(const scene_t *scene)
{
    uint64_t *ptr = block_among_others(scene);
    hak_heap_free(scene->heap, ptr);
    told->ptr = ptr;
    ((volatile uint64_t *)ptr)[1] ^= 1;
    (void)hak_heap_flush(scene->heap);
    told->survived = true;
}

/* ---- The table ---- */

#define GONE       "the block was freed and its memory given back"
#define FREE_AGAIN "the block is free already"
#define NO_START   "the address is not the start of a block"
#define NOWHERE    "no heap has this address"
#define DEAD       "the heap of this block was reset or destroyed"
#define BELONGS    "the block belongs to heap \"mine\""
#define NOT_SIZE   "no block of the given size lies here"
#define WRITTEN    "a free block was written to (write after free, or overflow of its neighbour)"

/* What stands for the class in the line. */
enum { CLASS_NONE, CLASS_USABLE };

typedef struct row {
    const char *name;
    void (*run)(const scene_t *scene);
    unsigned kinds, levels;
    const char *code, *operation, *heap;
    int class;
    const char *words;
} row_t;

static const row_t rows[] = {
    {"free of a global", foreign_global, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine", CLASS_NONE,
     NOWHERE},
    {"free of code", foreign_code, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine", CLASS_NONE,
     NOWHERE},
    {"free of a constant", foreign_constant, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine",
     CLASS_NONE, NOWHERE},
    {"free of the stack", foreign_stack, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine", CLASS_NONE,
     NOWHERE},
    {"free of malloc's", foreign_malloc, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine", CLASS_NONE,
     NOWHERE},
    {"free of address 16", foreign_low, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine", CLASS_NONE,
     NOWHERE},
    {"free of unmapped", foreign_unmapped, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine",
     CLASS_NONE, NOWHERE},
    {"free of PROT_NONE", foreign_protected, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine",
     CLASS_NONE, NOWHERE},
    {"free at the top of the user half", foreign_top_of_user_half, 1 << SMALL, IN_BOTH, "FOREIGN",
     "free", "mine", CLASS_NONE, NOWHERE},
    {"free at 2^47", foreign_two_to_47, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine", CLASS_NONE,
     NOWHERE},
    {"free in the kernel half", foreign_kernel_half, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine",
     CLASS_NONE, NOWHERE},
    {"free of the last 16 bytes", foreign_last_word, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine",
     CLASS_NONE, NOWHERE},
    {"free of a tagged address", foreign_tagged, ON_ALL, IN_BOTH, "FOREIGN", "free", "mine",
     CLASS_NONE, NOWHERE},
    {"free of the heap itself", foreign_heap_itself, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "mine",
     CLASS_NONE, NOWHERE},
    {"free beside a large block", foreign_after_large, 1 << SMALL, IN_BOTH, "FOREIGN", "free",
     "mine", CLASS_NONE, NOWHERE},
    {"free of malloc's, misaligned", foreign_misaligned, 1 << SMALL, IN_BOTH, "FOREIGN", "free",
     "mine", CLASS_NONE, NOWHERE},
    {"hak_free of malloc's", foreign_hak_free, 1 << SMALL, IN_BOTH, "FOREIGN", "free", "",
     CLASS_NONE, NOWHERE},
    {"realloc of malloc's", foreign_realloc, 1 << SMALL, IN_BOTH, "FOREIGN", "realloc", "mine",
     CLASS_NONE, NOWHERE},
    {"free_sized of malloc's, FAST", foreign_free_sized, 1 << SMALL, IN_FAST, "FOREIGN", "free",
     "mine", CLASS_NONE, NOWHERE},
    {"free_sized of malloc's, CHECKED", foreign_free_sized, 1 << SMALL, IN_CHECKED, "FOREIGN",
     "free_sized", "mine", CLASS_NONE, NOWHERE},

    {"free to a NULL heap", null_heap_free, ON_ALL, IN_BOTH, "HEAP", "free", "", CLASS_NONE,
     "the heap is NULL"},
    {"free_sized to a NULL heap", null_heap_free_sized, ON_ALL, IN_BOTH, "HEAP", "free", "",
     CLASS_NONE, "the heap is NULL"},

    {"interior, by 1", interior_1, ON_ALL, IN_BOTH, "INTERIOR", "free", "mine", CLASS_USABLE,
     NO_START},
    {"interior, by 8", interior_8, ON_ALL, IN_BOTH, "INTERIOR", "free", "mine", CLASS_USABLE,
     NO_START},
    {"interior, by 16, big", interior_16, ON_BIG, IN_BOTH, "INTERIOR", "free", "mine", CLASS_USABLE,
     NO_START},
    {"interior, by half, big", interior_half, ON_BIG, IN_BOTH, "INTERIOR", "free", "mine",
     CLASS_USABLE, NO_START},
    {"interior, by a granule, big", interior_granule, ON_BIG, IN_BOTH, "INTERIOR", "free", "mine",
     CLASS_USABLE, NO_START},
    {"interior, by 16", interior_16, 1 << SMALL | 1 << WIDE, IN_CHECKED, "INTERIOR", "free", "mine",
     CLASS_USABLE, NO_START},
    {"interior, by half", interior_half, 1 << SMALL | 1 << WIDE, IN_CHECKED, "INTERIOR", "free",
     "mine", CLASS_USABLE, NO_START},
    {"interior, by a granule", interior_granule, 1 << WIDE, IN_CHECKED, "INTERIOR", "free", "mine",
     CLASS_USABLE, NO_START},
    {"interior, last 16", interior_last_16, 1 << SMALL | 1 << WIDE | ON_BIG, IN_CHECKED, "INTERIOR",
     "free", "mine", CLASS_USABLE, NO_START},
    {"interior, hak_free", interior_hak_free, 1 << SMALL | 1 << WIDE | ON_BIG, IN_CHECKED,
     "INTERIOR", "free", "mine", CLASS_USABLE, NO_START},
    {"interior, realloc", interior_realloc, 1 << SMALL | 1 << WIDE | ON_BIG, IN_CHECKED, "INTERIOR",
     "realloc", "mine", CLASS_USABLE, NO_START},

    {"double free at once", double_at_once, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "free", "mine",
     CLASS_USABLE, FREE_AGAIN},
    {"double free at once, big", double_at_once, ON_BIG, IN_BOTH, "DOUBLE_FREE", "free", "mine",
     CLASS_NONE, GONE},
    {"double free of the only block", double_at_once_alone, ON_SMALL, IN_CHECKED, "DOUBLE_FREE",
     "free", "mine", CLASS_USABLE, FREE_AGAIN},
    {"double free of the only block, big", double_at_once_alone, ON_BIG, IN_BOTH, "DOUBLE_FREE",
     "free", "mine", CLASS_NONE, GONE},
    {"double free by hak_free", double_by_hak_free, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "free",
     "mine", CLASS_USABLE, FREE_AGAIN},
    {"double free by hak_free, big", double_by_hak_free, ON_BIG, IN_BOTH, "DOUBLE_FREE", "free", "",
     CLASS_NONE, GONE},
    {"double free later", double_later, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "free", "mine",
     CLASS_USABLE, FREE_AGAIN},
    {"double free later, big", double_later, ON_BIG, IN_BOTH, "DOUBLE_FREE", "free", "mine",
     CLASS_NONE, GONE},
    {"double free, deep", double_deep, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "free", "mine",
     CLASS_USABLE, FREE_AGAIN},
    {"double free, second by a thread", double_second_in_thread, ON_SMALL, IN_CHECKED,
     "DOUBLE_FREE", "free", "mine", CLASS_USABLE, FREE_AGAIN},
    {"double free, second by a thread, big", double_second_in_thread, ON_BIG, IN_BOTH,
     "DOUBLE_FREE", "free", "mine", CLASS_NONE, GONE},
    {"double free, first by a thread", double_first_in_thread, ON_SMALL, IN_CHECKED, "DOUBLE_FREE",
     "free", "mine", CLASS_USABLE, FREE_AGAIN},
    {"double free, first by a thread, big", double_first_in_thread, ON_BIG, IN_BOTH, "DOUBLE_FREE",
     "free", "mine", CLASS_NONE, GONE},
    {"double free after flush", double_after_flush, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "free",
     "mine", CLASS_USABLE, FREE_AGAIN},
    {"double free after flush, big", double_after_flush, ON_BIG, IN_BOTH, "DOUBLE_FREE", "free",
     "mine", CLASS_NONE, GONE},
    {"double free after trim", double_after_trim, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "free",
     "mine", CLASS_USABLE, FREE_AGAIN},
    {"double free after trim, big", double_after_trim, ON_BIG, IN_BOTH, "DOUBLE_FREE", "free",
     "mine", CLASS_NONE, GONE},
    {"double free in a released page", double_in_released_page, ON_SMALL, IN_CHECKED, "DOUBLE_FREE",
     "free", "mine", CLASS_USABLE, FREE_AGAIN},
    {"double free of released memory", double_given_back, ON_ALL, IN_BOTH, "DOUBLE_FREE", "free",
     "mine", CLASS_NONE, GONE},
    {"double free of a released SuperSlab", double_superslab_given_back,
     1 << SMALL | 1 << WIDE | ON_BIG, IN_BOTH, "DOUBLE_FREE", "free", "mine", CLASS_NONE, GONE},
    {"double free of released memory by hak_free", double_given_back_hak_free, ON_ALL, IN_BOTH,
     "DOUBLE_FREE", "free", "", CLASS_NONE, GONE},
    {"realloc of a free block", double_realloc, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "realloc",
     "mine", CLASS_USABLE, FREE_AGAIN},
    {"realloc of a free block, big", double_realloc, ON_BIG, IN_BOTH, "DOUBLE_FREE", "realloc",
     "mine", CLASS_NONE, GONE},
    {"free_sized of a free block", double_free_sized, ON_SMALL, IN_CHECKED, "DOUBLE_FREE",
     "free_sized", "mine", CLASS_USABLE, FREE_AGAIN},
    {"free_sized of a free block, big", double_free_sized, ON_BIG, IN_CHECKED, "DOUBLE_FREE",
     "free_sized", "mine", CLASS_NONE, GONE},
    {"free_sized of a free block, big, FAST", double_free_sized, ON_BIG, IN_FAST, "DOUBLE_FREE",
     "free", "mine", CLASS_NONE, GONE},
    {"free of what realloc moved", double_after_move, ON_SMALL, IN_CHECKED, "DOUBLE_FREE", "free",
     "mine", CLASS_USABLE, FREE_AGAIN},
    {"free of what realloc moved, big", double_after_move, 1 << MID, IN_BOTH, "DOUBLE_FREE", "free",
     "mine", CLASS_NONE, GONE},

    {"free to another heap", wrong_free, ON_ALL, IN_BOTH, "WRONG_HEAP", "free", "other",
     CLASS_USABLE, BELONGS},
    {"free to another heap, warm", wrong_free_warm, ON_ALL, IN_BOTH, "WRONG_HEAP", "free", "other",
     CLASS_USABLE, BELONGS},
    {"free_sized to another heap", wrong_free_sized, ON_ALL, IN_CHECKED, "WRONG_HEAP", "free_sized",
     "other", CLASS_USABLE, BELONGS},
    {"free_sized to another heap, FAST", wrong_free_sized, ON_ALL, IN_FAST, "WRONG_HEAP", "free",
     "other", CLASS_USABLE, BELONGS},
    {"realloc across heaps", wrong_realloc, ON_ALL, IN_BOTH, "WRONG_HEAP", "realloc", "other",
     CLASS_USABLE, BELONGS},

    {"free after reset", reset_then_free, ON_ALL, IN_BOTH, "DESTROYED", "free", "mine", CLASS_NONE,
     DEAD},
    {"hak_free after reset", reset_then_hak_free, ON_ALL, IN_BOTH, "DESTROYED", "free", "",
     CLASS_NONE, DEAD},
    {"realloc after reset", reset_then_realloc, ON_ALL, IN_BOTH, "DESTROYED", "realloc", "mine",
     CLASS_NONE, DEAD},
    {"free after destroy", destroy_then_free, ON_ALL, IN_BOTH, "DESTROYED", "free", NULL,
     CLASS_NONE, DEAD},
    {"hak_free after destroy", destroy_then_hak_free, ON_ALL, IN_BOTH, "DESTROYED", "free", "",
     CLASS_NONE, DEAD},
    {"hak_free after destroy, SuperSlabs", destroy_superslabs_then_hak_free, ON_ALL & ~(1 << TINY),
     IN_BOTH, "DESTROYED", "free", "", CLASS_NONE, DEAD},

    {"free_sized, too large", size_too_large, ON_ALL, IN_CHECKED, "SIZE", "free_sized", "mine",
     CLASS_USABLE, NOT_SIZE},
    {"free_sized, too small", size_too_small, ON_ALL & ~(1 << TINY), IN_CHECKED, "SIZE",
     "free_sized", "mine", CLASS_USABLE, NOT_SIZE},
    {"free_sized, zero", size_zero, ON_ALL & ~(1 << TINY), IN_CHECKED, "SIZE", "free_sized", "mine",
     CLASS_USABLE, NOT_SIZE},
    {"free_sized, SIZE_MAX", size_huge, ON_ALL, IN_CHECKED, "SIZE", "free_sized", "mine",
     CLASS_USABLE, NOT_SIZE},

    {"write after free, first word", written_word_0, ON_SMALL, IN_CHECKED, "CORRUPT", "malloc",
     "mine", CLASS_USABLE, WRITTEN},
    {"write after free, second word", written_word_1, ON_SMALL, IN_CHECKED, "CORRUPT", "malloc",
     "mine", CLASS_USABLE, WRITTEN},
    {"overflow into a free block", overflow_into_free, ON_SMALL, IN_CHECKED, "CORRUPT", "malloc",
     "mine", CLASS_USABLE, WRITTEN},
    {"write after free, in the slab", written_in_slab, ON_SMALL, IN_CHECKED, "CORRUPT", "malloc",
     "mine", CLASS_USABLE, WRITTEN},
    {"write after free, found by flush", written_found_by_flush, ON_SMALL, IN_CHECKED, "CORRUPT",
     "free", "mine", CLASS_USABLE, WRITTEN},
};

/* ---- One case: a row, a kind of block, a level ---- */

typedef struct misuse_case {
    const row_t *row;
    scene_t scene;
} misuse_case_t;

static void run_case(void *arg)
{
    misuse_case_t *at = arg;
    at->scene.heap = contract_heap(at->scene.level, "mine");
    at->scene.other = contract_heap(at->scene.level, "other");
    if (!at->scene.heap || !at->scene.other) _exit(95);
    /* A first block, so that the address space the library takes is taken. */
    void *first = hak_heap_malloc(at->scene.heap, 64);
    void *second = hak_heap_malloc(at->scene.other, 64);
    if (!first || !second) _exit(95);
    at->row->run(&at->scene);
}

static void shared_memory(void)
{
    told = mmap(NULL, HAK_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(told != MAP_FAILED);
}

/* A destroyed heap's name may still be known or not: both lines are right then. */
static bool line_is(const char *text, const row_t *row, const char *heap, size_t class_bytes)
{
    char line[512];
    snprintf(line, sizeof line, "hakheap: %s: %s ptr=0x%lx heap=\"%s\" class=%zu: %s\n", row->code,
             row->operation, (unsigned long)(uintptr_t)told->ptr, heap, class_bytes, row->words);
    return strncmp(text, line, strlen(line)) == 0;
}

/* Writes what is wrong and returns false. */
static bool case_holds(const row_t *row, kind_t kind, int level)
{
    static child_result_t result;
    misuse_case_t at = {row, {.level = level, .bytes = kind_bytes[kind]}};
    told->ptr = NULL;
    told->survived = false;
    child_run(&result, run_case, &at);
    size_t class_bytes = row->class == CLASS_USABLE ? at.scene.bytes : 0;
    bool line = row->heap ? line_is(result.text, row, row->heap, class_bytes)
                          : line_is(result.text, row, "mine", class_bytes) ||
                                line_is(result.text, row, "", class_bytes);
    if (result.signal == SIGABRT && line) return true;
    cr_log_error("%s (%s, %s): signal %d, status %d, expected %s: %s ptr=%p heap=\"%s\" class=%zu: "
                 "%s; it said: %.400s",
                 row->name, kind_names[kind], level ? "CHECKED" : "FAST", result.signal,
                 result.status, row->code, row->operation, told->ptr,
                 row->heap ? row->heap : "mine\" or \"", class_bytes, row->words, result.text);
    return false;
}

static void run_rows(const char *code)
{
    shared_memory();
    unsigned cases = 0, failed = 0;
    for (size_t i = 0; i < CONTRACT_LENGTH(rows); i++) {
        const row_t *row = &rows[i];
        if (strcmp(row->code, code) != 0) continue;
        for (unsigned kind = 0; kind < KINDS; kind++)
            for (int level = 0; level < CONTRACT_LEVELS; level++) {
                if (!(row->kinds >> kind & 1) || !(row->levels >> level & 1)) continue;
                cases++;
                failed += !case_holds(row, (kind_t)kind, level);
            }
    }
    cr_assert(cases > 0, "no case of %s", code);
    cr_assert(failed == 0, "%s: %u of %u cases failed (%s)", code, failed, cases,
              hak_percpu_mode());
}

Test(misuse, foreign) { run_rows("FOREIGN"); }
Test(misuse, null_heap) { run_rows("HEAP"); }
Test(misuse, interior) { run_rows("INTERIOR"); }
Test(misuse, double_free) { run_rows("DOUBLE_FREE"); }
Test(misuse, wrong_heap) { run_rows("WRONG_HEAP"); }
Test(misuse, destroyed) { run_rows("DESTROYED"); }
Test(misuse, size) { run_rows("SIZE"); }
Test(misuse, corrupt) { run_rows("CORRUPT"); }

/* ---- A SuperSlab that was several heaps' ---- */

enum { HALF = SUPERSLAB / 2 };

/* The SuperSlab of a destroyed heap comes to another one, which uses the first half of it and gives
 * it back. `arg`: the block that is freed then, of the first heap (in the second half) or of the
 * second. */
static void free_after_two_heaps(void *arg)
{
    hak_heap_t *first = contract_heap(0, "first"), *second = contract_heap(1, "second");
    char *lower = hak_heap_malloc(first, HALF), *upper = hak_heap_malloc(first, HALF);
    if (!lower || upper != lower + HALF || hak_heap_destroy(first) != 0) _exit(95);
    char *again = hak_heap_malloc(second, HALF);
    if (again != lower) _exit(96);
    if (*(const int *)arg == 0) hak_free(upper);
    hak_heap_free(second, again);
    (void)hak_heap_trim(second, 0);
    if (hak_heap_of(again) || hak_heap_of(upper)) _exit(97);
    hak_free(*(const int *)arg == 1 ? upper : again);
}

/* What a granule's last holder says of it stays, whoever has the rest of the SuperSlab. */
Test(misuse, a_granule_is_named_by_its_last_holder)
{
    static const char *const codes[] = {"DESTROYED", "DESTROYED", "DOUBLE_FREE"};
    for (int which = 0; which < 3; which++) {
        child_result_t result;
        child_run(&result, free_after_two_heaps, &which);
        cr_assert(child_aborted(&result, codes[which], "free"), "%d: status %d: %s", which,
                  result.status, result.text);
    }
}

/* The check of the lines above can fail: a line with another code, another pointer or none at all
 * is not taken. */
Test(misuse, the_comparison_can_fail)
{
    shared_memory();
    const row_t *row = &rows[0];
    told->ptr = (const void *)(uintptr_t)0x10;
    cr_assert(line_is("hakheap: FOREIGN: free ptr=0x10 heap=\"mine\" class=0: " NOWHERE "\n", row,
                      "mine", 0));
    cr_assert(!line_is("hakheap: INTERIOR: free ptr=0x10 heap=\"mine\" class=0: " NOWHERE "\n", row,
                       "mine", 0));
    cr_assert(!line_is("hakheap: FOREIGN: free ptr=0x20 heap=\"mine\" class=0: " NOWHERE "\n", row,
                       "mine", 0));
    cr_assert(!line_is("", row, "mine", 0));
}

/* ---- hak_heap_check finds a written block, says so, and does not abort ---- */

static void check_finds(void *arg)
{
    const size_t *choice = arg;
    hak_heap_t *heap = contract_heap(1, "mine");
    if (!heap) _exit(95);
    uint64_t *blocks[10];
    for (size_t i = 0; i < 10; i++)
        if (!(blocks[i] = hak_heap_malloc(heap, choice[0]))) _exit(95);
    hak_heap_free(heap, blocks[5]);
    if (choice[2]) (void)hak_heap_flush(heap);
    told->ptr = blocks[5];
    if (hak_heap_check(heap) != 0) _exit(94);
    errno = 77;
    ((volatile uint64_t *)blocks[5])[choice[1]] ^= 4;
    int found = hak_heap_check(heap);
    if (errno != 77) _exit(93);
    ((volatile uint64_t *)blocks[5])[choice[1]] ^= 4;
    /* Looking at a damaged heap changes nothing: once the damage is undone, it is sound. */
    if (hak_heap_check(heap) != 0) _exit(92);
    _exit(found == EFAULT ? 0 : 91);
}

Test(misuse, check_finds_what_was_written)
{
    static child_result_t result;
    static const row_t row = {
        .code = "CORRUPT", .operation = "check", .words = "a free block was written to"};
    shared_memory();
    for (unsigned kind = SMALL; kind <= WIDE; kind++)
        for (size_t word = 0; word < 2; word++)
            for (size_t flush = 0; flush < 2; flush++) {
                size_t choice[3] = {kind_bytes[kind], word, flush};
                child_run(&result, check_finds, choice);
                cr_expect(result.status == 0 && line_is(result.text, &row, "mine", choice[0]),
                          "%s, word %zu, flush %zu: status %d, signal %d: %s", kind_names[kind],
                          word, flush, result.status, result.signal, result.text);
            }
}

/* ---- Calls on a destroyed heap that can be refused are ---- */

typedef struct survivor {
    int level;
    size_t bytes;
    bool cached; /* free blocks were in its magazines when it went */
} survivor_t;

/* The exit status names the call that did not say EINVAL. */
static void use_destroyed(void *arg)
{
    const survivor_t *how = arg;
    hak_heap_t *heap = contract_heap(how->level, "mine");
    if (!heap) _exit(95);
    void *blocks[8];
    for (size_t i = 0; i < 8; i++)
        if (!(blocks[i] = hak_heap_malloc(heap, how->bytes))) _exit(95);
    if (how->cached)
        for (size_t i = 0; i < 8; i++) hak_heap_free(heap, blocks[i]);
    if (hak_heap_destroy(heap) != 0) _exit(94);
    if (hak_heap_destroy(heap) != EINVAL) _exit(1);
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    hak_class_stats_t class_stats = {.struct_size = sizeof class_stats};
    if (hak_heap_reset(heap) != EINVAL) _exit(2);
    if (hak_heap_stats(heap, &stats) != EINVAL) _exit(3);
    if (hak_heap_class_stats(heap, 0, &class_stats) != EINVAL) _exit(4);
    if (hak_heap_check(heap) != EINVAL) _exit(5);
    if (hak_heap_flush(heap) != 0 || hak_heap_trim(heap, 0) != 0) _exit(6);
    errno = 0;
    if (hak_heap_malloc(heap, how->bytes) || errno != EINVAL) _exit(7);
    errno = 0;
    if (hak_heap_calloc(heap, 1, how->bytes) || errno != EINVAL) _exit(8);
    errno = 0;
    if (hak_heap_aligned_alloc(heap, 64, how->bytes) || errno != EINVAL) _exit(9);
    errno = 0;
    if (hak_heap_realloc(heap, NULL, how->bytes) || errno != EINVAL) _exit(10);
    if (hak_last_error() != HAK_ERROR_ARGUMENT) _exit(11);
}

Test(misuse, a_destroyed_heap_is_refused)
{
    static child_result_t result;
    for (int level = 0; level < CONTRACT_LEVELS; level++)
        for (unsigned kind = 0; kind < KINDS; kind++)
            for (int cached = 0; cached < 2; cached++) {
                survivor_t how = {level, kind_bytes[kind], cached};
                child_run(&result, use_destroyed, &how);
                cr_expect(result.status == 0 && result.signal == 0,
                          "level %d, %s, cached %d: call %d was not refused (signal %d): %s", level,
                          kind_names[kind], cached, result.status, result.signal, result.text);
            }
}

/* A wrong size is the caller's secret in FAST heaps, and a right one is right in both. */
static void sizes_that_pass(void *arg)
{
    int level = *(int *)arg;
    hak_heap_t *heap = contract_heap(level, "mine");
    if (!heap) _exit(95);
    for (size_t size = 0; size < 3 * HAK_MIB; size += 1 + size / 7) {
        void *ptr = hak_heap_malloc(heap, size);
        if (!ptr) _exit(94);
        hak_heap_free_sized(heap, ptr, size);
        /* A block that realloc left where it is. */
        ptr = hak_heap_malloc(heap, size);
        if (!ptr || !(ptr = hak_heap_realloc(heap, ptr, size - size / 3))) _exit(93);
        hak_heap_free_sized(heap, ptr, size - size / 3);
    }
    for (size_t alignment = 1; alignment <= 8 * HAK_MIB; alignment *= 2)
        for (size_t size = 1; size < 3 * HAK_MIB; size = size * 5 + 1) {
            void *ptr = hak_heap_aligned_alloc(heap, alignment, size);
            if (!ptr) _exit(92);
            hak_heap_free_sized(heap, ptr, (size + alignment - 1) & ~(alignment - 1));
        }
    _exit(hak_heap_check(heap) == 0 ? 0 : 91);
}

Test(misuse, true_sizes_pass)
{
    static child_result_t result;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        child_run(&result, sizes_that_pass, &level);
        cr_expect(result.status == 0 && result.signal == 0, "level %d: status %d, signal %d: %s",
                  level, result.status, result.signal, result.text);
    }
}

/* ---- What is no misuse ---- */

/* How a program may leave a block before it frees it: it writes zeros first, or little, or
 * nothing. */
static void leave(char *at, size_t bytes, unsigned how)
{
    switch (how) {
    case 0: break;
    case 1: at[0] = 0; break;
    case 2: memset(at, 0, hak_min(bytes, 8)); break;
    case 3: memset(at, 0, bytes); break;
    case 4: memset(at, 0xff, hak_min(bytes, 8)); break;
    case 5: memcpy(at, &(uint64_t){(uintptr_t)at}, 8); break;
    default: memcpy(at, &(uint64_t){1}, 8); break;
    }
}

static void free_somehow(hak_heap_t *heap, void *ptr, size_t bytes, unsigned how)
{
    switch (how % 4) {
    case 0: hak_heap_free(heap, ptr); break;
    case 1: hak_free(ptr); break;
    case 2: hak_heap_free_sized(heap, ptr, bytes); break;
    default: hak_heap_free(heap, hak_heap_realloc(heap, ptr, bytes * 2)); break;
    }
}

/* Whole chains go out and come back, so that the last block of each, whose link is 0, is among
 * them. */
Test(misuse, whatever_a_program_leaves_in_a_block_it_may_free_it)
{
    enum { BLOCKS = 200, WAYS = 7 };
    static const size_t sizes[] = {1, 8, 16, 17, 48, 200, 1024, 5000, SMALL_MAX};
    static void *held[BLOCKS];
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "honest");
        cr_assert(heap != NULL);
        for (unsigned round = 0; round < CONTRACT_LENGTH(sizes) * WAYS * 4; round++) {
            size_t bytes = sizes[round % CONTRACT_LENGTH(sizes)];
            unsigned how = round / CONTRACT_LENGTH(sizes) % WAYS,
                     way = round / CONTRACT_LENGTH(sizes) / WAYS;
            for (unsigned i = 0; i < BLOCKS; i++) {
                held[i] = how == 3 ? hak_heap_calloc(heap, 1, bytes) : hak_heap_malloc(heap, bytes);
                cr_assert(held[i] != NULL);
                leave(held[i], hak_usable_size(held[i]), how);
            }
            for (unsigned i = 0; i < BLOCKS; i++) free_somehow(heap, held[i], bytes, way);
            if (round % 16 == 0) cr_assert(contract_unsound(heap, 0) == 0);
        }
        cr_assert(hak_heap_destroy(heap) == 0);
    }
}

/* ---- A block's start that was never handed out ---- */

/* In the slab of a block, so far behind it, or before. */
static char *place_near(const hak_heap_t *heap, char *first, size_t distance)
{
    return hak_heap_of(first + distance) == heap ? first + distance : first - distance;
}

/* In a heap of its own process, so that its pages are the kernel's: up to two pages on from the
 * first block. The free may go unnoticed; the address is not handed out twice. */
static void free_what_was_never_handed_out(void *arg)
{
    enum { TIMES = 4000 };
    size_t distance = *(const size_t *)arg;
    hak_heap_t *heap = contract_heap(1, "mine");
    char *first = heap ? hak_heap_malloc(heap, 16) : NULL;
    if (!first) _exit(99);
    char *place = place_near(heap, first, distance);
    hak_heap_free(heap, place);
    if (hak_heap_check(heap) != EFAULT) _exit(98);
    size_t times = 0;
    for (int i = 0; i < TIMES; i++) {
        char *block = hak_heap_malloc(heap, 16);
        if (!block) _exit(97);
        times += block == place;
    }
    _exit(times > 1 ? 96 : 95);
}

Test(misuse, what_was_never_handed_out_is_not_handed_out_twice)
{
    for (size_t distance = 256; distance <= 2 * HAK_PAGE; distance += 720) {
        child_result_t result;
        child_run(&result, free_what_was_never_handed_out, &distance);
        /* The check's line comes first, where the free was not named at once. */
        const char *line = strstr(result.text, "hakheap: CORRUPT: check");
        const char *last = line ? strchr(line, '\n') + 1 : result.text;
        cr_assert(result.signal == SIGABRT, "distance %zu: status %d: %s", distance, result.status,
                  result.text);
        cr_assert(strstr(last, "hakheap: INTERIOR: malloc") || strstr(last, "CORRUPT: malloc") ||
                      strstr(last, "hakheap: DOUBLE_FREE: free"),
                  "distance %zu: %s", distance, result.text);
    }
}

static void free_sized_what_was_never_handed_out(void *arg)
{
    (void)arg;
    hak_heap_t *heap = contract_heap(1, "mine");
    char *first = heap ? hak_heap_malloc(heap, 16) : NULL;
    if (first) hak_heap_free_sized(heap, place_near(heap, first, HAK_PAGE), 16);
}

/* Where a free takes the slow way it looks at the page. */
Test(misuse, what_was_never_handed_out_is_known_by_its_page)
{
    child_result_t result;
    child_run(&result, free_sized_what_was_never_handed_out, NULL);
    cr_assert(child_aborted(&result, "DOUBLE_FREE", "free_sized"), "%s", result.text);
}
