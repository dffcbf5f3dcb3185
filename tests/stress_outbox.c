/*
 * Areas get their outboxes while a flush, a trim or a check holds them: short-lived heaps, each
 * used by one thread that makes an outbox wanted, while another flushes.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "support_contract.h"
#include "support_stress.h"

enum { BLOCKS = 400, ROUNDS = 3 };

static hak_heap_t *heap;
static _Atomic bool done;

static void *use(void *seed)
{
    static void *blocks[BLOCKS];
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < BLOCKS; i++) {
            STRESS_REQUIRE((blocks[i] = hak_heap_malloc(heap, 64)) != NULL);
            stress_write(blocks[i], 64, *(uint32_t *)seed + i, (uint16_t)round);
        }
        for (uint32_t i = 0; i < BLOCKS; i++) {
            uint16_t mark;
            (void)stress_prove(blocks[i], &mark);
            STRESS_REQUIRE(mark == round);
            hak_heap_free(heap, blocks[i]);
        }
    }
    done = true;
    return NULL;
}

static void *wait_for_the_end(void *options)
{
    stress_wait(options);
    return NULL;
}

static void disturb(uint32_t turn)
{
    if (turn % 16 == 5) STRESS_REQUIRE(hak_heap_check(heap) == 0);
    else if (turn % 16 == 9) (void)hak_heap_trim(heap, 0);
    else (void)hak_heap_flush(heap);
}

int main(int argc, char *argv[])
{
    stress_options_t options = stress_begin(argc, argv, 1);
    pthread_t timer;
    uint32_t seed = (uint32_t)options.seed;
    STRESS_REQUIRE(pthread_create(&timer, NULL, wait_for_the_end, &options) == 0);
    size_t heaps = 0;
    for (; !stress_is_over(); heaps++, seed += BLOCKS) {
        heap = contract_heap((int)(heaps % CONTRACT_LEVELS), "outbox");
        STRESS_REQUIRE(heap != NULL);
        done = false;
        pthread_t thread;
        STRESS_REQUIRE(pthread_create(&thread, NULL, use, &seed) == 0);
        for (uint32_t turn = 0; !done; turn++) disturb(turn);
        pthread_join(thread, NULL);
        stress_prove_empty(heap, "outbox");
        STRESS_REQUIRE(hak_heap_destroy(heap) == 0);
    }
    pthread_join(timer, NULL);
    printf("%zu heaps\n", heaps);
    return 0;
}
