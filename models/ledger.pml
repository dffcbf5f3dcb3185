/*
 * Quotas in trees (src/ledger.h): a charge against a recall, a refund and a move.
 *
 * Two parents with a limit; children 0 and 1, of which child 1 moves between them. Every block is one
 * unit. Two workers malloc and free, a third process recalls (as hak_heap_set_limits does), a mover
 * moves child 1. When all are done, `last` asks once more, alone, and its answer must be exact: it is
 * refused exactly where live + 1 > limit.
 *
 * One atomic or d_step is one section of the lock TREE, AREAS or CLASS, or one atomic instruction, of
 * the C code. A section of the magazines is one step, too: it commits by one store, or is aborted by
 * the fence.
 *
 * Each switch seeds one bug, which `make models` must find:
 *   BUG         the recall reads the credit and stores 0 in two steps: a refund is lost
 *   BUG_UNTIED  a borrow tests the limit and adds to the sums in two sections
 *   BUG_REMOTE  a free that waits on a remote list of a tight heap does not count the epoch
 *   BUG_ADOPT   whether the heap is tight is looked at before AREAS is taken
 *   BUG_ORDER   a refund looks at tight before it adds to the credit
 */
#ifndef OPS
#define OPS 2
#endif
#ifndef LIMIT
#define LIMIT 2
#endif
#ifndef MOVES
#define MOVES 1
#endif
#ifndef LEASE
#define LEASE 1      /* what a borrow takes of a chain that is not tight, where there is room */
#endif
#ifndef ROUNDS
#define ROUNDS 4
#endif
#ifndef CACHE
#define CACHE 1      /* blocks of a magazine */
#endif
#define NONE 255

byte parent[2];                 /* TREE */
byte lease[2], sum[2];          /* TREE; sum: of P and Q; of a child it is its lease */
byte credit[2], cached[2], remote[2], live[2], hand[2];
bool tight[2], area[2];         /* children; area: sections reach it */
bool ptight[2];                 /* parents */
byte refused_at[2];
byte epoch;
bool squeezing;                 /* lock SQUEEZE */
byte done;

#define below(a, x) ((parent[0] == a -> x[0] : 0) + (parent[1] == a -> x[1] : 0))
#define I2 (sum[0] == below(0, lease) && sum[1] == below(1, lease))
#define I3 (sum[0] <= LIMIT && sum[1] <= LIMIT)
#define I1(c) (lease[c] == credit[c] + live[c] + cached[c] + remote[c] + hand[c])
/* after every section that changes one of them */
#define CHECK assert(I2); assert(I3); assert(I1(0)); assert(I1(1))

/* ---- refund: bytes in this thread's hands go back to the heap's credit ---- */
inline refund(c, n) {
#ifdef BUG_ORDER
    t = tight[c];
    d_step { hand[c] = hand[c] - n; credit[c] = credit[c] + n; CHECK }
#else
    d_step { hand[c] = hand[c] - n; credit[c] = credit[c] + n; CHECK }
    t = tight[c];
#endif
    if
    :: t -> epoch++
    :: else
    fi;
    t = 0
}

/* ---- squeeze(a) ---- */
inline recall(c) {
#ifdef BUG
    got = credit[c];
    d_step { lease[c] = lease[c] - got; sum[parent[c]] = sum[parent[c]] - got; credit[c] = 0; assert(I2); assert(I3) }
#else
    d_step { got = credit[c]; credit[c] = 0; lease[c] = lease[c] - got; sum[parent[c]] = sum[parent[c]] - got; CHECK }
#endif
    got = 0
}
inline squeeze_one(a, c) {
    if
    :: d_step { parent[c] == a -> tight[c] = 1 }            /* TREE: collected, pinned, tight */
       d_step { area[c] = 0 }                               /* AREAS: halt, fence */
       d_step { got = cached[c]; cached[c] = 0; hand[c] = hand[c] + got; CHECK }
       d_step { hand[c] = hand[c] - got; credit[c] = credit[c] + got; if :: got -> epoch++ :: else fi; got = 0; CHECK }
       d_step { got = remote[c]; remote[c] = 0; hand[c] = hand[c] + got; CHECK }
       d_step { hand[c] = hand[c] - got; credit[c] = credit[c] + got; if :: got -> epoch++ :: else fi; got = 0; CHECK }
       recall(c)
    :: else
    fi
}
inline squeeze(a) {
    atomic { !squeezing -> squeezing = 1; ptight[a] = 1 }
    squeeze_one(a, 0);
    squeeze_one(a, 1);
    squeezing = 0
}

/* ---- borrow, TREE; `a` NONE: the caller has one unit in hand ---- */
inline borrow(c) {
    atomic {
        /* 100 ms may have passed, or not */
        if
        :: ptight[parent[c]] && sum[parent[c]] < LIMIT -> ptight[parent[c]] = 0
        :: true
        fi;
        if
        :: tight[c] && !ptight[parent[c]] -> tight[c] = 0
        :: else
        fi;
        if
        :: sum[parent[c]] >= LIMIT -> a = parent[c]
        :: else ->
           a = NONE;
           got = ((ptight[parent[c]] || LIMIT - sum[parent[c]] < LEASE) -> 1 : LEASE);
#ifndef BUG_UNTIED
           sum[parent[c]] = sum[parent[c]] + got; lease[c] = lease[c] + got;
           credit[c] = credit[c] + got - 1; hand[c]++; got = 0; CHECK
#endif
        fi
    }
#ifdef BUG_UNTIED
    if
    :: a == NONE -> atomic {
        sum[parent[c]] = sum[parent[c]] + got; lease[c] = lease[c] + got;
        credit[c] = credit[c] + got - 1; hand[c]++; got = 0; CHECK }
    :: else
    fi
#endif
}

/* ---- charge: ok, one unit in hand, or not ---- */
inline charge(c) {
    prior = NONE; rounds = 0; ok = 0;
    do
    :: atomic { credit[c] > 0 -> credit[c]--; hand[c]++; ok = 1; CHECK } break       /* grab */
    :: else ->
       borrow(c);
       if
       :: a == NONE -> ok = 1; break
       :: else
       fi;
       if
       :: d_step { ptight[a] && refused_at[a] == epoch } break                      /* known */
       :: else
       fi;
       if
       :: d_step { a == prior -> refused_at[a] = e } break
       :: else
       fi;
       if
       :: rounds == ROUNDS -> break
       :: else
       fi;
       e = epoch;
       squeeze(a);
       prior = a; rounds++
    od;
    a = NONE; prior = NONE; rounds = 0; e = 0
}

inline adopt(c) {                       /* AREAS: a running area, where the heap may cache */
#ifdef BUG_ADOPT
    t = tight[c];
    d_step { if :: !t -> area[c] = 1 :: else fi; t = 0 }
#else
    d_step { if :: !tight[c] -> area[c] = 1 :: else fi }
#endif
}

inline malloc(c) {
    if
    :: atomic { area[c] && cached[c] > 0 -> cached[c]--; live[c]++; mine[c]++; ok = 1; CHECK }       /* hit */
    :: else ->
       adopt(c);
       charge(c);
       if
       :: ok -> d_step { hand[c]--; live[c]++; mine[c]++; CHECK }       /* the block leaves its slab */
       :: else
       fi
    fi
}

inline free(c) {
    if
    :: atomic { area[c] && cached[c] < CACHE -> live[c]--; mine[c]--; cached[c]++; CHECK }               /* push */
    :: else ->
       if
       :: d_step { live[c]--; mine[c]--; hand[c]++; CHECK }             /* CLASS: into its slab */
          refund(c, 1)
       :: d_step { live[c]--; mine[c]--; remote[c]++; CHECK }           /* CLASS busy, or in a handler */
#ifndef BUG_REMOTE
          if
          :: tight[c] -> epoch++
          :: else
          fi
#endif
       fi
    fi
}

proctype worker() {
    byte mine[2]; byte ops, a, prior, e, rounds, got; bool ok, t;
    a = NONE; prior = NONE;
    do
    :: ops < OPS -> ops++;
       if
       :: true -> malloc(0)
       :: true -> malloc(1)
       :: atomic { mine[0] > 0 } free(0)
       :: atomic { mine[1] > 0 } free(1)
       fi;
       ok = 0
    :: ops == OPS -> break
    od;
    done++
}

proctype squeezer() {
    byte got;
    squeeze(0);
    done++
}

proctype mover() {
    byte n, to;
    do
    :: n < MOVES ->
       n++;
       atomic {
           to = 1 - parent[1];
           if
           :: sum[to] + lease[1] <= LIMIT ->
              sum[parent[1]] = sum[parent[1]] - lease[1]; sum[to] = sum[to] + lease[1]; parent[1] = to;
              epoch++;
              CHECK
           :: else
           fi;
           to = 0
       }
    :: n == MOVES -> break
    od;
    done++
}

/* Alone: exact, and nothing is lost. */
proctype last() {
    byte mine[2]; byte a, prior, e, rounds, got, before; bool ok, t;
    a = NONE; prior = NONE;
    done == 4;
    assert(hand[0] == 0 && hand[1] == 0 && !squeezing);
    before = below(parent[0], live);
    malloc(0);
    assert(ok == (before + 1 <= LIMIT));
    squeeze(0); squeeze(1);
    /* no lost bytes: what is leased is what lives, and no more */
    assert(lease[0] == live[0] && lease[1] == live[1] && credit[0] == 0 && credit[1] == 0);
    assert(sum[0] == below(0, live) && sum[1] == below(1, live))
}

init {
    atomic {
        refused_at[0] = NONE; refused_at[1] = NONE; area[0] = 1; area[1] = 1;
        run worker(); run worker(); run squeezer(); run mover(); run last()
    }
}
