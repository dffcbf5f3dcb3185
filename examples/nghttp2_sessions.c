/*
 * An HTTP/2 server and its clients in one process, without sockets: a heap for each session. Some
 * hundred connections are open at a time, thousands come and go. A session and all that was
 * allocated for it end by hak_heap_destroy(), in place of nghttp2_session_del() and a free for each
 * request. At the end one connection in eight stays open and idle; their heaps are trimmed.
 *
 *   nghttp2_sessions [--allocator hakheap|system] [--quick]
 *
 * On `system` the same program runs on malloc, with all its frees.
 */
#include <hakheap/nghttp2.h>

#include <stdint.h>

#include "measure.h"

enum { OPEN = 400, CONNECTIONS = 8000, QUICK = 600, LONG_LIVED = 8, PAGE = 1 << 16 };

/* One end of a connection. */
typedef struct end {
    nghttp2_session *session;
    hak_heap_t *heap; /* NULL: malloc */
    size_t body_bytes, closed;
} end_t;

typedef struct connection {
    end_t client, server;
    size_t exchanges; /* until it is closed; 0: the slot is free */
    bool stays;
} connection_t;

/* What a server keeps for a request until it is answered. The page itself is made as it is sent. */
typedef struct request {
    size_t bytes, given;
    char path[];
} request_t;

static bool by_malloc;
static uint64_t random_state = 88172645463325252u;
static connection_t connections[OPEN];
static size_t asked, expected_bytes, got_bytes;

static void die(const char *what)
{
    fprintf(stderr, "nghttp2_sessions: %s\n", what);
    exit(EXIT_FAILURE);
}

static size_t random_below(size_t bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state % bound);
}

static void *take(end_t *end, size_t bytes)
{
    void *block = end->heap ? hak_heap_malloc(end->heap, bytes) : malloc(bytes);
    if (!block) die("out of memory");
    return block;
}

static void give(end_t *end, void *block)
{
    if (end->heap) hak_heap_free(end->heap, block);
    else free(block);
}

/* ---- Server ---- */

/* The path says how long the page is: /page/5000?q=7. */
static request_t *begin_request(end_t *server, const uint8_t *path, size_t length)
{
    request_t *request = take(server, sizeof *request + length + 1);
    memcpy(request->path, path, length);
    request->path[length] = '\0';
    request->bytes = strtoul(request->path + strlen("/page/"), NULL, 10);
    request->given = 0;
    return request;
}

static ssize_t on_read(nghttp2_session *session, int32_t stream, uint8_t *at, size_t room,
                       uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session, (void)stream, (void)user;
    request_t *request = source->ptr;
    size_t left = request->bytes - request->given, bytes = left < room ? left : room;
    memset(at, 'p', bytes);
    request->given += bytes;
    if (bytes == left) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)bytes;
}

static int on_field(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                    size_t name_bytes, const uint8_t *value, size_t value_bytes, uint8_t flags,
                    void *user)
{
    (void)flags;
    if (name_bytes == 5 && memcmp(name, ":path", 5) == 0)
        nghttp2_session_set_stream_user_data(session, frame->hd.stream_id,
                                             begin_request(user, value, value_bytes));
    return 0;
}

static nghttp2_nv field(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)value, strlen(name),
                        strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)user;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    nghttp2_nv fields[] = {field(":status", "200"), field("content-type", "text/html"),
                           field("cache-control", "private, max-age=0"),
                           field("server", "sessions")};
    nghttp2_data_provider page = {
        .source.ptr = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id),
        .read_callback = on_read};
    return nghttp2_submit_response(session, frame->hd.stream_id, fields, 4, &page);
}

/* ---- Both ends ---- */

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data,
                   size_t bytes, void *user)
{
    (void)session, (void)flags, (void)stream, (void)data;
    ((end_t *)user)->body_bytes += bytes;
    return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t code, void *user)
{
    (void)code;
    end_t *end = user;
    end->closed++;
    void *request = nghttp2_session_get_stream_user_data(session, stream);
    if (request) give(end, request);
    return 0;
}

static void begin(end_t *end, bool is_server)
{
    nghttp2_session_callbacks *callbacks = NULL;
    *end = (end_t){NULL, by_malloc ? NULL : hak_heap_create(NULL), 0, 0};
    if ((!by_malloc && !end->heap) || nghttp2_session_callbacks_new(&callbacks) != 0)
        die("no memory for a session");
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    if (is_server) {
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_field);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    }
    nghttp2_mem mem = hak_nghttp2_mem(end->heap);
    int code = (is_server ? nghttp2_session_server_new3 : nghttp2_session_client_new3)(
        &end->session, callbacks, end, NULL, end->heap ? &mem : NULL);
    nghttp2_session_callbacks_del(callbacks);
    if (code != 0 || nghttp2_submit_settings(end->session, NGHTTP2_FLAG_NONE, NULL, 0) != 0)
        die("no session");
}

static void finish(end_t *end)
{
    if (end->heap) (void)hak_heap_destroy(end->heap); /* with the session, and all it has */
    else nghttp2_session_del(end->session);
}

static void ask(end_t *client)
{
    static const char *const agents[] = {"Mozilla/5.0 (X11; Linux x86_64)", "curl/7.88.1"};
    char path[64], cookie[200];
    size_t bytes = 200 + random_below(random_below(8) ? 8000 : PAGE);
    snprintf(path, sizeof path, "/page/%zu?q=%zu", bytes, random_below(1000));
    snprintf(cookie, sizeof cookie, "session=%0*zu", (int)random_below(150) + 10, asked);
    nghttp2_nv fields[] = {field(":method", "GET"),
                           field(":scheme", "https"),
                           field(":authority", "www.example.org"),
                           field(":path", path),
                           field("user-agent", agents[random_below(2)]),
                           field("accept", "text/html,application/xhtml+xml"),
                           field("accept-language", "en-GB,en;q=0.8"),
                           field("cookie", cookie)};
    if (nghttp2_submit_request(client->session, NULL, fields, 8, NULL, NULL) < 0) die("no request");
    expected_bytes += bytes;
    asked++;
}

/* Moves what one end has to say to the other; false: nothing. */
static bool move(end_t *from, end_t *to)
{
    const uint8_t *bytes;
    ssize_t length = nghttp2_session_mem_send(from->session, &bytes);
    if (length < 0 || nghttp2_session_mem_recv(to->session, bytes, (size_t)length) != length)
        die("a session fails");
    return length > 0;
}

static void exchange(connection_t *connection)
{
    for (size_t i = 1 + random_below(6); i > 0; i--) ask(&connection->client);
    bool there, back;
    do {
        there = move(&connection->client, &connection->server);
        back = move(&connection->server, &connection->client);
    } while (there || back);
}

/* ---- The work ---- */

static void open_one(connection_t *connection, size_t number)
{
    begin(&connection->client, false);
    begin(&connection->server, true);
    connection->stays = number % LONG_LIVED == 0;
    connection->exchanges = connection->stays ? 60 : 1 + random_below(12);
}

static void close_one(connection_t *connection)
{
    got_bytes += connection->client.body_bytes;
    finish(&connection->client);
    finish(&connection->server);
    connection->exchanges = 0;
}

/* Until so many connections have come, and most have gone. */
static void serve(size_t total)
{
    for (size_t opened = 0; opened < total;) {
        connection_t *connection = &connections[random_below(OPEN)];
        if (connection->exchanges == 0) open_one(connection, opened++);
        exchange(connection);
        if (--connection->exchanges == 0) close_one(connection);
    }
}

static void trim_one(connection_t *connection, size_t *live)
{
    hak_heap_t *heaps[] = {connection->client.heap, connection->server.heap};
    for (int i = 0; i < 2 && heaps[i]; i++) {
        hak_heap_stats_t stats = {.struct_size = sizeof stats};
        hak_heap_trim(heaps[i], 0);
        if (hak_heap_stats(heaps[i], &stats) == 0) *live += stats.live_bytes;
    }
}

int main(int argc, char **argv)
{
    measure_options_t options = measure_read_options(
        &argc, argv, "nghttp2_sessions [--allocator hakheap|system] [--quick]", 0);
    by_malloc = options.system;
    size_t idle = 0, live = 0;
    double begun = measure_seconds();
    serve(options.quick ? QUICK : CONNECTIONS);
    for (size_t i = 0; i < OPEN; i++)
        if (connections[i].exchanges && !connections[i].stays) close_one(&connections[i]);
    double seconds = measure_seconds() - begun;
    for (size_t i = 0; i < OPEN; i++) {
        if (!connections[i].exchanges) continue;
        trim_one(&connections[i], &live);
        idle++;
    }
    printf("%zu requests; %zu idle connections, of %zu bytes each\n", asked, idle,
           idle ? live / idle : 0);
    measure_print(seconds, (double)asked / seconds);
    for (size_t i = 0; i < OPEN; i++)
        if (connections[i].exchanges) close_one(&connections[i]);
    if (got_bytes != expected_bytes) die("an answer is not as long as it should be");
    return EXIT_SUCCESS;
}
