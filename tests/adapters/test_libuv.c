/* include/hakheap/libuv.h under the real libuv: loops, timers, pipes, the pool of threads. */
#include <hakheap/libuv.h>

#include "adapter.h"

TestSuite(libuv, .timeout = 120);

enum { TICKS = 20, MESSAGES = 200, MESSAGE = 3000 };

/* The process's default, and libuv on scopes. */
static hak_heap_t *install(int level)
{
    hak_heap_t *of_process = contract_heap(level, "process");
    cr_assert(hak_scope_set_default(of_process) == 0);
    cr_assert(hak_libuv_install() == 0);
    return of_process;
}

static void uninstall(hak_heap_t *of_process)
{
    uv_library_shutdown();
    cr_assert(hak_scope_set_default(NULL) == 0);
    adapter_end(of_process);
}

Test(libuv, is_not_installed_without_a_default)
{
    hak_heap_t *heap = contract_heap(0, "scope");
    hak_heap_t *outer = hak_scope_enter(heap);
    cr_assert(hak_libuv_install() == UV_EINVAL);
    cr_assert(hak_scope_heap() == heap);
    hak_scope_leave(outer);
    adapter_end(heap);
}

/* ---- A loop with timers and a pipe ---- */

typedef struct talk {
    uv_loop_t loop;
    uv_timer_t timer;
    uv_pipe_t in, out;
    hak_heap_t *heap;
    size_t ticks, sent, got;
    bool foreign; /* a block came from another heap */
} talk_t;

static void on_tick(uv_timer_t *timer)
{
    talk_t *talk = timer->data;
    if (++talk->ticks == TICKS) uv_close((uv_handle_t *)timer, NULL);
}

static void give_buffer(uv_handle_t *handle, size_t size, uv_buf_t *out)
{
    (void)handle;
    *out = uv_buf_init(hak_scope_malloc(size), (unsigned)size);
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer)
{
    talk_t *talk = stream->data;
    if (buffer->base && hak_heap_of(buffer->base) != talk->heap) talk->foreign = true;
    hak_free(buffer->base);
    if (length > 0) talk->got += (size_t)length;
    if (length < 0) uv_close((uv_handle_t *)stream, NULL);
}

static void on_written(uv_write_t *request, int status)
{
    talk_t *talk = request->data;
    cr_assert(status == 0);
    hak_free(request);
    if (--talk->sent == 0) uv_close((uv_handle_t *)&talk->out, NULL);
}

static void begin(talk_t *talk)
{
    uv_file ends[2];
    cr_assert(uv_loop_init(&talk->loop) == 0);
    cr_assert(uv_timer_init(&talk->loop, &talk->timer) == 0);
    cr_assert(uv_pipe(ends, UV_NONBLOCK_PIPE, UV_NONBLOCK_PIPE) == 0);
    cr_assert(uv_pipe_init(&talk->loop, &talk->in, 0) == 0);
    cr_assert(uv_pipe_init(&talk->loop, &talk->out, 0) == 0);
    cr_assert(uv_pipe_open(&talk->in, ends[0]) == 0 && uv_pipe_open(&talk->out, ends[1]) == 0);
    talk->timer.data = talk->in.data = talk->out.data = talk;
    cr_assert(uv_timer_start(&talk->timer, on_tick, 0, 1) == 0);
    cr_assert(uv_read_start((uv_stream_t *)&talk->in, give_buffer, on_read) == 0);
}

/* More pieces than a request holds: libuv allocates a table of them. */
static void send_all(talk_t *talk, char *message)
{
    for (talk->sent = 0; talk->sent < MESSAGES; talk->sent++) {
        uv_buf_t pieces[6];
        for (int i = 0; i < 6; i++) pieces[i] = uv_buf_init(message, MESSAGE / 6);
        uv_write_t *request = hak_scope_malloc(sizeof *request);
        request->data = talk;
        cr_assert(uv_write(request, (uv_stream_t *)&talk->out, pieces, 6, on_written) == 0);
    }
}

static void run_in(hak_heap_t *heap)
{
    static char message[MESSAGE];
    talk_t talk = {.heap = heap};
    hak_heap_t *outer = hak_scope_enter(heap);
    begin(&talk);
    send_all(&talk, message);
    cr_assert(adapter_live(heap) > MESSAGES * sizeof(uv_write_t));
    cr_assert(hak_heap_of(talk.loop.watchers) == heap);
    cr_assert(uv_run(&talk.loop, UV_RUN_DEFAULT) == 0);
    cr_assert(talk.ticks == TICKS && talk.got == MESSAGES * MESSAGE && !talk.foreign);
    cr_assert(uv_loop_close(&talk.loop) == 0);
    hak_scope_leave(outer);
}

Test(libuv, a_loop_lies_in_its_scope_and_leaves_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *of_process = contract_heap(level, "process"),
                   *heap = contract_heap(level, "loop");
        cr_assert(hak_scope_set_default(of_process) == 0);
        if (level == 0) cr_assert(hak_libuv_install() == 0);
        size_t before = adapter_live(of_process);
        run_in(heap);
        adapter_end(heap);
        cr_assert(adapter_live(of_process) == before);
        run_in(of_process);
        cr_assert(adapter_live(of_process) == before);
    }
    uv_library_shutdown();
}

/* ---- Threads ---- */

static void *loops(void *heap)
{
    for (int i = 0; i < 3; i++) run_in(heap);
    return NULL;
}

Test(libuv, each_thread_has_the_loops_of_its_own_scope)
{
    hak_heap_t *of_process = install(1);
    hak_heap_t *heaps[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        heaps[i] = contract_heap(i % 2, "loop");
        cr_assert(pthread_create(&threads[i], NULL, loops, heaps[i]) == 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        adapter_end(heaps[i]);
    }
    uninstall(of_process);
}

static hak_heap_t *of_worker;

static void on_work(uv_work_t *work)
{
    void *block = hak_scope_malloc(100);
    of_worker = hak_heap_of(block);
    *(void **)work->data = block;
}

static hak_heap_t *of_link;
static size_t results;

static void on_result(uv_fs_t *request)
{
    if (request->fs_type == UV_FS_READLINK) of_link = hak_heap_of(request->ptr);
    if (request->result >= 0 && request->ptr) results++;
    uv_fs_req_cleanup(request);
}

/* What a thread of the pool allocates comes from the default, also where libuv does it itself: the
 * target of a link. A real path is libc's, and goes back to it. */
Test(libuv, threads_of_the_pool_allocate_from_the_default)
{
    hak_heap_t *of_process = install(0), *heap = contract_heap(1, "loop");
    hak_heap_t *outer = hak_scope_enter(heap);
    uv_loop_t loop;
    uv_work_t work;
    uv_fs_t link, real;
    void *block = NULL;
    work.data = &block;
    cr_assert(uv_loop_init(&loop) == 0);
    cr_assert(uv_queue_work(&loop, &work, on_work, NULL) == 0);
    cr_assert(uv_fs_readlink(&loop, &link, "/proc/self/exe", on_result) == 0);
    cr_assert(uv_fs_realpath(&loop, &real, ".", on_result) == 0);
    cr_assert(hak_heap_of(link.path) == heap && hak_heap_of(real.path) == heap);
    cr_assert(uv_run(&loop, UV_RUN_DEFAULT) == 0);
    cr_assert(of_worker == of_process && hak_heap_of(block) == of_process);
    cr_assert(results == 2 && of_link == of_process);
    hak_free(block);
    cr_assert(uv_loop_close(&loop) == 0);
    hak_scope_leave(outer);
    adapter_end(heap);
    uninstall(of_process);
}

/* ---- Refusal ---- */

static void not_called(uv_fs_t *request)
{
    (void)request;
    cr_assert_fail("a refused request runs");
}

Test(libuv, a_refused_request_is_its_memory_error)
{
    hak_heap_t *of_process = install(0);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *full = adapter_heap(level, 16), *heap = contract_heap(level, "loop");
        uv_loop_t loop;
        hak_heap_t *outer = hak_scope_enter(full);
        cr_assert(uv_loop_init(&loop) == UV_ENOMEM);
        hak_scope_enter(heap);
        cr_assert(uv_loop_init(&loop) == 0);
        uv_pipe_t pipe;
        uv_fs_t stat;
        char path[100];
        memset(path, 'x', sizeof path);
        path[99] = '\0';
        cr_assert(uv_pipe_init(&loop, &pipe, 0) == 0);
        hak_scope_enter(full);
        cr_assert(uv_pipe_bind(&pipe, path) == UV_ENOMEM);
        cr_assert(uv_fs_stat(&loop, &stat, path, not_called) == UV_ENOMEM);
        cr_assert(adapter_refusals(full) == 3);
        uv_close((uv_handle_t *)&pipe, NULL);
        cr_assert(uv_run(&loop, UV_RUN_DEFAULT) == 0 && uv_loop_close(&loop) == 0);
        hak_scope_leave(outer);
        adapter_end(full);
        adapter_end(heap);
    }
    uninstall(of_process);
}
