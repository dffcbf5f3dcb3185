/*
 * SuperSlabs on their way through the kernel: the process may keep none, so each that a heap leaves is
 * given back without the reserve's lock, and whoever takes the lock next finds it on a list.
 */
#include <pthread.h>
#include <stdio.h>

#include "support_contract.h"
#include "support_stress.h"

enum { BLOCKS = 5, BYTES = 1 << 20 /* two fill a SuperSlab */ };

/* Heaps come and go. Returns how many. */
static void *rounds(void *arg)
{
    uint32_t seed = *(uint32_t *)arg, count = 0;
    for (; !stress_is_over(); count++) {
        hak_heap_t *heap = contract_heap((int)(count % CONTRACT_LEVELS), "reserve");
        STRESS_REQUIRE(heap != NULL);
        void *blocks[BLOCKS];
        for (uint32_t i = 0; i < BLOCKS; i++) {
            STRESS_REQUIRE((blocks[i] = hak_heap_malloc(heap, BYTES)) != NULL);
            stress_write(blocks[i], 4096, seed + i, (uint16_t)count);
        }
        for (uint32_t i = 0; i < BLOCKS; i++) {
            uint16_t mark;
            (void)stress_prove(blocks[i], &mark);
            STRESS_REQUIRE(mark == (uint16_t)count);
            if (count % 2) hak_heap_free(heap, blocks[i]);
        }
        if (count % 2) stress_prove_empty(heap, "reserve");
        STRESS_REQUIRE(hak_heap_destroy(heap) == 0);
    }
    *(uint32_t *)arg = count;
    return NULL;
}

int main(int argc, char *argv[])
{
    enum { MOST = 64 };
    stress_options_t options = stress_begin(argc, argv, 4);
    STRESS_REQUIRE(options.threads <= MOST && hak_reserve_set_limit(0) == 0);
    pthread_t threads[MOST];
    uint32_t seeds[MOST], heaps = 0;
    for (uint32_t i = 0; i < options.threads; i++) {
        seeds[i] = (uint32_t)options.seed + i * BLOCKS;
        STRESS_REQUIRE(pthread_create(&threads[i], NULL, rounds, &seeds[i]) == 0);
    }
    stress_wait(&options);
    for (uint32_t i = 0; i < options.threads; i++) {
        pthread_join(threads[i], NULL);
        heaps += seeds[i];
    }
    printf("%u heaps\n", heaps);
    return 0;
}
