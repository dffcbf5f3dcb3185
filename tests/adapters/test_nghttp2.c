/* include/hakheap/nghttp2.h under the real nghttp2: clients and servers in memory. */
#include <hakheap/nghttp2.h>
#include <stdio.h>

#include "adapter.h"

TestSuite(nghttp2, .timeout = 120);

enum { BODY = 40000, STREAMS = 40 };

/* One end of a connection. */
typedef struct end {
    nghttp2_session *session;
    hak_heap_t *heap;
    size_t body_bytes, closed, fields;
    nghttp2_rcbuf *kept; /* the value of a header field that the program keeps, or NULL */
    bool keeps;
} end_t;

static ssize_t give_body(nghttp2_session *session, int32_t stream, uint8_t *at, size_t length,
                         uint32_t *flags, nghttp2_data_source *source, void *end)
{
    (void)session, (void)stream, (void)end;
    size_t left = (size_t)source->ptr;
    size_t given = left < length ? left : length;
    memset(at, 'b', given);
    source->ptr = (void *)(left - given);
    if (left == given) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)given;
}

static nghttp2_nv field(const char *name, const char *value)
{
    nghttp2_nv nv = {(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
                     NGHTTP2_NV_FLAG_NONE};
    return nv;
}

static int on_field(nghttp2_session *session, const nghttp2_frame *frame, nghttp2_rcbuf *name,
                    nghttp2_rcbuf *value, uint8_t flags, void *user)
{
    (void)session, (void)frame, (void)name, (void)flags;
    end_t *end = user;
    end->fields++;
    if (end->keeps && !end->kept && nghttp2_rcbuf_get_buf(value).len == 60) {
        nghttp2_rcbuf_incref(value);
        end->kept = value;
    }
    return 0;
}

/* A server answers a whole request. */
static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)user;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    nghttp2_nv answer[] = {field(":status", "200"), field("content-type", "text/plain")};
    nghttp2_data_provider body = {.source.ptr = (void *)(size_t)BODY, .read_callback = give_body};
    int code = nghttp2_submit_response(session, frame->hd.stream_id, answer, 2, &body);
    return code == 0 ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data,
                   size_t length, void *user)
{
    (void)session, (void)flags, (void)stream, (void)data;
    ((end_t *)user)->body_bytes += length;
    return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t code, void *user)
{
    (void)session, (void)stream, (void)code;
    ((end_t *)user)->closed++;
    return 0;
}

static int begin(end_t *end, hak_heap_t *heap, bool is_server)
{
    nghttp2_mem mem = hak_nghttp2_mem(heap);
    nghttp2_session_callbacks *callbacks = NULL;
    end->heap = heap;
    ADAPTER_NOTE(nghttp2_session_callbacks_new(&callbacks) == 0);
    nghttp2_session_callbacks_set_on_header_callback2(callbacks, on_field);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    if (is_server) nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    int code = (is_server ? nghttp2_session_server_new3
                          : nghttp2_session_client_new3)(&end->session, callbacks, end, NULL, &mem);
    nghttp2_session_callbacks_del(callbacks);
    if (code == 0) ADAPTER_NOTE(hak_heap_of(end->session) == heap);
    return code ? code : nghttp2_submit_settings(end->session, NGHTTP2_FLAG_NONE, NULL, 0);
}

static int ask(end_t *client, unsigned number)
{
    char path[64], token[61];
    snprintf(path, sizeof path, "/documents/%u", number);
    snprintf(token, sizeof token, "%060u", number);
    nghttp2_nv request[] = {field(":method", "GET"), field(":scheme", "https"),
                            field(":authority", "example.org"), field(":path", path),
                            field("x-token", token)};
    int32_t stream = nghttp2_submit_request(client->session, NULL, request, 5, NULL, NULL);
    return stream < 0 ? stream : 0;
}

/* Moves what one end has to say to the other: its bytes, or the code of an error. */
static ssize_t move(end_t *from, end_t *to)
{
    const uint8_t *bytes;
    ssize_t length = nghttp2_session_mem_send(from->session, &bytes);
    if (length <= 0) return length;
    ssize_t taken = nghttp2_session_mem_recv(to->session, bytes, (size_t)length);
    if (taken >= 0) ADAPTER_NOTE(taken == length);
    return taken;
}

/* Until nothing is left to say: 0, or the code of an error. */
static int talk(end_t *client, end_t *server)
{
    for (;;) {
        ssize_t there = move(client, server);
        if (there < 0) return (int)there;
        ssize_t back = move(server, client);
        if (back < 0) return (int)back;
        if (there == 0 && back == 0) return 0;
    }
}

/* A connection from the first byte to the last answer. */
static int converse(end_t *client, end_t *server, hak_heap_t *of_client, hak_heap_t *of_server)
{
    int code = begin(client, of_client, false);
    if (code == 0) code = begin(server, of_server, true);
    for (unsigned i = 0; i < STREAMS && code == 0; i++) {
        code = ask(client, i);
        if (code == 0 && i % 16 == 15) code = talk(client, server);
    }
    return code ? code : talk(client, server);
}

/* nghttp2 makes callbacks by calloc: glibc keeps some that were freed, and counts them as used. */
static void warm_up(void)
{
    for (int i = 0; i < 8; i++) {
        hak_heap_t *a = contract_heap(0, "client"), *b = contract_heap(0, "server");
        end_t client = {0}, server = {0};
        cr_assert(converse(&client, &server, a, b) == 0);
        cr_assert(hak_heap_destroy(a) == 0 && hak_heap_destroy(b) == 0);
    }
}

Test(nghttp2, sessions_lie_in_their_heaps_and_leave_nothing)
{
    warm_up();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *a = contract_heap(level, "client"), *b = contract_heap(level, "server");
        size_t by_malloc = adapter_malloc_bytes();
        end_t client = {0}, server = {0};
        int code = converse(&client, &server, a, b);
        ADAPTER_NOTE(adapter_malloc_bytes() == by_malloc);
        adapter_require_noted();
        cr_assert(code == 0, "%s", nghttp2_strerror(code));
        cr_assert(client.body_bytes == (size_t)BODY * STREAMS && client.closed == STREAMS);
        cr_assert(server.fields == 5 * STREAMS && client.fields == 2 * STREAMS);
        cr_assert(adapter_live(a) > 10000 && adapter_live(b) > 10000);
        nghttp2_session_del(client.session);
        adapter_end(a);
        cr_assert(adapter_live(b) > 10000);
        nghttp2_session_del(server.session);
        adapter_end(b);
    }
}

Test(nghttp2, a_heap_goes_in_place_of_its_session)
{
    warm_up();
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        size_t by_malloc = adapter_malloc_bytes();
        for (size_t i = 0; i < contract_work(200); i++) {
            hak_heap_t *a = contract_heap(level, "client"), *b = contract_heap(level, "server");
            end_t client = {0}, server = {0};
            ADAPTER_NOTE(converse(&client, &server, a, b) == 0);
            ADAPTER_NOTE(hak_heap_destroy(a) == 0 && hak_heap_destroy(b) == 0);
        }
        ADAPTER_NOTE(adapter_malloc_bytes() == by_malloc);
        adapter_require_noted();
    }
}

Test(nghttp2, a_kept_field_lies_in_the_heap_of_its_session)
{
    hak_heap_t *a = contract_heap(0, "client"), *b = contract_heap(0, "server");
    end_t client = {0}, server = {.keeps = true};
    cr_assert(converse(&client, &server, a, b) == 0 && server.kept);
    nghttp2_session_del(client.session);
    nghttp2_session_del(server.session);
    cr_assert(hak_heap_of(server.kept) == b && contract_stats(b).live_blocks >= 1);
    nghttp2_rcbuf_decref(server.kept);
    adapter_end(a);
    adapter_end(b);
}

/* At every limit from nothing on: the sessions end with nghttp2's own error, and leave nothing. */
Test(nghttp2, a_refused_request_is_its_memory_error)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        size_t refused = 0;
        int code = -1;
        for (size_t limit = 64; code != 0; limit += 1024) {
            hak_heap_t *a = contract_heap(level, "client"), *b = adapter_heap(level, limit);
            end_t client = {0}, server = {0};
            code = converse(&client, &server, a, b);
            if (code != 0) {
                cr_assert(code == NGHTTP2_ERR_NOMEM || code == NGHTTP2_ERR_CALLBACK_FAILURE, "%s",
                          nghttp2_strerror(code));
                cr_assert(adapter_refusals(b) > 0);
                refused++;
            }
            nghttp2_session_del(client.session);
            nghttp2_session_del(server.session);
            adapter_end(a);
            adapter_end(b);
        }
        adapter_require_noted();
        cr_assert(refused > 10, "%zu", refused);
    }
}
