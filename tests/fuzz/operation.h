/*
 * A sequence of operations: its header says how the world is made, each operation after it is one
 * thing to do. Both are 8 bytes, so that a sequence is any bytes at all, and stays one where parts
 * of it are cut out.
 */
#ifndef HAK_FUZZ_OPERATION_H
#define HAK_FUZZ_OPERATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "support_random.h"

/* What an operation does: one line of operation.c's table, one function of player.c. */
typedef enum fuzz_verb {
    FUZZ_MALLOC,   /* into a slot; what lies there is freed first, in these five */
    FUZZ_CALLOC,   /* and every byte is proved to be zero */
    FUZZ_ALIGNED,  /* to 16 bytes to 64 MiB */
    FUZZ_BURST,    /* many blocks of one size, into slots that follow each other */
    FUZZ_EXCHANGE, /* with a mailbox, from which any thread takes */
    FUZZ_REALLOC,  /* the content up to the smaller size is proved */
    FUZZ_FREE,     /* by each verb that frees */
    FUZZ_FREE_RUN, /* slots that follow each other, forwards or backwards */
    FUZZ_PROVE,    /* content, owner and usable size, of the block and inside it */
    FUZZ_BAD,      /* requests that must be refused */
    FUZZ_HOP,      /* to another CPU */
    FUZZ_FLUSH,
    FUZZ_FLUSH_CLASS,
    FUZZ_TRIM,
    FUZZ_RESERVE_TRIM,
    FUZZ_STATS,
    FUZZ_CLASS_STATS,
    FUZZ_REPORT,
    FUZZ_CHECK, /* with hak_heap_check, and the model's balance */
    FUZZ_RESET,
    FUZZ_REPLACE, /* destroys a heap and creates another: level and budgets by choice */
    FUZZ_REFUSE,  /* the system refuses the k-th call of a kind, once or for ever */
    FUZZ_ALLOW,   /* it grants all again */
    FUZZ_FORK,    /* the child uses everything */
    FUZZ_LIMIT,   /* another limit, of a heap or of a root */
    FUZZ_MOVE,    /* a heap to the other root */
    FUZZ_VERBS
} fuzz_verb_t;

/* Bit of `verb`: another thread does it, while the player waits. */
enum { FUZZ_OTHER_THREAD = 0x80 };

typedef struct fuzz_operation {
    uint8_t verb;    /* modulo FUZZ_VERBS, with FUZZ_OTHER_THREAD */
    uint8_t place;   /* which heap */
    uint16_t slot;   /* which block */
    uint16_t size;   /* fuzz_size() */
    uint16_t choice; /* what the verb makes of it */
} fuzz_operation_t;

enum { FUZZ_HEADER_LEVELS = 3, FUZZ_MOST_PLACES = 64 };

typedef struct fuzz_header {
    uint8_t places;  /* heaps: modulo FUZZ_MOST_PLACES, and one more */
    uint8_t levels;  /* modulo FUZZ_HEADER_LEVELS: FAST, CHECKED, or by heap */
    uint8_t budgets; /* 0: all heaps have the defaults; else they differ by heap */
    uint8_t refuses; /* whether FUZZ_REFUSE does anything: odd */
    uint8_t forks;   /* whether FUZZ_FORK does anything: odd */
    uint8_t slots;   /* blocks: 16 << modulo 10 */
    uint8_t sizes;   /* how many sizes there are; 0: all */
    uint8_t
        limits; /* odd: heaps count, under two roots with limits; the other bits say which, and 0x40:
                      * with limits of what is in use, too */
} fuzz_header_t;

_Static_assert(sizeof(fuzz_operation_t) == 8 && sizeof(fuzz_header_t) == 8, "read as they are");

static inline fuzz_verb_t fuzz_verb(const fuzz_operation_t *operation)
{
    return (fuzz_verb_t)((operation->verb & ~FUZZ_OTHER_THREAD) % FUZZ_VERBS);
}

/* Bytes: 0 to 64 MiB, half of all codes below 512. */
size_t fuzz_size(uint16_t code);
/* A verb by its weight, a size with a heavy tail, and everything else at random. */
fuzz_operation_t fuzz_random_operation(randoms_t *randoms);
fuzz_header_t fuzz_random_header(randoms_t *randoms);

/* One line for a reader. */
void fuzz_print(FILE *out, size_t number, const fuzz_operation_t *operation);
void fuzz_print_header(FILE *out, const fuzz_header_t *header);

#endif
