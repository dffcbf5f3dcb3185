#define _GNU_SOURCE
#include "support_stall.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block.h"
#include "sizeclass.h"
#include "support_child.h"
#include "support_contract.h"
#include "tls.h"

enum { STEP_US = 500, STEPS = STALL_SECONDS * (1000000 / STEP_US) };

bool stall_wait(_Atomic bool *flag)
{
    for (unsigned step = 0; step < STEPS; step++) {
        if (load_acquire(flag)) return true;
        usleep(STEP_US);
    }
    return load_acquire(flag);
}

/* ---- What went wrong ---- */

static struct {
    _Atomic bool taken, told;
    char text[200];
} wrong;

void stall_wrong(const char *file, int line)
{
    if (exchange_acq_rel(&wrong.taken, true)) return;
    snprintf(wrong.text, sizeof wrong.text, "%s:%d", file, line);
    store_release(&wrong.told, true); /* pairs with the acquire below */
}

const char *stall_what_is_wrong(void) { return load_acquire(&wrong.told) ? wrong.text : NULL; }

/* ---- A thread that stands ---- */

void stall_arm(stall_point_t point, stall_t *stall)
{
    if (HAK_DEBUG) store_release(&stall_armed[point], stall); /* pairs with the acquire in STALL */
}

static void stand(void *ctx)
{
    hold_t *hold = ctx;
    if (hold->there) hold->there();
    store_release(&hold->stands, true); /* pairs with the acquire in stall_wait */
    if (!stall_wait(&hold->go)) store_relaxed(&hold->late, true);
}

static void *act(void *ctx)
{
    hold_t *hold = ctx;
    hold->act();
    store_release(&hold->ended, true); /* pairs with the acquire in stall_wait */
    return NULL;
}

bool hold_start(hold_t *hold, stall_point_t point, uint32_t nth, void (*run)(void),
                void (*there)(void))
{
    *hold = (hold_t){.point = point, .act = run, .there = there};
    hold->stall = (stall_t){.run = stand, .ctx = hold, .nth = nth};
    stall_arm(point, &hold->stall);
    if (pthread_create(&hold->thread, NULL, act, hold) != 0) return false;
    for (unsigned step = 0; step < STEPS; step++) {
        if (load_acquire(&hold->stands)) return true;
        if (load_acquire(&hold->ended)) return load_acquire(&hold->stands);
        usleep(STEP_US);
    }
    return false;
}

bool hold_end(hold_t *hold)
{
    store_release(&hold->go, true); /* pairs with the acquire in stall_wait */
    if (!stall_wait(&hold->ended)) return false;
    pthread_join(hold->thread, NULL);
    stall_arm(hold->point, NULL);
    return !load_relaxed(&hold->late);
}

uint32_t hold_visits(const hold_t *hold)
{
    return load_relaxed(&((hold_t *)(uintptr_t)hold)->stall.visits);
}

/* ---- A crew ---- */

static void *work(void *ctx)
{
    mate_t *mate = ctx;
    store_release(&mate->tid, (int)syscall(SYS_gettid)); /* pairs with the acquire in sleeps */
    mate->work();
    store_release(&mate->done, true); /* pairs with the acquire in rests and stall_wait */
    return NULL;
}

void crew_start(crew_t *crew, void (*run)(void))
{
    mate_t *mate = &crew->mates[crew->count++];
    *mate = (mate_t){.work = run};
    STALL_REQUIRE(pthread_create(&mate->thread, NULL, work, mate) == 0);
}

/* By what the kernel says of the thread. */
static bool sleeps(mate_t *mate)
{
    char path[64], text[128] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", load_acquire(&mate->tid));
    FILE *file = load_acquire(&mate->tid) ? fopen(path, "re") : NULL;
    if (!file) return false;
    size_t got = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[got] = '\0';
    const char *end = strrchr(text, ')'); /* of the name */
    return end && end[1] == ' ' && end[2] == 'S';
}

static bool rests(const mate_t *mate)
{
    mate_t *at = (mate_t *)(uintptr_t)mate;
    return load_acquire(&at->done) || sleeps(at);
}

void crew_settle(const crew_t *crew)
{
    enum { LOOKS = 3 }; /* in a row: a thread may sleep for a moment, and go on */
    for (unsigned step = 0, looks = 0; step < STEPS && looks < LOOKS; step++, looks++) {
        for (size_t i = 0; i < crew->count; i++)
            if (!rests(&crew->mates[i])) looks = 0;
        usleep(STEP_US);
    }
}

bool crew_finish(crew_t *crew)
{
    for (size_t i = 0; i < crew->count; i++) {
        if (!stall_wait(&crew->mates[i].done)) return false;
        pthread_join(crew->mates[i].thread, NULL);
    }
    crew->count = 0;
    return true;
}

/* ---- Blocks ---- */

static _Atomic unsigned seeds;

void item_make(hak_heap_t *heap, item_t *item, size_t size)
{
    *item = (item_t){hak_heap_malloc(heap, size), size, add_relaxed(&seeds, 1u)};
    STALL_REQUIRE(item->ptr != NULL);
    if (item->ptr) contract_fill(item->ptr, size, item->seed);
}

bool item_holds(const item_t *item)
{
    return !item->ptr || contract_holds(item->ptr, item->size, item->seed);
}

void item_free(hak_heap_t *heap, item_t *item)
{
    STALL_REQUIRE(item_holds(item));
    void *ptr = item->ptr;
    item->ptr = NULL; /* before: while the free stands at a point, the block is none of the live */
    hak_heap_free(heap, ptr);
}

/* ---- The scene ---- */

scene_t scene;

static size_t mixed_size(size_t i, size_t count)
{
    if (i == 0) return SCENE_LARGE;
    if (i < 4) return SCENE_MID;
    return i > 3 * count / 4 ? SCENE_OTHER : SCENE_SIZE;
}

static void make_all(item_t *items, size_t count)
{
    for (size_t i = 0; i < count; i++) item_make(scene.heap, &items[i], mixed_size(i, count));
}

void scene_begin(int level)
{
    scene = (scene_t){.heap = contract_heap(level, "scene")};
    STALL_REQUIRE(scene.heap != NULL);
    make_all(scene.kept, SCENE_KEPT);
    make_all(scene.theirs, SCENE_THEIRS);
    make_all(scene.handlers, SCENE_HANDLERS);
}

static size_t count_live(const item_t *items, size_t count)
{
    size_t live = 0;
    for (size_t i = 0; i < count; i++) live += items[i].ptr != NULL;
    return live;
}

size_t scene_live(void)
{
    return count_live(scene.kept, SCENE_KEPT) + count_live(scene.theirs, SCENE_THEIRS) +
           count_live(scene.handlers, SCENE_HANDLERS) + count_live(scene.acts, SCENE_ACTS);
}

static void free_all(item_t *items, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (items[i].ptr) item_free(scene.heap, &items[i]);
}

class_state_t *scene_class(void) { return heap_class_made(scene.heap, sizeclass_of(SCENE_SIZE)); }

void scene_make_acts(size_t count, size_t size)
{
    for (size_t i = 0; i < count; i++) item_make(scene.heap, &scene.acts[i], size);
}

void scene_free_acts(void) { free_all(scene.acts, SCENE_ACTS); }

void scene_free_theirs(void) { free_all(scene.theirs, SCENE_THEIRS); }

int scene_end(void)
{
    int line = contract_unsound(scene.heap, scene_live());
    if (line) return line;
    free_all(scene.kept, SCENE_KEPT);
    free_all(scene.theirs, SCENE_THEIRS);
    free_all(scene.handlers, SCENE_HANDLERS);
    free_all(scene.acts, SCENE_ACTS);
    if ((line = contract_unsound(scene.heap, 0)) != 0) return line;
    (void)hak_heap_flush(scene.heap);
    if ((line = contract_unsound(scene.heap, 0)) != 0) return line;
    (void)hak_heap_trim(scene.heap, 0);
    if ((line = contract_unsound(scene.heap, 0)) != 0) return line;
    return hak_heap_destroy(scene.heap) == 0 ? 0 : __LINE__;
}

/* ---- A signal handler ---- */

static void use_control_calls(bool inside)
{
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    hak_class_stats_t figures = {.struct_size = sizeof figures};
    int expected = inside ? EDEADLK : 0;
    STALL_REQUIRE(hak_heap_check(scene.heap) == expected);
    STALL_REQUIRE(hak_heap_stats(scene.heap, &stats) == expected);
    STALL_REQUIRE(hak_heap_class_stats(scene.heap, sizeclass_of(SCENE_SIZE), &figures) == expected);
    size_t bytes = hak_heap_flush(scene.heap);
    bytes += hak_heap_trim(scene.heap, 0);
    if (inside) STALL_REQUIRE(bytes == 0 && hak_last_error() == HAK_ERROR_REENTERED);
}

static void fork_in_handler(void)
{
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    int status = -1;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    STALL_REQUIRE(status == 0);
}

static void handle(int number)
{
    (void)number;
    int before = errno;
    bool inside = hak_tls.depth || hak_tls.closing;
    free_all(scene.handlers, SCENE_HANDLERS);
    errno = 0;
    item_t item = {hak_heap_malloc(scene.heap, SCENE_SIZE), SCENE_SIZE, 1};
    STALL_REQUIRE(item.ptr || (inside && errno == EDEADLK));
    if (item.ptr) {
        contract_fill(item.ptr, item.size, item.seed);
        item_free(scene.heap, &item);
    }
    use_control_calls(inside);
    fork_in_handler();
    errno = before;
}

void scene_signal(void)
{
    struct sigaction action = {.sa_handler = handle};
    STALL_REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
    STALL_REQUIRE(raise(SIGUSR1) == 0);
}

/* ---- A child ---- */

static void end_child(int line)
{
    fprintf(stderr, "support_stall.c:%d\n", line);
    _exit(1);
}
#define CHILD_REQUIRE(x) ((x) ? (void)0 : end_child(__LINE__))

void scene_child(void *unused)
{
    (void)unused;
    alarm(STALL_SECONDS);
    for (size_t i = 0; i < SCENE_KEPT; i++) CHILD_REQUIRE(item_holds(&scene.kept[i]));
    CHILD_REQUIRE(hak_heap_check(scene.heap) == 0);
    scene_allocate();
    free_all(scene.kept, SCENE_KEPT);
    CHILD_REQUIRE(hak_heap_check(scene.heap) == 0);
    (void)hak_heap_flush(scene.heap);
    hak_heap_stats_t stats = contract_stats(scene.heap);
    CHILD_REQUIRE(contract_cached(&stats) == 0);
    CHILD_REQUIRE(contract_sum(&stats) == stats.committed_bytes);
    (void)hak_heap_trim(scene.heap, 0);
    scene_allocate();
    CHILD_REQUIRE(hak_heap_check(scene.heap) == 0);
    CHILD_REQUIRE(!stall_what_is_wrong());
    _exit(0);
}

/* ---- Work for a crew ---- */

void scene_allocate(void)
{
    enum { MADE = 100 };
    item_t made[MADE];
    for (size_t i = 0; i < MADE; i++) item_make(scene.heap, &made[i], mixed_size(i, MADE));
    free_all(made, MADE);
}

void scene_flush(void) { (void)hak_heap_flush(scene.heap); }
void scene_trim(void) { (void)hak_heap_trim(scene.heap, 0); }
void scene_check(void) { STALL_REQUIRE(hak_heap_check(scene.heap) == 0); }

void scene_figures(void)
{
    hak_heap_stats_t stats = contract_stats(scene.heap);
    STALL_REQUIRE(contract_sum(&stats) <= stats.committed_bytes);
    for (unsigned cls = 0; cls < hak_size_class_count(); cls++) {
        hak_class_stats_t figures = {.struct_size = sizeof figures};
        STALL_REQUIRE(hak_heap_class_stats(scene.heap, cls, &figures) == 0);
    }
}

void scene_fork(void)
{
    child_result_t child;
    child_run(&child, scene_child, NULL);
    STALL_REQUIRE(child.status == 0 && child.signal == 0);
    if (child.text[0]) fprintf(stderr, "%s", child.text);
}

void scene_disturb(crew_t *crew, bool never_waits)
{
    static void (*const works[])(void) = {scene_allocate, scene_allocate, scene_flush, scene_trim,
                                          scene_check,    scene_figures,  scene_check, scene_trim};
    for (size_t i = 0; i < sizeof works / sizeof *works; i++) crew_start(crew, works[i]);
    for (size_t i = 0; never_waits && i < crew->count; i++)
        STALL_REQUIRE(stall_wait(&crew->mates[i].done));
    crew_settle(crew);
    crew_start(crew, scene_fork);
    crew_settle(crew);
}

/* ---- A window ---- */

static const char *const names[] = {
#define NAME(name, held, words) #name " (" words ")",
    STALL_POINTS(NAME)
#undef NAME
};

static const char *tell(const window_t *window, int level, const char *what, int line)
{
    static char text[400];
    snprintf(text, sizeof text, "%s, level %d, mode %s: %s, line %d%s%s", names[window->point],
             level, hak_percpu_mode(), what, line, stall_what_is_wrong() ? "; first " : "",
             stall_what_is_wrong() ? stall_what_is_wrong() : "");
    return text;
}

static void call(void (*step)(void))
{
    if (step) step();
}

static const char *open_at(const window_t *window, int level)
{
    static hold_t hold;
    static crew_t crew;
    scene_begin(level);
    call(window->prepare);
    uint32_t nth = window->nth ? window->nth : 1;
    if (!hold_start(&hold, window->point, nth, window->act, window->there))
        return tell(window, level, "the point was not reached", 0);
    call(window->danger);
    if (!window->quiet) scene_disturb(&crew, window->crew_never_waits);
    if (!hold_end(&hold)) return tell(window, level, "it stood too long, or does not end", 0);
    if (!crew_finish(&crew)) return tell(window, level, "the crew does not end", 0);
    call(window->after);
    int line = scene_end();
    if (line) return tell(window, level, "support_contract.c", line);
    return stall_what_is_wrong() ? tell(window, level, "a requirement", 0) : NULL;
}

const char *window_open(const window_t *window)
{
    const char *wrong_at = NULL;
    for (int level = 0; !wrong_at && level < CONTRACT_LEVELS; level++)
        wrong_at = open_at(window, level);
    return wrong_at;
}
