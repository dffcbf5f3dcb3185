/**
 * @file curl.h
 * @brief libcurl on heaps: hak_curl_install() in place of curl_global_init(), then a scope around
 * calls.
 *
 * **Which heap.** libcurl's hook is one for the process and carries no context. A request is served
 * by the scope of the thread that makes it (hak_scope_enter()), else by the process's default
 * (hak_scope_set_default()). A free finds the heap by itself, in whatever scope.
 * **Ownership.** Heaps stay the caller's. A heap of handles goes after curl_easy_cleanup() and
 * curl_multi_cleanup() of all that was made in its scope. The default stays until
 * curl_global_cleanup().
 * **Threads.** A scope holds for its own thread. libcurl's resolver threads are in none: what they
 * allocate comes from the default.
 * **Refusal.** A refused request is CURLE_OUT_OF_MEMORY, CURLM_OUT_OF_MEMORY, or a NULL handle.
 * **Traps.** Strings that libcurl returns (curl_easy_escape(), curl_slist_append()) come from the
 * scope they were asked for in; curl_free() and curl_slist_free_all() free them. A handle keeps a
 * connection, with what it caches, in the scope of the transfer: use a handle in one scope only.
 * Handles that share caches (curl_share_init()) share a scope. What TLS and HTTP/2 libraries below
 * libcurl allocate is theirs.
 */
#ifndef HAKHEAP_CURL_H
#define HAKHEAP_CURL_H

#include <curl/curl.h>
#include <hakheap.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/** curl_strdup_callback over scopes. @param text a string. @return a copy for hak_free(); NULL as
 *  hak_scope_malloc(). */
static inline char *hak_curl_strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = (char *)hak_scope_malloc(size);
    return copy ? (char *)memcpy(copy, text, size) : NULL;
}

/**
 * curl_global_init_mem() by hak_scope_malloc() and its kind. What libcurl keeps for the process
 * comes from the default, whatever scope the caller is in. Once, while no other thread uses
 * libcurl; curl_global_cleanup() belongs to it.
 * @param flags those of curl_global_init(): CURL_GLOBAL_ALL.
 * @return CURLE_OK; CURLE_FAILED_INIT: the process has no default heap, or libcurl was initialised
 *         already and keeps the functions it has; nothing has changed. Else what libcurl says.
 */
static inline CURLcode hak_curl_install(long flags)
{
    CURLcode code = CURLE_FAILED_INIT;
    hak_heap_t *outer = hak_scope_enter(NULL);
    if (hak_scope_heap())
        code = curl_global_init_mem(flags, hak_scope_malloc, hak_free, hak_scope_realloc,
                                    hak_curl_strdup, hak_scope_calloc);
    if (code == CURLE_OK) {
        /* The second initialisation of a process is counted, and its functions are dropped. */
        char *probe = curl_easy_escape(NULL, "a", 1);
        if (!hak_heap_of(probe)) {
            code = probe ? CURLE_FAILED_INIT : CURLE_OUT_OF_MEMORY;
            curl_free(probe);
            curl_global_cleanup();
        } else {
            curl_free(probe);
        }
    }
    hak_scope_leave(outer);
    return code;
}

#ifdef __cplusplus
}
#endif

#endif
