/* hakheap level 6: percpu_rseq - the restartable sequences, x86-64; included by percpu.h */
#ifndef HAK_PERCPU_RSEQ_H
#define HAK_PERCPU_RSEQ_H

#ifndef __has_feature
#define __has_feature(x) 0
#endif

/* glibc: no other C library registers threads, and none else keeps the record of tls.h at one
 * distance from every thread's pointer where a plugin brings the library. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__) && !__has_feature(address_sanitizer) &&          \
    !__has_feature(thread_sanitizer) && !__has_feature(memory_sanitizer)
#define PERCPU_SECTIONS 1
#else
#define PERCPU_SECTIONS 0
#endif

/* Places in the thread's rseq area. */
enum { RSEQ_CPU_ID = 4, RSEQ_CS = 8, RSEQ_MM_CID = 24, RSEQ_BYTES = 32 };

#if PERCPU_SECTIONS

/*
 * What every section is made of. Its numeric labels:
 *
 *   1  its first instruction: from here on the kernel watches
 *   2  its end; the store before it commits
 *   3  its descriptor, which tells the kernel of 1, 2 and 4
 *   4  its abort handler: where a thread goes on that was preempted, migrated or signalled between
 *      1 and 2
 *
 * The abort handler goes to the C label `miss`. So a section that is aborted misses, and its caller
 * takes the slow path, which comes to an end without any section: nothing is tried again here, and
 * a thread that is stepped through one instruction at a time gets out.
 *
 * What cannot succeed leaves for `miss`, too, or for `away`.
 *
 * Flags of the assembler's sections: the "?" puts a part in the group of the function that it
 * belongs to, so that C++ inline functions link.
 */
/* clang-format off */
#define RSEQ_DESCRIPTOR                                                                            \
    ".pushsection __rseq_cs, \"aw?\"\n"                                                            \
    ".balign 32\n"                                                                                 \
    "3:\n"                                                                                         \
    ".long 0, 0\n"                  /* version, flags */                                           \
    ".quad 1f, 2f - 1f, 4f\n"       /* start, length, abort handler */                             \
    ".popsection\n"

#define RSEQ_ABORT                                                                                 \
    ".pushsection __rseq_abort, \"ax?\"\n"                                                         \
    "5:\n"                                                                                         \
    ".byte 0x0f, 0xb9, 0x3d\n"      /* ud1 and the signature as its operand: */                    \
    ".long 0x53053053\n"            /* the kernel goes to no handler without */                    \
    "4:\n"                                                                                         \
    "jmp %l[miss]\n"                                                                               \
    "6:\n"                                                                                         \
    ".popsection\n"

/*
 * How to unwind from an abort handler, where a profiler's signal finds the thread that it has
 * thrown out of a section. To the unwinder the handler is a frame of its own, of no bytes and with
 * all registers as they are, that returns to where its jump goes: the instruction's five bytes are
 * e9 and the distance from its end. Written by hand, because clang's assembler takes no .cfi lines
 * here. The linker makes one of all the common parts. (DWARF 5, section 6.4; the flag S, of
 * signal frames, has the unwinder look up the place itself, and not that of a call before it.)
 */
#define RSEQ_UNWIND                                                                                \
    ".pushsection .eh_frame, \"a\", @progbits\n"                                                   \
    "7:\n"                          /* the common part */                                          \
    ".long 9f - 8f\n"                                                                              \
    "8:\n"                                                                                         \
    ".long 0\n"                                                                                    \
    ".byte 1\n"                     /* version */                                                  \
    ".asciz \"zRS\"\n"                                                                             \
    ".byte 1, 0x78, 16\n"           /* units of code and data (-8); the return address is rip */   \
    ".byte 1, 0x1b\n"               /* R: addresses are 4 bytes, from where they stand */          \
    ".byte 0x0c, 7, 0\n"            /* the frame begins at rsp + 0 */                              \
    ".byte 8, 0, 8, 1, 8, 2, 8, 3, 8, 4, 8, 5, 8, 6\n" /* rax to rbp are as they are, */           \
    ".byte 8, 8, 8, 9, 8, 10, 8, 11, 8, 12, 8, 13, 8, 14, 8, 15\n"      /* r8 to r15, too */       \
    ".byte 0x16, 16, 13\n"          /* the return address is what 13 bytes compute: */             \
    ".byte 0x80, 1, 0x94, 4\n"      /* the 4 bytes at rip + 1, */                                  \
    ".byte 8, 32, 0x24, 8, 32, 0x26\n" /* with their sign (left and right by 32), */               \
    ".byte 0x80, 5, 0x22\n"         /* and rip + 5 */                                              \
    ".balign 8\n"                                                                                  \
    "9:\n"                                                                                         \
    ".long 11f - 10f\n"             /* this handler's part */                                      \
    "10:\n"                                                                                        \
    ".long 10b - 7b\n"              /* to the common part */                                       \
    ".long 5b - .\n"                /* start */                                                    \
    ".long 6b - 5b\n"               /* length */                                                   \
    ".byte 0\n"                                                                                    \
    ".balign 8\n"                                                                                  \
    "11:\n"                                                                                        \
    ".popsection\n"

/*
 * Arms, and loads the index. In locked mode percpu_rseq_offset leads to a record that the kernel
 * does not know, so nothing is armed, and the count is 0.
 *
 * The upper half of cpu_id is or-ed into the index. Where the thread has no rseq, cpu_id is
 * negative (mm_cid reads 0 then, a valid index of another thread), and the lower 16 bits become
 * 0xffff, which is no index: no kernel has 2^15 CPUs. Else that half is 0.
 */
#define RSEQ_BEGIN                                                                                 \
    RSEQ_DESCRIPTOR RSEQ_ABORT RSEQ_UNWIND                                                         \
    "movq percpu_rseq_offset(%%rip), %[area]\n"     /* the thread's rseq area */                   \
    "leaq 3b(%%rip), %[result]\n"                                                                  \
    "movq %[result], %%fs:%c[rseq_cs](%[area])\n"   /* armed */                                    \
    "1:\n"                                                                                         \
    "movq percpu_index_offset(%%rip), %[result]\n"  /* mm_cid or cpu_id */                         \
    "movl %%fs:(%[result]), %k[result]\n"           /* result = index */                           \
    "orw %%fs:%c[rseq_cpu] + 2(%[area]), %w[result]\n"

/* The area of this CPU. */
#define RSEQ_HERE                                                                                  \
    RSEQ_BEGIN                                                                                     \
    "cmpw %[count], %w[result]\n"                                                                  \
    "jae %l[miss]\n"                                /* no slot: no rseq, no area, or locked */     \
    "movq %c[table](%[base],%[result],8), %[area]\n"

/* The same, where it is the block's home: its magazine has the block's tag. */
#define RSEQ_HOME                                                                                  \
    RSEQ_HERE                                                                                      \
    "cmpw %w[tag], %c[tag_at](%[area],%[hot],8)\n"                                                 \
    "jne %l[away]\n"

/* The outbox of this CPU's area. */
#define RSEQ_OUTBOX                                                                                \
    RSEQ_HERE                                                                                      \
    "movq %c[outbox](%[area]), %[area]\n"                                                          \
    "testq %[area], %[area]\n"                                                                     \
    "jz %l[miss]\n"                                 /* there is none */

#define RSEQ_END "2:\n"
/* clang-format on */

/* The table is addressed from `base`, so many bytes before the percpu_t. */
#define RSEQ_INPUTS(percpu, before)                                                         \
    [count] "m"((percpu)->count), [table] "i"((before) + offsetof(percpu_t, table)),        \
        [base] "r"((uintptr_t)(percpu) - (before)), [outbox] "i"(offsetof(area_t, outbox)), \
        [limit_at] "i"(offsetof(magazine_t, limit)), [rseq_cpu] "i"(RSEQ_CPU_ID),           \
        [tag_at] "i"(offsetof(magazine_t, tag)), [rseq_cs] "i"(RSEQ_CS)

/*
 * Where a section is left for `miss` a constant is returned. Without this, gcc (12.2, -O1 and -Og)
 * takes the register of the result for it: it forgets that on that edge the constant has yet to be
 * loaded.
 */
#define RSEQ_MISSED __asm__ volatile("")

/* ---- Pop ---- */

/* Defines a function. BEFORE: see RSEQ_INPUTS; AT: the magazine's word, from [area] and [hot];
 * LINK: where the link is in a block. NULL: a miss. */
/* clang-format off */
#define SECTION_POP(name, BEFORE, AT, LINK)                                                        \
    HAK_INLINE block_t *name(percpu_t *percpu, size_t hot, chain_t *link)                          \
    {                                                                                              \
        uint64_t result, next, area;                                                               \
        __asm__ volatile goto(                                                                     \
            RSEQ_HERE                                                                              \
            "movq " AT ", %[result]\n"                                                             \
            "shrq $16, %[result]\n"                         /* result = the newest block */        \
            "jz %l[miss]\n"                                 /* empty */                            \
            "movq " LINK "(%[result]), %[next]\n"           /* the word beneath it */              \
            "movq %[next], " AT "\n"                        /* commits */                          \
            RSEQ_END                                                                               \
            : [result] "=&a"(result), [next] "=&c"(next), [area] "=&r"(area)                       \
            : RSEQ_INPUTS(percpu, BEFORE), [hot] "r"(hot)                                          \
            : "memory", "cc"                                                                       \
            : miss);                                                                               \
        *link = next;                                                                              \
        if (!result) __builtin_unreachable(); /* the caller's test for a miss is the jump above */ \
        return (block_t *)result;                                                                  \
    miss:                                                                                          \
        RSEQ_MISSED;                                                                               \
        return NULL;                                                                               \
    }
/* clang-format on */

/* ---- Push ---- */

/*
 * The old word into the block, the new word over it. `shifted` (chain_address) is the new word but
 * for the count.
 *
 * The seal of a CHECKED heap's block is written here, because it depends on the word. The test for
 * a double free is the caller's, before. A push that misses may have written into the block
 * already, so that the caller takes the seal off. `unlinked` is the seal but for the link, key ^
 * address.
 */
/* clang-format off */
#define RSEQ_PUSH_LOAD                                                                             \
    "movq (%[area],%[hot],8), %[result]\n"                  /* result = the old word */            \
    "cmpw %c[limit_at](%[area],%[hot],8), %w[result]\n"                                            \
    "jae %l[miss]\n"                                        /* as many blocks as it may hold */
#define RSEQ_PUSH_COUNT                                                                            \
    "movw %w[result], %w[shifted]\n"                        /* the old word's count, */            \
    "incq %[shifted]\n"                                     /* and one */
#define RSEQ_PUSH_STORE                                                                            \
    "movq %[shifted], (%[area],%[hot],8)\n"                 /* commits */                          \
    RSEQ_END

#define RSEQ_PUSH                                                                                  \
    RSEQ_PUSH_LOAD                                                                                 \
    "movq %[result], (%[block])\n"                          /* the link */                         \
    RSEQ_PUSH_COUNT RSEQ_PUSH_STORE

#define RSEQ_PUSH_SEALED                                                                           \
    RSEQ_PUSH_LOAD RSEQ_PUSH_COUNT                                                                 \
    "movq %[result], 8(%[block])\n"                         /* the link */                         \
    "xorq %[unlinked], %[result]\n"                                                                \
    "movq %[result], (%[block])\n"                          /* the seal */                         \
    RSEQ_PUSH_STORE

/* Is a function's body. BEFORE: see RSEQ_INPUTS; WHERE: the way to the magazine; WRITE: what is
 * done there; then what both read besides. */
#define SECTION_PUSH(BEFORE, WHERE, WRITE, ...)                                                    \
    uint64_t result, area;                                                                         \
    __asm__ volatile goto(                                                                         \
        WHERE WRITE                                                                                \
        : [result] "=&r"(result), [area] "=&r"(area), [shifted] "+&r"(shifted)                     \
        : RSEQ_INPUTS(percpu, BEFORE), [hot] "r"(hot), [block] "r"(ptr), ##__VA_ARGS__             \
        : "memory", "cc"                                                                           \
        : miss, away);                                                                             \
    return PUSH_DONE;                                                                              \
miss:                                                                                              \
    return PUSH_MISSED;                                                                            \
away:                                                                                              \
    return PUSH_AWAY
/* clang-format on */

/*
 * The sections of every call, for a percpu_t so many bytes behind an address that their callers
 * have in a register:
 *
 *   <prefix>_pop         of FAST heaps
 *   <prefix>_pop_marked  of CHECKED heaps; `hot` with SLOT_MARK, which the addressing takes off
 *   <prefix>_push_home   on the hot magazine, where the CPU is the block's home, or it has none
 *   <prefix>_push_home_sealed  the same in CHECKED heaps
 */
#define PERCPU_CALLS(prefix, before)                                                               \
    SECTION_POP(prefix##_pop, before, "(%[area],%[hot],8)", "")                                    \
    SECTION_POP(prefix##_pop_marked, before, "-8(%[area],%[hot],8)", "8")                          \
    HAK_INLINE push_t prefix##_push_home(percpu_t *percpu, size_t hot, void *ptr,                  \
                                         uint64_t shifted, uint16_t tag)                           \
    {                                                                                              \
        SECTION_PUSH(before, RSEQ_HOME, RSEQ_PUSH, [tag] "r"(tag));                                \
    }                                                                                              \
    HAK_INLINE push_t prefix##_push_home_sealed(percpu_t *percpu, size_t hot, void *ptr,           \
                                                uint64_t shifted, uint16_t tag, uint64_t unlinked) \
    {                                                                                              \
        SECTION_PUSH(before, RSEQ_HOME,                                                            \
                     RSEQ_PUSH_SEALED, [unlinked] "r"(unlinked), [tag] "r"(tag));                  \
    }

/* The hot magazine of whichever CPU this is. */
HAK_INLINE push_t section_push(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted,
                               uint16_t tag)
{
    (void)tag;
    SECTION_PUSH(0, RSEQ_HERE, RSEQ_PUSH);
}
HAK_INLINE push_t section_push_sealed(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted,
                                      uint16_t tag, uint64_t unlinked)
{
    (void)tag;
    SECTION_PUSH(0, RSEQ_HERE, RSEQ_PUSH_SEALED, [unlinked] "r"(unlinked));
}

/* The outbox of whichever CPU this is. */
HAK_INLINE push_t section_post(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted,
                               uint16_t tag)
{
    (void)tag;
    SECTION_PUSH(0, RSEQ_OUTBOX, RSEQ_PUSH);
}
HAK_INLINE push_t section_post_sealed(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted,
                                      uint16_t tag, uint64_t unlinked)
{
    (void)tag;
    SECTION_PUSH(0, RSEQ_OUTBOX, RSEQ_PUSH_SEALED, [unlinked] "r"(unlinked));
}

/* ---- Take and install ---- */

/* clang-format off */
/* The whole chain, leaving the magazine empty; 0: a miss. */
#define SECTION_TAKE(WHERE)                                                                        \
    uint64_t result, area;                                                                         \
    __asm__ volatile goto(                                                                         \
        WHERE                                                                                      \
        "movq (%[area],%[word],8), %[result]\n"             /* result = the chain */               \
        "testq %[result], %[result]\n"                                                             \
        "jz %l[miss]\n"                                     /* empty */                            \
        "movq $0, (%[area],%[word],8)\n"                    /* commits */                          \
        RSEQ_END                                                                                   \
        : [result] "=&r"(result), [area] "=&r"(area)                                               \
        : RSEQ_INPUTS(percpu, 0), [word] "r"(word)                                                 \
        : "memory", "cc"                                                                           \
        : miss);                                                                                   \
    return result;                                                                                 \
miss:                                                                                              \
    RSEQ_MISSED;                                                                                   \
    return 0
/* clang-format on */

HAK_INLINE chain_t section_take(percpu_t *percpu, size_t word) { SECTION_TAKE(RSEQ_HERE); }
/* The same of the outbox. */
HAK_INLINE chain_t section_take_outbox(percpu_t *percpu, size_t word) { SECTION_TAKE(RSEQ_OUTBOX); }
#undef SECTION_TAKE

/* A chain into a magazine that is empty, and whose class's hot limit, which is 0 in a stopped area,
 * it does not exceed. */
HAK_INLINE bool section_install(percpu_t *percpu, size_t hot, size_t word, chain_t chain)
{
    uint64_t result, area;
    /* clang-format off */
    __asm__ volatile goto(
        RSEQ_HERE
        "cmpq $0, (%[area],%[word],8)\n"
        "jne %l[miss]\n"                                    /* not empty */
        "cmpw %w[chain], %c[limit_at](%[area],%[hot],8)\n"
        "jb %l[miss]\n"                                     /* more blocks than it may hold */
        "movq %[chain], (%[area],%[word],8)\n"              /* commits */
        RSEQ_END
        : [result] "=&r"(result), [area] "=&r"(area)
        : RSEQ_INPUTS(percpu, 0), [hot] "r"(hot), [word] "r"(word), [chain] "r"(chain)
        : "memory", "cc"
        : miss);
    /* clang-format on */
    return true;
miss:
    return false;
}

#else

/* No sections: every operation misses. */
#define SECTION_POP(name)                                                 \
    HAK_INLINE block_t *name(percpu_t *percpu, size_t hot, chain_t *link) \
    {                                                                     \
        return (void)percpu, (void)hot, (void)link, NULL;                 \
    }
#define SECTION_PUSH(name)                                                                     \
    HAK_INLINE push_t name(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted,          \
                           uint16_t tag)                                                       \
    {                                                                                          \
        return (void)percpu, (void)hot, (void)ptr, (void)shifted, (void)tag, PUSH_MISSED;      \
    }                                                                                          \
    HAK_INLINE push_t name##_sealed(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted, \
                                    uint16_t tag, uint64_t unlinked)                           \
    {                                                                                          \
        return (void)unlinked, name(percpu, hot, ptr, shifted, tag);                           \
    }
#define PERCPU_CALLS(prefix, before) \
    SECTION_POP(prefix##_pop)        \
    SECTION_POP(prefix##_pop_marked) \
    SECTION_PUSH(prefix##_push_home)

SECTION_PUSH(section_push)
SECTION_PUSH(section_post)

HAK_INLINE chain_t section_take_outbox(percpu_t *percpu, size_t hot)
{
    (void)percpu, (void)hot;
    return 0;
}

HAK_INLINE chain_t section_take(percpu_t *percpu, size_t word)
{
    (void)percpu, (void)word;
    return 0;
}

HAK_INLINE bool section_install(percpu_t *percpu, size_t hot, size_t word, chain_t chain)
{
    (void)percpu, (void)hot, (void)word, (void)chain;
    return false;
}

#endif

PERCPU_CALLS(section, 0)

#endif
