/* One thread of a run: it has blocks, and does operations one after another. */
#ifndef HAK_FUZZ_PLAYER_H
#define HAK_FUZZ_PLAYER_H

#include "world.h"

typedef struct hand hand_t;

typedef struct player {
    block_t *slots; /* world.slots of them */
    uint64_t calls; /* of the library, so far */
    uint32_t seeds; /* of contents, counted up */
    int cpus[64];
    size_t cpu_count;
    hand_t *hand; /* the thread that does what another thread must do; made when needed */
} player_t;

void player_begin(player_t *player, uint32_t seeds);
void player_do(player_t *player, const fuzz_operation_t *operation);
/* Frees all blocks, each proved. */
void player_end(player_t *player);

#endif
