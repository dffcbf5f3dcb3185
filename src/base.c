/* hakheap level 0: base - the lock and the fatal line */
#include "base.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tls.h"

/*
 * The lock is Drepper's third mutex ("Futexes Are Tricky", 2011): four bytes, one compare-and-swap
 * to take and one exchange to give back while no thread waits. pthread_mutex_t would be 40 bytes in
 * each size class of each heap.
 */

static void futex(_Atomic uint32_t *word, int operation, uint32_t value)
{
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

enum { SPINS = 64 };

/* By number, as everywhere here: the C library's functions are where a thread may be cancelled. */
void lock_rest(void)
{
    /* About what it takes to wake a thread. Asleep, not in a loop of yields: where both share a CPU
     * each of those costs a whole slice of time. */
    static const struct timespec moment = {0, 50000};
    syscall(SYS_nanosleep, &moment, NULL);
}

void hak_wait(unsigned turn)
{
    if (turn < SPINS) hak_pause();
    else lock_rest();
}

uint32_t lock_ranks(void) { return HAK_DEBUG ? *hak_tls.ranks : 0; }

static void rank_enter(lock_rank_t rank)
{
    hak_assert(lock_ranks() < (1u << rank));
    *hak_tls.ranks |= 1u << rank;
}

bool lock_try(hak_lock_t *lock, lock_rank_t rank)
{
    uint32_t free_word = 0;
    /* Acquire: pairs with the release exchange in lock_give. */
    if (!cas_acquire(&lock->word, &free_word, 1u)) return false;
    if (HAK_DEBUG) rank_enter(rank);
    return true;
}

static HAK_NOINLINE void lock_wait(hak_lock_t *lock)
{
    for (int spin = 0; spin < SPINS; spin++) {
        uint32_t free_word = 0;
        if (load_relaxed(&lock->word) == 0 && cas_acquire(&lock->word, &free_word, 1u)) return;
        hak_pause();
    }
    /* Acquire: pairs with the release exchange in lock_give. */
    while (exchange_acquire(&lock->word, 2u) != 0) futex(&lock->word, FUTEX_WAIT, 2);
}

static void lock_take(hak_lock_t *lock)
{
    uint32_t free_word = 0;
    if (HAK_UNLIKELY(!cas_acquire(&lock->word, &free_word, 1u))) lock_wait(lock);
}

static void lock_give(hak_lock_t *lock)
{
    /* Release: pairs with the acquires above. */
    if (HAK_UNLIKELY(exchange_acq_rel(&lock->word, 0u) == 2)) futex(&lock->word, FUTEX_WAKE, 1);
}

void lock_acquire(hak_lock_t *lock, lock_rank_t rank)
{
    if (HAK_DEBUG) rank_enter(rank);
    lock_take(lock);
}

void lock_release_reset(hak_lock_t *lock, lock_rank_t rank)
{
    if (HAK_DEBUG) *hak_tls.ranks &= ~(1u << rank);
    lock_give(lock);
}

void lock_release(hak_lock_t *lock, lock_rank_t rank)
{
    hak_assert(lock_is_held(lock));
    lock_release_reset(lock, rank);
}

void lock_pass(hak_lock_t *lock, lock_rank_t rank)
{
    bool wanted = lock_is_wanted(lock);
    lock_release(lock, rank);
    if (HAK_UNLIKELY(wanted)) lock_rest();
}

void lock_acquire_next(hak_lock_t *lock, lock_rank_t rank)
{
    hak_assert(lock_ranks() < (2u << rank));
    (void)rank;
    lock_take(lock);
}

void lock_release_next(hak_lock_t *lock)
{
    hak_assert(lock_is_held(lock));
    lock_give(lock);
}

/* ---- The line ---- */

char hak_fatal_line[512];

typedef struct line {
    size_t used;
} line_t;

static void put(line_t *line, const char *text)
{
    while (*text != '\0' && line->used < sizeof hak_fatal_line - 2)
        hak_fatal_line[line->used++] = *text++;
}

static void put_number(line_t *line, uintptr_t n, unsigned base)
{
    char digits[24];
    size_t at = sizeof digits;
    digits[--at] = '\0';
    do digits[--at] = "0123456789abcdef"[n % base];
    while ((n /= base) != 0);
    put(line, digits + at);
}

void hak_complain(const hak_fault_t *fault)
{
    line_t line = {0};
    put(&line, "hakheap: ");
    put(&line, fault->code);
    put(&line, ": ");
    put(&line, fault->operation);
    put(&line, " ptr=0x");
    put_number(&line, (uintptr_t)fault->ptr, 16);
    put(&line, " heap=\"");
    put(&line, fault->heap ? fault->heap : "");
    put(&line, "\" class=");
    put_number(&line, fault->class_bytes, 10);
    put(&line, ": ");
    put(&line, fault->words);
    if (fault->other) {
        put(&line, " \"");
        put(&line, fault->other);
        put(&line, "\"");
    }
    hak_fatal_line[line.used] = '\n';
    hak_fatal_line[line.used + 1] = '\0';
    /* Nothing can be done where standard error refuses: abort() follows either way. */
    if (syscall(SYS_write, STDERR_FILENO, hak_fatal_line, line.used + 1) < 0) return;
}

_Noreturn void hak_fatal(const hak_fault_t *fault)
{
    hak_complain(fault);
    abort();
}

_Noreturn void hak_assert_failed(const char *what, const char *file, int line)
{
    char words[200];
    size_t used = 0;
    for (const char *from = file; *from && used < 60; from++) words[used++] = *from;
    words[used++] = ':';
    char digits[12];
    size_t count = 0;
    for (int n = line; n; n /= 10) digits[count++] = (char)('0' + n % 10);
    while (count) words[used++] = digits[--count];
    words[used++] = ' ';
    for (const char *from = what; *from && used < sizeof words - 1; from++) words[used++] = *from;
    words[used] = '\0';
    hak_fatal(&(hak_fault_t){.code = "ASSERT", .operation = "assert", .words = words});
}
