/* include/hakheap/xml2.h under the real libxml2: documents in scopes. */
#include <hakheap/xml2.h>
#include <libxml/tree.h>
#include <libxml/xmlerror.h>
#include <libxml/xpath.h>
#include <pthread.h>
#include <stdio.h>

#include "adapter.h"

TestSuite(xml2, .timeout = 120);

enum { ORDERS = 500 };

static char source[ORDERS * 120 + 100];
static int source_bytes;

static void make_source(void)
{
    int used = sprintf(source, "<?xml version=\"1.0\"?>\n<orders>");
    for (int i = 0; i < ORDERS; i++)
        used += sprintf(source + used,
                        "<order id=\"%d\"><item>part %d &amp; more</item><n>%d</n></order>", i,
                        i * 7, i % 10);
    source_bytes = used + sprintf(source + used, "</orders>");
}

static hak_heap_t *install(int level)
{
    hak_heap_t *of_process = contract_heap(level, "process");
    cr_assert(hak_scope_set_default(of_process) == 0);
    cr_assert(hak_xml2_install() == 0);
    return of_process;
}

static void uninstall(hak_heap_t *of_process)
{
    xmlCleanupParser();
    cr_assert(hak_scope_set_default(NULL) == 0);
    adapter_end(of_process);
}

static void say_nothing(void *ctx, const char *format, ...) { (void)ctx, (void)format; }

static xmlDocPtr parse(void)
{
    return xmlReadMemory(source, source_bytes, "orders.xml", NULL, XML_PARSE_NOERROR);
}

/* How many orders have that number of parts; -1: refused. */
static int count(xmlDocPtr document, const char *query)
{
    int found = -1;
    xmlXPathContextPtr context = xmlXPathNewContext(document);
    xmlXPathObjectPtr result = context ? xmlXPathEvalExpression(BAD_CAST query, context) : NULL;
    if (result && result->nodesetval) found = result->nodesetval->nodeNr;
    xmlXPathFreeObject(result);
    xmlXPathFreeContext(context);
    return found;
}

static void add_order(xmlDocPtr document)
{
    xmlNodePtr order = xmlNewChild(xmlDocGetRootElement(document), NULL, BAD_CAST "order", NULL);
    cr_assert(xmlNewProp(order, BAD_CAST "id", BAD_CAST "another") != NULL);
    cr_assert(xmlNewChild(order, NULL, BAD_CAST "n", BAD_CAST "3") != NULL);
}

Test(xml2, is_not_installed_without_a_default)
{
    hak_heap_t *heap = contract_heap(0, "scope");
    hak_heap_t *outer = hak_scope_enter(heap);
    cr_assert(hak_xml2_install() == -1);
    cr_assert(hak_scope_heap() == heap);
    hak_scope_leave(outer);
    adapter_end(heap);
}

Test(xml2, a_document_lies_in_its_scope_and_leaves_nothing, .init = make_source)
{
    hak_heap_t *of_process = install(0);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak_heap_t *heap = contract_heap(level, "document");
        size_t before = adapter_live(of_process);
        hak_heap_t *outer = hak_scope_enter(heap);
        xmlDocPtr document = parse();
        cr_assert(hak_heap_of(document) == heap);
        cr_assert(hak_heap_of(xmlDocGetRootElement(document)->children) == heap);
        cr_assert(count(document, "//order[n=3]") == ORDERS / 10);
        add_order(document);
        cr_assert(count(document, "//order[n=3]") == ORDERS / 10 + 1);
        xmlChar *text;
        int bytes;
        xmlDocDumpMemory(document, &text, &bytes);
        cr_assert(hak_heap_of(text) == heap && bytes > source_bytes);
        cr_assert(adapter_live(heap) > 200000 && adapter_live(of_process) == before);
        xmlDocPtr again = xmlReadMemory((char *)text, bytes, NULL, NULL, 0);
        cr_assert(count(again, "//order[@id='another']") == 1);
        hak_scope_leave(outer);
        xmlFree(text); /* in whatever scope */
        xmlFreeDoc(document);
        xmlFreeDoc(again);
        adapter_end(heap);
        cr_assert(adapter_live(of_process) == before);
    }
    uninstall(of_process);
}

Test(xml2, a_heap_goes_in_place_of_its_documents, .init = make_source)
{
    hak_heap_t *of_process = install(1);
    size_t before = adapter_live(of_process), by_malloc = adapter_malloc_bytes();
    for (size_t i = 0; i < contract_work(100); i++) {
        hak_heap_t *heap = contract_heap(i % 2, "document");
        hak_heap_t *outer = hak_scope_enter(heap);
        ADAPTER_NOTE(count(parse(), "//order[n=3]") == ORDERS / 10);
        hak_scope_leave(outer);
        ADAPTER_NOTE(hak_heap_destroy(heap) == 0);
    }
    ADAPTER_NOTE(adapter_malloc_bytes() == by_malloc);
    adapter_require_noted();
    cr_assert(adapter_live(of_process) == before);
    uninstall(of_process);
}

/* The trap that the header names. */
Test(xml2, the_last_error_lies_in_the_scope_it_happened_in)
{
    hak_heap_t *of_process = install(0), *heap = contract_heap(1, "document");
    xmlSetGenericErrorFunc(NULL, say_nothing);
    hak_heap_t *outer = hak_scope_enter(heap);
    cr_assert(xmlReadMemory("<a><b></a>", 10, "wrong.xml", NULL, XML_PARSE_NOERROR) == NULL);
    xmlErrorPtr error = xmlGetLastError();
    cr_assert(error && error->domain == XML_FROM_PARSER && error->message);
    cr_assert(hak_heap_of(error->message) == heap && adapter_live(heap) > 0);
    xmlResetLastError();
    hak_scope_leave(outer);
    adapter_end(heap);
    uninstall(of_process);
}

static void *documents(void *heap)
{
    hak_scope_enter(heap);
    for (int i = 0; i < 10; i++) {
        xmlDocPtr document = parse();
        if (count(document, "//order[n=3]") != ORDERS / 10) return "count";
        if (hak_heap_of(document) != heap) return "heap";
        xmlFreeDoc(document);
    }
    return NULL;
}

Test(xml2, each_thread_parses_in_its_own_scope, .init = make_source)
{
    hak_heap_t *of_process = install(0), *heaps[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        heaps[i] = contract_heap(i % 2, "thread");
        cr_assert(pthread_create(&threads[i], NULL, documents, heaps[i]) == 0);
    }
    for (int i = 0; i < 3; i++) {
        void *what;
        pthread_join(threads[i], &what);
        cr_assert(what == NULL, "%s", (const char *)what);
        adapter_end(heaps[i]);
    }
    uninstall(of_process);
}

/* libxml2 2.9 loses blocks where memory is refused, and now and then calls it the end of the
 * document: the heap takes back what is lost. */
Test(xml2, a_refused_request_is_its_memory_error, .init = make_source)
{
    hak_heap_t *of_process = install(0);
    xmlSetGenericErrorFunc(NULL, say_nothing);
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        xmlDocPtr document = NULL;
        size_t refused = 0, named = 0;
        for (size_t limit = 20000; !document; limit += 4096) {
            hak_heap_t *heap = adapter_heap(level, limit);
            hak_heap_t *outer = hak_scope_enter(heap);
            document = parse();
            xmlErrorPtr error = xmlGetLastError();
            if (!document) {
                cr_assert(error && error->code != XML_ERR_OK && adapter_refusals(heap) > 0);
                named += error->code == XML_ERR_NO_MEMORY;
                refused++;
            }
            xmlResetLastError();
            hak_scope_leave(outer);
            cr_assert(hak_heap_check(heap) == 0 && hak_heap_destroy(heap) == 0);
        }
        cr_assert(refused > 10 && named > refused / 2, "%zu of %zu", named, refused);
    }
    uninstall(of_process);
}
