/* include/hakheap/curl.h under the real libcurl: transfers of files, threads, refusals. */
#include <hakheap/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "adapter.h"

TestSuite(curl, .timeout = 120);

enum { FILE_BYTES = 300000 };

static char path[] = "/tmp/hakheap-curl-XXXXXX", url[64];
static unsigned char content[FILE_BYTES];

static void make_file(void)
{
    adapter_text(content, FILE_BYTES, 1);
    int file = mkstemp(path);
    cr_assert(file >= 0 && write(file, content, FILE_BYTES) == FILE_BYTES);
    close(file);
    snprintf(url, sizeof url, "file://%s", path);
}

static void remove_file(void) { unlink(path); }

static hak_heap_t *install(int level)
{
    hak_heap_t *of_process = contract_heap(level, "process");
    cr_assert(hak_scope_set_default(of_process) == 0);
    cr_assert(hak_curl_install(CURL_GLOBAL_ALL) == CURLE_OK);
    return of_process;
}

static void uninstall(hak_heap_t *of_process)
{
    curl_global_cleanup();
    cr_assert(hak_scope_set_default(NULL) == 0);
    adapter_end(of_process);
}

/* What was transferred, and whether it is what the file has. */
typedef struct got {
    size_t bytes;
    bool wrong;
} got_t;

static size_t on_data(char *at, size_t size, size_t count, void *out)
{
    got_t *got = out;
    if (got->bytes + size * count > FILE_BYTES ||
        memcmp(content + got->bytes, at, size * count) != 0)
        got->wrong = true;
    got->bytes += size * count;
    return size * count;
}

/* A transfer in the current scope. Says what libcurl says; CURLE_OUT_OF_MEMORY for no handle. */
static CURLcode transfer(got_t *got)
{
    *got = (got_t){0, false};
    CURL *easy = curl_easy_init();
    if (!easy) return CURLE_OUT_OF_MEMORY;
    CURLcode code = curl_easy_setopt(easy, CURLOPT_URL, url);
    if (code == CURLE_OK) code = curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_data);
    if (code == CURLE_OK) code = curl_easy_setopt(easy, CURLOPT_WRITEDATA, got);
    if (code == CURLE_OK) code = curl_easy_perform(easy);
    curl_easy_cleanup(easy);
    return code;
}

Test(curl, is_not_installed_without_a_default_or_a_second_time)
{
    hak_heap_t *heap = contract_heap(0, "process");
    hak_heap_t *outer = hak_scope_enter(heap);
    cr_assert(hak_curl_install(CURL_GLOBAL_ALL) == CURLE_FAILED_INIT);
    cr_assert(hak_scope_heap() == heap);
    hak_scope_leave(outer);
    cr_assert(curl_global_init(CURL_GLOBAL_ALL) == CURLE_OK);
    cr_assert(hak_scope_set_default(heap) == 0);
    cr_assert(hak_curl_install(CURL_GLOBAL_ALL) == CURLE_FAILED_INIT);
    cr_assert(adapter_live(heap) == 0);
    curl_global_cleanup();
    cr_assert(hak_curl_install(CURL_GLOBAL_ALL) == CURLE_OK);
    char *text = curl_easy_escape(NULL, "a b", 3);
    cr_assert(strcmp(text, "a%20b") == 0 && hak_heap_of(text) == heap);
    curl_free(text);
    uninstall(heap);
}

Test(curl, a_transfer_lies_in_its_scope_and_leaves_nothing, .init = make_file, .fini = remove_file)
{
    hak_heap_t *of_process = install(0);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "transfer");
        size_t before = adapter_live(of_process);
        hak_heap_t *outer = hak_scope_enter(heap);
        CURL *easy = curl_easy_init();
        got_t got = {0, false};
        cr_assert(hak_heap_of(easy) == heap);
        cr_assert(curl_easy_setopt(easy, CURLOPT_URL, url) == CURLE_OK);
        cr_assert(curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_data) == CURLE_OK);
        cr_assert(curl_easy_setopt(easy, CURLOPT_WRITEDATA, &got) == CURLE_OK);
        cr_assert(curl_easy_perform(easy) == CURLE_OK);
        cr_assert(got.bytes == FILE_BYTES && !got.wrong);
        cr_assert(adapter_live(heap) > 5000 && adapter_live(of_process) == before);
        hak_scope_leave(outer);
        curl_easy_cleanup(easy); /* in whatever scope */
        adapter_end(heap);
    }
    uninstall(of_process);
}

/* Each of the five functions, by what returns a block of it. */
Test(curl, strings_and_lists_lie_in_the_scope_they_were_asked_in)
{
    hak_heap_t *of_process = install(1), *heap = contract_heap(1, "strings");
    hak_heap_t *outer = hak_scope_enter(heap);
    struct curl_slist *list = curl_slist_append(NULL, "Accept: */*");
    cr_assert(hak_heap_of(list) == heap && hak_heap_of(list->data) == heap);
    cr_assert(strcmp(list->data, "Accept: */*") == 0);
    CURLU *parts = curl_url();
    char *host;
    cr_assert(hak_heap_of(parts) == heap);
    cr_assert(curl_url_set(parts, CURLUPART_URL, "https://example.org/a?b=c", 0) == CURLUE_OK);
    cr_assert(curl_url_get(parts, CURLUPART_HOST, &host, 0) == CURLUE_OK);
    cr_assert(strcmp(host, "example.org") == 0 && hak_heap_of(host) == heap);
    hak_scope_leave(outer);
    curl_free(host);
    curl_url_cleanup(parts);
    curl_slist_free_all(list);
    adapter_end(heap);
    uninstall(of_process);
}

static void *transfers(void *heap)
{
    hak_scope_enter(heap);
    for (int i = 0; i < 20; i++) {
        got_t got;
        if (transfer(&got) != CURLE_OK || got.bytes != FILE_BYTES || got.wrong) return "transfer";
    }
    return NULL;
}

Test(curl, each_thread_transfers_in_its_own_scope, .init = make_file, .fini = remove_file)
{
    hak_heap_t *of_process = install(0), *heaps[3];
    pthread_t threads[3];
    size_t before = adapter_live(of_process);
    for (int i = 0; i < 3; i++) {
        heaps[i] = contract_heap(i % 2, "thread");
        cr_assert(pthread_create(&threads[i], NULL, transfers, heaps[i]) == 0);
    }
    for (int i = 0; i < 3; i++) {
        void *what;
        pthread_join(threads[i], &what);
        cr_assert(what == NULL);
        cr_assert(contract_stats(heaps[i]).peak_bytes > 0);
        adapter_end(heaps[i]);
    }
    cr_assert(adapter_live(of_process) == before);
    uninstall(of_process);
}

Test(curl, a_refused_request_is_its_memory_error, .init = make_file, .fini = remove_file)
{
    hak_heap_t *of_process = install(0);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        CURLcode code = CURLE_OUT_OF_MEMORY;
        size_t refused = 0;
        for (size_t limit = 64; code != CURLE_OK; limit += 2048) {
            hak_heap_t *heap = adapter_heap(level, limit);
            hak_heap_t *outer = hak_scope_enter(heap);
            got_t got;
            code = transfer(&got);
            hak_scope_leave(outer);
            cr_assert(code == CURLE_OK || code == CURLE_OUT_OF_MEMORY, "%s",
                      curl_easy_strerror(code));
            cr_assert(code != CURLE_OK || (got.bytes == FILE_BYTES && !got.wrong));
            if (code != CURLE_OK) cr_assert(adapter_refusals(heap) > 0);
            refused += code != CURLE_OK;
            adapter_end(heap);
        }
        cr_assert(refused > 5, "%zu", refused);
    }
    uninstall(of_process);
}
