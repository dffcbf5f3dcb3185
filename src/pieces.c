/* hakheap level 3: pieces - pages of freed large blocks, for use again */
#include "pieces.h"

/* Whether a piece in the set is the rest of one that comes back. */
static bool is_rest(const piece_t *rest, const piece_t *piece)
{
    return rest->front == piece->base && rest->base == piece->base + piece->bytes &&
           rest->giver == piece->giver && rest->goes == piece->goes;
}

bool pieces_put(pieces_t *set, piece_t piece, const os_table_t *table)
{
    for (piece_t *at = set->at; at < set->at + set->count; at++) {
        if (!is_rest(at, &piece)) continue;
        table->join(piece.base, piece.bytes + at->bytes, piece.bytes);
        set->bytes += piece.bytes;
        piece.bytes += at->bytes;
        *at = piece;
        return true;
    }
    if (set->count == PIECES_MOST) return false;
    set->at[set->count++] = piece;
    set->bytes += piece.bytes;
    return true;
}

static piece_t remove_at(pieces_t *set, size_t at)
{
    piece_t piece = set->at[at];
    set->at[at] = set->at[--set->count];
    set->bytes -= piece.bytes;
    return piece;
}

/* The first `bytes` of a piece; the rest stays. */
static piece_t take_front(pieces_t *set, size_t at, size_t bytes, const os_table_t *table)
{
    piece_t *piece = &set->at[at];
    if (piece->bytes <= bytes) return remove_at(set, at);
    table->split(piece->base, piece->bytes, bytes);
    piece_t front = *piece;
    front.bytes = bytes;
    piece->front = piece->base;
    piece->base += bytes;
    piece->bytes -= bytes;
    set->bytes -= bytes;
    return front;
}

static piece_t take_end(pieces_t *set, size_t at, size_t bytes, const os_table_t *table)
{
    piece_t *piece = &set->at[at];
    if (piece->bytes <= bytes) return remove_at(set, at);
    size_t left = piece->bytes - bytes;
    table->split(piece->base, piece->bytes, left);
    piece_t end = *piece;
    end.base += left;
    end.bytes = bytes;
    end.front = NULL;
    piece->bytes = left;
    set->bytes -= bytes;
    return end;
}

/* How well a piece serves: where it is, moved, or in part. */
typedef enum fit { FIT_PART, FIT_MOVED, FIT_HERE } fit_t;
static fit_t fit_of(const piece_t *piece, size_t bytes, size_t alignment)
{
    if (piece->bytes < bytes) return FIT_PART;
    return (uintptr_t)piece->base % alignment ? FIT_MOVED : FIT_HERE;
}

/* Of those that serve best the shortest, of parts the longest. */
static size_t best(const pieces_t *set, size_t bytes, size_t alignment)
{
    size_t found = 0;
    fit_t had = FIT_PART;
    for (size_t i = 0; i < set->count; i++) {
        const piece_t *piece = &set->at[i];
        fit_t has = fit_of(piece, bytes, alignment);
        bool longer = piece->bytes > set->at[found].bytes;
        bool shorter = piece->bytes < set->at[found].bytes;
        if (has > had || (has == had && (has == FIT_PART ? longer : shorter))) found = i, had = has;
    }
    return found;
}

unsigned pieces_take(pieces_t *set, size_t bytes, size_t alignment, const os_table_t *table,
                     piece_t taken[PARTS_MOST])
{
    unsigned count = 0;
    for (size_t left = bytes; left && set->count && count < PARTS_MOST; count++) {
        size_t at = best(set, left, alignment);
        if (set->at[at].bytes < hak_min(left, bytes / PARTS_LEAST)) break;
        if (bytes < PARTS_FROM && fit_of(&set->at[at], bytes, alignment) != FIT_HERE) break;
        taken[count] = take_front(set, at, left, table);
        left -= taken[count].bytes;
    }
    return count;
}

piece_t pieces_take_out(pieces_t *set, const void *giver, size_t most, const os_table_t *table)
{
    const piece_t *found = NULL;
    for (const piece_t *at = set->at, *end = at + set->count; at < end; at++) {
        if (giver && at->giver != giver) continue;
        if (found && found->goes >= at->goes &&
            (found->goes > at->goes || found->bytes <= at->bytes))
            continue;
        found = at;
    }
    if (!found || !most) return (piece_t){0};
    return take_end(set, (size_t)(found - set->at), most, table);
}

bool pieces_have_going(const pieces_t *set)
{
    for (size_t i = 0; i < set->count; i++)
        if (set->at[i].goes) return true;
    return false;
}

size_t pieces_of(const pieces_t *set, const void *giver)
{
    size_t bytes = 0;
    for (size_t i = 0; i < set->count; i++)
        if (set->at[i].giver == giver) bytes += set->at[i].bytes;
    return bytes;
}

void pieces_disown(pieces_t *set, const void *giver)
{
    for (size_t i = 0; i < set->count; i++)
        if (set->at[i].giver == giver) set->at[i].giver = NULL;
}

static bool overlaps(const pieces_t *set, size_t at)
{
    const piece_t *one = &set->at[at];
    for (size_t i = 0; i < at; i++) {
        const piece_t *other = &set->at[i];
        if (one->base < other->base + other->bytes && other->base < one->base + one->bytes)
            return true;
    }
    return false;
}

bool pieces_are_valid(const pieces_t *set)
{
    size_t bytes = 0;
    for (size_t i = 0; i < set->count; i++) {
        const piece_t *piece = &set->at[i];
        if (!piece->bytes || piece->bytes % HAK_PAGE || (uintptr_t)piece->base % HAK_PAGE)
            return false;
        if (overlaps(set, i)) return false;
        bytes += piece->bytes;
    }
    return set->count <= PIECES_MOST && bytes == set->bytes;
}

void parts_cut(parts_t *parts, size_t bytes)
{
    for (unsigned i = 0; i < parts->count; i++) {
        if (parts->bytes[i] >= bytes) {
            parts->bytes[i] = bytes;
            parts->count = i + 1;
        } else {
            bytes -= parts->bytes[i];
        }
    }
}
