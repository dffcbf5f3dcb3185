/* hakheap level 3: pieces - pages of freed large blocks, for use again */
#ifndef HAK_PIECES_H
#define HAK_PIECES_H

#include "os.h"

/*
 * Role: a set of stretches of pages that were large blocks, or parts of some. Caller: reserve, which
 * has the lock. Memory: its own.
 *
 *   taken for a block      [ part ][ part    ][ part     + fresh pages ]     at most PARTS_MOST
 *   left of the last one                              [ piece ]              stays where it is
 *
 * A piece begins at any page; to the kernel it may be part of a longer mapping. The shortest piece
 * that is long enough and begins where the block may, so that no page is moved; else the shortest
 * that is long enough; else the longest and then others, so that few pages are left over. What is
 * left of a piece is one with it again once the block in front of it is. The shortest goes to the
 * kernel first.
 *
 * Invariant: the bytes of all pieces are `bytes`, and no two overlap.
 */
enum {
    PIECES_MOST = 256,
    PIECES_STAY = 64, /* where there are more the shortest goes, so that there is room */
    PARTS_MOST = 4,
    PARTS_FROM = 4 * HAK_MIB, /* a shorter block is served in place or mapped afresh: to put it
                               * together takes as long as the faults of some 50 pages */
    PARTS_LEAST = 32, /* a part that is less than this part of its block is not worth a call */
};

typedef struct piece {
    char *base;
    size_t bytes;      /* whole pages */
    const void *giver; /* who may trim it; NULL: nobody in particular */
    const char *front; /* what this is the rest of, and follows; NULL: nothing */
    bool goes;         /* to the kernel as soon as a call may */
} piece_t;

typedef struct pieces {
    size_t count, bytes;
    piece_t at[PIECES_MOST]; /* in no order */
} pieces_t;

/* The mappings that a block is made of, in order. A count of 0 or 1: it is one, of any length. */
typedef struct parts {
    unsigned count;
    size_t bytes[PARTS_MOST];
} parts_t;

/* False: there is no room. */
bool pieces_put(pieces_t *set, piece_t piece, const os_table_t *table);
/* Takes what serves for so many bytes, of all together at most as many. Returns how many. */
unsigned pieces_take(pieces_t *set, size_t bytes, size_t alignment, const os_table_t *table,
                     piece_t taken[PARTS_MOST]);
/* Takes a piece out: one that goes, else the shortest; of a giver, NULL: of any. Of one that is
 * longer than `most` bytes, the end. No bytes: there is none. */
piece_t pieces_take_out(pieces_t *set, const void *giver, size_t most, const os_table_t *table);
bool pieces_have_going(const pieces_t *set);
size_t pieces_of(const pieces_t *set, const void *giver);
/* What a giver gave is nobody's in particular from here on. */
void pieces_disown(pieces_t *set, const void *giver);
bool pieces_are_valid(const pieces_t *set);

/* Cuts the parts of a block to so many bytes. */
void parts_cut(parts_t *parts, size_t bytes);

#endif
