/*
 * The first heaps of a process: a thread that finds the process started reads what the thread that
 * started it has written. Nothing of the program's orders the two: under ThreadSanitizer the library
 * has to.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "support_contract.h"
#include "support_stress.h"

static _Atomic bool started;
static int cpus[2];
static size_t cpu_count;

static void use_a_heap(void)
{
    hak_heap_t *heap = contract_heap(1, "start");
    STRESS_REQUIRE(heap != NULL);
    hak_heap_free(heap, hak_heap_malloc(heap, 100));
    stress_prove_empty(heap, "start");
    STRESS_REQUIRE(hak_heap_destroy(heap) == 0);
}

static void *start(void *unused)
{
    (void)contract_move_to(cpus[0]);
    use_a_heap();
    atomic_store_explicit(&started, true, memory_order_relaxed);
    return unused;
}

/* On another CPU, so that the two do not meet in the gate either. */
static void *follow(void *unused)
{
    (void)contract_move_to(cpus[cpu_count - 1]);
    while (!atomic_load_explicit(&started, memory_order_relaxed)) {
    }
    use_a_heap();
    return unused;
}

int main(int argc, char *argv[])
{
    cpu_count = contract_cpus(cpus, 2);
    STRESS_REQUIRE(cpu_count > 0);
    pthread_t threads[2];
    STRESS_REQUIRE(pthread_create(&threads[1], NULL, follow, NULL) == 0);
    STRESS_REQUIRE(pthread_create(&threads[0], NULL, start, NULL) == 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    (void)stress_begin(argc, argv, 2); /* which starts the process, too */
    printf("2 heaps\n");
    return 0;
}
