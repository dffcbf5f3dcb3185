#include "operation.h"

typedef struct verb {
    const char *name;
    unsigned weight; /* of 100,000 */
} verb_t;

static const verb_t verbs[FUZZ_VERBS] = {
    [FUZZ_MALLOC] = {"malloc", 36000},
    [FUZZ_CALLOC] = {"calloc", 5000},
    [FUZZ_ALIGNED] = {"aligned", 2000},
    [FUZZ_BURST] = {"burst", 400},
    [FUZZ_EXCHANGE] = {"exchange", 4000},
    [FUZZ_REALLOC] = {"realloc", 11000},
    [FUZZ_FREE] = {"free", 32000},
    [FUZZ_FREE_RUN] = {"free-run", 600},
    [FUZZ_PROVE] = {"prove", 6000},
    [FUZZ_BAD] = {"bad", 500},
    [FUZZ_HOP] = {"hop", 250},
    [FUZZ_FLUSH] = {"flush", 160},
    [FUZZ_FLUSH_CLASS] = {"flush-class", 200},
    [FUZZ_TRIM] = {"trim", 120},
    [FUZZ_RESERVE_TRIM] = {"reserve-trim", 25},
    [FUZZ_STATS] = {"stats", 800},
    [FUZZ_CLASS_STATS] = {"class-stats", 100},
    [FUZZ_REPORT] = {"report", 15},
    [FUZZ_CHECK] = {"check", 60},
    [FUZZ_RESET] = {"reset", 25},
    [FUZZ_REPLACE] = {"replace", 60},
    [FUZZ_REFUSE] = {"refuse", 80},
    [FUZZ_ALLOW] = {"allow", 120},
    [FUZZ_FORK] = {"fork", 6},
    [FUZZ_LIMIT] = {"limit", 60},
    [FUZZ_MOVE] = {"move", 60},
};

size_t fuzz_size(uint16_t code)
{
    static const uint8_t powers[32] = {3, 4, 4, 5, 5,  5,  6,  6,  6,  6,  7,  7,  7,  7,  8,  8,
                                       8, 9, 9, 9, 10, 10, 11, 12, 13, 14, 15, 16, 17, 19, 22, 25};
    size_t power = (size_t)1 << powers[code >> 11];
    size_t size = power + ((code & 0x7ff) * power >> 11);
    return code < 8 ? code : size;
}

/* Of the large codes, which cost most of the time, few are kept. */
static uint16_t random_size(randoms_t *randoms)
{
    for (;;) {
        uint64_t random = random_next(randoms);
        uint16_t code = (uint16_t)random;
        unsigned power = code >> 11;
        unsigned rare = power >= 30 ? 1024 : power == 29 ? 64 : power >= 26 ? 4 : 1;
        if ((random >> 16) % rare == 0) return code;
    }
}

fuzz_operation_t fuzz_random_operation(randoms_t *randoms)
{
    unsigned sum = 0;
    for (int i = 0; i < FUZZ_VERBS; i++) sum += verbs[i].weight;
    unsigned left = random_below(randoms, sum);
    uint8_t verb = 0;
    while (left >= verbs[verb].weight) left -= verbs[verb++].weight;
    uint64_t random = random_next(randoms);
    if (random % 512 == 0) verb |= FUZZ_OTHER_THREAD;
    return (fuzz_operation_t){.verb = verb,
                              .place = (uint8_t)(random >> 16),
                              .slot = (uint16_t)(random >> 32),
                              .size = random_size(randoms),
                              .choice = (uint16_t)(random >> 48)};
}

fuzz_header_t fuzz_random_header(randoms_t *randoms)
{
    uint64_t random = random_next(randoms);
    static const uint8_t places[] = {1, 1, 2, 3, 4, 8, 16, 64};
    static const uint8_t slots[] = {2, 4, 5, 6, 7, 8, 9, 9};
    return (fuzz_header_t){.places = (uint8_t)(places[random % 8] - 1),
                           .levels = (uint8_t)(random >> 8),
                           .budgets = (uint8_t)(random >> 16 & 1),
                           .refuses = (random >> 24) % 4 == 0,
                           .forks = (random >> 32) % 4 == 0,
                           .slots = slots[(random >> 40) % 8],
                           .sizes = (random >> 48) % 4 ? 0 : 1 + (random >> 50) % 8,
                           .limits = (uint8_t)((random >> 56) % 3 ? 0 : 1 | random >> 56)};
}

void fuzz_print(FILE *out, size_t number, const fuzz_operation_t *operation)
{
    fprintf(out, "%6zu  %-12s place=%-3u slot=%-5u size=%-8zu choice=%u%s\n", number,
            verbs[fuzz_verb(operation)].name, operation->place, operation->slot,
            fuzz_size(operation->size), operation->choice,
            operation->verb & FUZZ_OTHER_THREAD ? " by another thread" : "");
}

void fuzz_print_header(FILE *out, const fuzz_header_t *header)
{
    fprintf(out, "heaps=%u levels=%u budgets=%u refuses=%u forks=%u slots=%u sizes=%u limits=%u\n",
            header->places % FUZZ_MOST_PLACES + 1, header->levels % FUZZ_HEADER_LEVELS,
            header->budgets, header->refuses & 1, header->forks & 1, 16u << header->slots % 10,
            header->sizes, header->limits);
}
