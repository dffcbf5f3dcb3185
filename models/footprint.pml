/*
 * The footprint of heaps in a tree (src/ledger.h): growth against free, recall and trim.
 *
 * A parent with a limit and two heaps below it, 0 and 1. Memory comes and goes by one unit. Two workers
 * let a heap's memory grow, and free; a trimmer trims heap 1. When all are done, `last` asks once
 * more, alone, and its answer must be exact: it is refused exactly where live + 1 > limit.
 *
 * HEAP, TRIM and SQUEEZE are locks here, so that a circle of threads that wait is seen. One atomic or
 * d_step is a section of the lock TREE, or one step under a lock that its process has.
 *
 * Each switch seeds one bug, which `make models` must find:
 *   BUG_ADMIT   memory is in use before the chain was asked
 *   BUG_UNTIED  a free names its footprint after it has let HEAP go
 *   BUG_KEEP    a tight heap keeps what is freed, as others do
 *   BUG_BUSY    a free that finds TREE busy leaves no note
 *   BUG_SETTLE  a recall leaves what heaps keep
 *   BUG_ORDER   a recall takes HEAP before TRIM
 */
#ifndef OPS
#define OPS 3
#endif
#ifndef LIMIT
#define LIMIT 2
#endif
#define NEVER 255

byte sum;                       /* TREE; of the parent */
byte lease[2];                  /* HEAP and TREE, both to write */
byte used[2], live[2];          /* HEAP; what is used and not live, a trim takes */
bool tight[2], keeps[2];        /* TREE; keeps: the heap may leave room for what comes next */
bool squeezed;                  /* TREE; of the parent */
byte refused_at = NEVER, epoch;
bool heap_lock[2], trim_lock[2], squeeze_lock;
byte done;

#define CHECK assert(sum == lease[0] + lease[1]); assert(sum <= LIMIT); \
    assert(used[0] <= lease[0] && used[1] <= lease[1]); assert(live[0] <= used[0] && live[1] <= used[1])

inline take(lock) { atomic { !lock -> lock = 1 } }
inline give(lock) { d_step { assert(lock); lock = 0 } }

/* The footprint is what is used now; TREE is waited for. HEAP is held. */
inline settle(h) { d_step { sum = sum - (lease[h] - used[h]); lease[h] = used[h]; CHECK } }

/* A tenth of a second may have passed, or not. */
inline relax(h) {
    d_step {
        if
        :: !squeezed -> tight[h] = 0
        :: else
        fi
    }
}

/* ---- Growth; ok, or the chain has refused ---- */
inline admit(h) {
    take(heap_lock[h]);
#ifdef BUG_ADMIT
    d_step { used[h]++; live[h]++; CHECK }
#endif
    if
    :: d_step { lease[h] > used[h] -> ok = 1 }                  /* it was kept */
    :: else -> atomic {
        if
        :: sum < LIMIT ->
           sum++; lease[h]++; ok = 1;
           if
           :: !squeezed && !tight[h] -> keeps[h] = 1
           :: true
           fi
        :: else -> ok = 0
        fi }
    fi;
#ifndef BUG_ADMIT
    if
    :: ok -> d_step { used[h]++; live[h]++; mine[h]++; CHECK }
    :: else
    fi;
#endif
    give(heap_lock[h])
}

/* Of one heap: what is not live goes, and all of its room. */
inline release_one(h) {
#ifdef BUG_ORDER
    take(heap_lock[h]);
    take(trim_lock[h]);
#else
    take(trim_lock[h]);
    take(heap_lock[h]);
#endif
    d_step { used[h] = live[h]; CHECK }
#ifndef BUG_SETTLE
    settle(h);
#endif
    give(heap_lock[h]);
    give(trim_lock[h])
}

/* SQUEEZE is held. */
inline recall() {
    d_step { squeezed = 1; refused_at = NEVER; tight[0] = 1; tight[1] = 1;
#ifndef BUG_KEEP
             keeps[0] = 0; keeps[1] = 0;
#endif
             e = epoch }
    release_one(0);
    release_one(1)
}

inline grow(h) {
    atomic { if :: squeezed = 0 :: true fi }
    relax(h);
    ok = 0; recalled = 0;
    do
    :: admit(h);
       if
       :: ok -> break
       :: else
       fi;
       take(squeeze_lock);
       if
       :: d_step { sum < LIMIT }                                /* another has made room */
          give(squeeze_lock)
       :: d_step { sum == LIMIT && squeezed && refused_at == epoch }
          give(squeeze_lock); break                             /* known */
       :: else ->
          if
          :: recalled -> d_step { refused_at = e }
             give(squeeze_lock); break
          :: else -> recall(); give(squeeze_lock); recalled = 1
          fi
       fi
    od;
    recalled = 0; e = 0
}

/* ---- Free ---- */
inline name(h) {
    if
    :: d_step { keeps[h] -> skip }
    :: else ->
       if
       :: settle(h)
       :: true ->                                               /* TREE is busy */
#ifndef BUG_BUSY
          d_step { if :: tight[h] -> epoch++ :: else fi }
#else
          skip
#endif
       fi
    fi
}

/* A block goes: its memory with it, or that waits in the heap for a trim. Where its charge is
 * another block's by now, nothing is refunded, and no epoch counted. */
inline free(h) {
    take(heap_lock[h]);
    if
    :: d_step { live[h]--; mine[h]--; used[h]--; CHECK }
#ifdef BUG_UNTIED
       byte was = used[h];
       give(heap_lock[h]);
       d_step { sum = sum - (lease[h] - was); lease[h] = was; was = 0; CHECK }
       take(heap_lock[h]);
#else
       name(h);
#endif
       give(heap_lock[h]);
       if
       :: d_step { if :: tight[h] -> epoch++ :: else fi }       /* the refund */
       :: true
       fi
    :: d_step { live[h]--; mine[h]--; CHECK }
       give(heap_lock[h]);
       d_step { if :: tight[h] -> epoch++ :: else fi }
    fi
}

proctype worker() {
    byte mine[2]; byte ops, e; bool ok, recalled;
    do
    :: ops < OPS -> ops++;
       if
       :: true -> grow(0)
       :: true -> grow(1)
       :: atomic { mine[0] > 0 } free(0)
       :: atomic { mine[1] > 0 } free(1)
       fi
    :: ops == OPS -> break
    od;
    done++
}

/* A trim holds TRIM for several steps, and HEAP for each. */
proctype trimmer() {
    take(trim_lock[1]);
    take(heap_lock[1]);
    d_step { used[1] = live[1]; CHECK }
    settle(1);
    give(heap_lock[1]);
    take(heap_lock[1]);
    settle(1);
    give(heap_lock[1]);
    give(trim_lock[1]);
    done++
}

/* Alone: exact, and nothing is lost. */
proctype last() {
    byte mine[2]; byte e, before; bool ok, recalled;
    done == 3;
    before = live[0] + live[1];
    grow(0);
    assert(ok == (before + 1 <= LIMIT));
    release_one(0); release_one(1);
    assert(sum == live[0] + live[1])
}

init { atomic { run worker(); run worker(); run trimmer(); run last() } }
