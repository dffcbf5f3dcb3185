/* The shortest tour of hakheap: create, allocate, grow, measure, destroy. */
#include <hakheap.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "hello";
    hak_heap_t *heap = hak_heap_create(&config);
    if (!heap) return perror("hak_heap_create"), 1;

    char *text = hak_heap_malloc(heap, 8);
    int *numbers = hak_heap_calloc(heap, 1000, sizeof *numbers);
    void *scratch = hak_heap_malloc(heap, 64);
    if (!text || !numbers || !scratch) return perror("hak_heap_malloc"), 1;

    char *longer = hak_heap_realloc(heap, text, 100);
    if (!longer) return perror("hak_heap_realloc"), 1;
    strcpy(longer, "hello, heap");
    puts(longer);

    hak_heap_free(heap, scratch);
    hak_heap_stats_t stats = {.struct_size = sizeof stats};
    if (hak_heap_stats(heap, &stats) != 0) return 1;
    printf("%zu blocks of %zu bytes live, %zu bytes resident\n", stats.live_blocks,
           stats.live_bytes, stats.resident_bytes);

    /* One call gives back all that is left, longer and numbers too. */
    return hak_heap_destroy(heap);
}
