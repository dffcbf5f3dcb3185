/* Holds threads at the points of stall.h, and sets others to work meanwhile. */
#ifndef HAK_SUPPORT_STALL_H
#define HAK_SUPPORT_STALL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "hakheap.h"
#include "heap.h"
#include "stall.h"

/* What every wait here is bounded by: a guard against hangs and no measure. */
enum { STALL_SECONDS = 60 };

/* Waits until a flag is set; false: it was not set in time. */
bool stall_wait(_Atomic bool *flag);

/* ---- What went wrong in any thread ---- */

/* Notes a line; the first that is noted stays. */
void stall_wrong(const char *file, int line);
#define STALL_REQUIRE(x) ((x) ? (void)0 : stall_wrong(__FILE__, __LINE__))
/* "file:line" of the first; NULL: nothing. */
const char *stall_what_is_wrong(void);

/* Arms a point; NULL: no more. */
void stall_arm(stall_point_t point, stall_t *stall);

/* ---- A thread that stands at a point ---- */

typedef struct hold {
    stall_t stall;
    stall_point_t point;
    void (*act)(void);   /* what the thread does; leads to the point */
    void (*there)(void); /* what it does at the point, before it stands; NULL: nothing */
    pthread_t thread;
    _Atomic bool stands, go, ended, late; /* late: nothing let it go in time */
} hold_t;

/* Starts a thread that acts, and waits until it stands at the nth visit. False: it never came
 * there; or not in time. */
bool hold_start(hold_t *hold, stall_point_t point, uint32_t nth, void (*act)(void),
                void (*there)(void));
/* Lets it go on, and waits for its end. False: it stood too long, or did not end. */
bool hold_end(hold_t *hold);
uint32_t hold_visits(const hold_t *hold);

/* ---- Threads that work meanwhile ---- */

enum { CREW = 12 };
typedef struct mate {
    void (*work)(void);
    pthread_t thread;
    _Atomic int tid;
    _Atomic bool done;
} mate_t;
typedef struct crew {
    mate_t mates[CREW];
    size_t count;
} crew_t;

void crew_start(crew_t *crew, void (*work)(void));
/* Until each has done its work or sleeps, in a lock or in the gate. */
void crew_settle(const crew_t *crew);
/* Until all have done their work; false: not in time. */
bool crew_finish(crew_t *crew);

/* ---- Blocks that know their content, and what a program does with a heap ---- */

typedef struct item {
    unsigned char *ptr; /* NULL: none */
    size_t size;
    unsigned seed;
} item_t;

void item_make(hak_heap_t *heap, item_t *item, size_t size);
bool item_holds(const item_t *item);
/* Proves the content first. */
void item_free(hak_heap_t *heap, item_t *item);

enum {
    SCENE_SIZE = 64,     /* of the class that the windows are about: the smallest that is used */
    SCENE_OTHER = 256,   /* of another class */
    SCENE_MID = 40000,   /* three granules */
    SCENE_BIG = 1 << 20, /* the largest mid block: two fill a SuperSlab */
    SCENE_LARGE = 3 << 20,
    SCENE_KEPT = 40,
    SCENE_THEIRS = 240,
    SCENE_HANDLERS = 16,
    SCENE_ACTS = 4000
};

/* One heap with blocks for each of those who free some. */
typedef struct scene {
    hak_heap_t *heap;
    item_t kept[SCENE_KEPT];         /* nobody frees them before the end */
    item_t theirs[SCENE_THEIRS];     /* freed by the test's thread while another stands */
    item_t handlers[SCENE_HANDLERS]; /* freed by a handler of the thread that stands */
    item_t acts[SCENE_ACTS];         /* the test's own */
} scene_t;
extern scene_t scene;
/* The record of the class of SCENE_SIZE. */
class_state_t *scene_class(void);
/* The first `count` of `acts`; and all that there are. */
void scene_make_acts(size_t count, size_t size);
void scene_free_acts(void);

void scene_begin(int level);
/* Live blocks. */
size_t scene_live(void);
/* All that is alive is whole, is freed, and the heap is sound: before, between and after. Destroys
 * it. 0, or the line of support_contract.c that says what is not. */
int scene_end(void);
/* Frees what is in `theirs`, small, mid and large blocks. */
void scene_free_theirs(void);

/* What a signal handler may do, by a signal to the calling thread: frees, an allocation, each
 * control call, a fork. */
void scene_signal(void);
/* In a child: all can be used, and the balance is exact. Ends the process. */
void scene_child(void *unused);

/* Work for a crew: allocate, fill and free; flush; trim; check; figures; fork. */
void scene_allocate(void);
void scene_flush(void);
void scene_trim(void);
void scene_check(void);
void scene_figures(void);
void scene_fork(void);
/* Starts them all, the fork last, and lets them settle. `never_waits`: all but the fork must come to
 * their end. */
void scene_disturb(crew_t *crew, bool never_waits);

/* ---- A window: all of the above, once at each level ---- */

typedef struct window {
    stall_point_t point;
    uint32_t nth;          /* 0: the first visit */
    void (*prepare)(void); /* before the point is armed; NULL: nothing, as all below */
    void (*act)(void);     /* leads a thread to the point */
    void (*there)(void);   /* what that thread does there itself */
    void (*danger)(void);  /* what the test's thread does meanwhile, and is done with meanwhile */
    void (*after)(void);   /* after all threads have ended */
    bool quiet;            /* no crew: it would undo what `danger` has done */
    bool crew_never_waits; /* but for its fork */
} window_t;

/* NULL; or what is wrong. */
const char *window_open(const window_t *window);

/* For Criterion tests. */
#define NEEDS_POINTS() \
    if (!HAK_DEBUG) cr_skip_test("points are in builds with DEBUG=1")
#define WINDOW(...)                                                       \
    do {                                                                  \
        NEEDS_POINTS();                                                   \
        const char *window_wrong = window_open(&(window_t){__VA_ARGS__}); \
        cr_assert(window_wrong == NULL, "%s", window_wrong);              \
    } while (0)
/* The same where a test holds its threads itself. */
#define SCENE_END()                                                            \
    do {                                                                       \
        int scene_line = scene_end();                                          \
        cr_assert(scene_line == 0, "support_contract.c:%d", scene_line);       \
        cr_assert(stall_what_is_wrong() == NULL, "%s", stall_what_is_wrong()); \
    } while (0)

#endif
