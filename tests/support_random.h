/* Random numbers for tests: the same ones at every run. */
#ifndef HAK_SUPPORT_RANDOM_H
#define HAK_SUPPORT_RANDOM_H

#include <stdint.h>

typedef struct randoms {
    uint64_t state;
} randoms_t;

/* SplitMix64 (Steele, Lea, Flood, 2014): any seed will do, 0 too. */
static inline uint64_t random_next(randoms_t *randoms)
{
    uint64_t z = randoms->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* 0 to below - 1. */
static inline unsigned random_below(randoms_t *randoms, unsigned below)
{
    return (unsigned)(random_next(randoms) % below);
}

#endif
