/**
 * @file xml2.h
 * @brief libxml2 on heaps: hak_xml2_install() once, then a scope around calls.
 *
 * **Which heap.** libxml2's hook is one for the process and carries no context. A request is served
 * by the scope of the thread that makes it (hak_scope_enter()), else by the process's default
 * (hak_scope_set_default()). A free finds the heap by itself, in whatever scope.
 * **Ownership.** Heaps stay the caller's. A heap that documents were parsed in may be destroyed in
 * place of xmlFreeDoc(); but see the traps. The default stays until xmlCleanupParser().
 * **Threads.** A scope holds for its own thread. libxml2 starts none.
 * **Refusal.** A refused request is XML_ERR_NO_MEMORY, or another error that follows from it, and
 * NULL in place of a document. libxml2 2.9 loses blocks on that way: destroy the heap, or reset it.
 * **Traps.** libxml2 keeps each thread's last error, with its text in the scope that it happened
 * in: call xmlResetLastError() there before the heap goes. It also keeps for the process what is
 * loaded when it is first needed, such as catalogues, registered encodings and input callbacks:
 * load those in no scope. Strings from xmlDocDumpMemory() and its kind belong to the scope;
 * xmlFree() frees them.
 */
#ifndef HAKHEAP_XML2_H
#define HAKHEAP_XML2_H

#include <hakheap.h>
#include <libxml/parser.h>
#include <libxml/xmlmemory.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/** xmlStrdupFunc over scopes. @param text a string. @return a copy for hak_free(); NULL as
 *  hak_scope_malloc(). */
static inline char *hak_xml2_strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = (char *)hak_scope_malloc(size);
    return copy ? (char *)memcpy(copy, text, size) : NULL;
}

/**
 * Has libxml2 allocate by hak_scope_malloc() and its kind, and calls xmlInitParser(): what libxml2
 * keeps for the process comes from the default, whatever scope the caller is in. Once, before any
 * other call of libxml2, while no other thread uses it: what malloc has given libxml2 before ends
 * the process where libxml2 frees it, by code FOREIGN.
 * @return 0; -1: the process has no default heap, and nothing has changed, or libxml2 refuses.
 */
static inline int hak_xml2_install(void)
{
    int result = -1;
    hak_heap_t *outer = hak_scope_enter(NULL);
    if (hak_scope_heap())
        result = xmlMemSetup(hak_free, hak_scope_malloc, hak_scope_realloc, hak_xml2_strdup);
    if (result == 0) xmlInitParser();
    hak_scope_leave(outer);
    return result;
}

#ifdef __cplusplus
}
#endif

#endif
