/* hakheap level 6: percpu_rseq - the restartable sequences, x86-64; included by percpu.h */
#ifndef HAK_PERCPU_RSEQ_H
#define HAK_PERCPU_RSEQ_H

#ifndef __has_feature
#define __has_feature(x) 0
#endif

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer) &&                  \
    !__has_feature(memory_sanitizer)
#define PERCPU_SECTIONS 1
#else
#define PERCPU_SECTIONS 0
#endif

enum { RSEQ_CPU_ID = 4, RSEQ_CS = 8, RSEQ_MM_CID = 24, RSEQ_BYTES = 32 };
#define RSEQ_SIGNATURE 0x53053053

#if PERCPU_SECTIONS

/*
 * Every section: a descriptor {version, flags, start, length, abort} in __rseq_cs; the abort
 * handler, preceded by the signature, which starts the section again. Then
 *   5  arm: store the descriptor's address in the thread's rseq area
 *   1  start: load the index, and or the upper half of cpu_id into it. Where the thread has no rseq, cpu_id is negative
 *      (mm_cid reads 0 then, a valid index of somebody else), and the lower 16 bits become 0xffff,
 *      which is no index: no kernel has 2^15 CPUs. Then one of three ways to a magazine:
 *        here    leave where the index is not below the heap's count; load the area of the index
 *        home    as here, and leave where the block's tag is not the magazine's: its home is another CPU
 *        outbox  as here, and from the area to its outbox; leave where there is none
 *   2  end; the store before it commits
 * What cannot succeed jumps out of the section, to the C label `miss`. The flags "aw?" and "ax?"
 * put both parts in the group of the function they are in, so that C++ inline functions link.
 */
/* clang-format off */
#define RSEQ_ARM                                                                                \
    ".pushsection __rseq_cs,\"aw?\"\n .balign 32\n"                                             \
    "3: .long 0,0\n .quad 1f,(2f-1f),4f\n .popsection\n"                                        \
    ".pushsection __rseq_abort,\"ax?\"\n .byte 0x0f,0xb9,0x3d\n .long 0x53053053\n"             \
    "4: jmp 5f\n .popsection\n"                                                                 \
    "5: movq percpu_rseq_offset(%%rip),%[area]\n leaq 3b(%%rip),%[result]\n movq %[result],%%fs:8(%[area])\n" \
    "1: movq percpu_index_offset(%%rip),%[result]\n movl %%fs:(%[result]),%k[result]\n orw %%fs:6(%[area]),%w[result]\n"
#define RSEQ_HERE   " cmpw %[count],%w[result]\n jae %l[miss]\n movq %c[table](%[heap],%[result],8),%[area]\n"
#define RSEQ_HOME   RSEQ_HERE " cmpw %w[tag],12(%[area],%[hot],8)\n jne %l[away]\n"
#define RSEQ_OUTBOX RSEQ_HERE " movq %c[outbox](%[area]),%[area]\n testq %[area],%[area]\n jz %l[miss]\n"
#define RSEQ_SECTION RSEQ_ARM RSEQ_HERE

#define RSEQ_INPUTS(p)                                                                                              \
    [count] "m"((p)->count), [table] "i"(PERCPU_AT + offsetof(percpu_t, table)), [heap] "r"((uintptr_t)(p) - PERCPU_AT)
/* clang-format on */

/* clang-format off */
/*
 * Where a section is left for `miss` a constant is returned. Without this, gcc (12.2, -O1 and -Og)
 * takes the register of the result for it: it forgets that on that edge the constant has yet to be
 * loaded.
 */
#define RSEQ_MISSED __asm__ volatile("")

/* Pop: load the word, load the newest block's link, store it back. NULL: a miss. AT: the word, from
 * [area] and [hot]; LINK: where the link is in a block. */
#define SECTION_POP(name, AT, LINK)                                                                                    \
    HAK_INLINE block_t *section_##name(percpu_t *percpu, size_t hot, chain_t *link)                              \
    {                                                                                                            \
        uint64_t result, next, area;                                                                             \
        __asm__ volatile goto(RSEQ_SECTION " movq " AT ",%[result]\n shrq $16,%[result]\n jz %l[miss]\n"          \
                                           " movq " LINK "(%[result]),%[next]\n movq %[next]," AT "\n2:\n"              \
                              : [result] "=&a"(result), [next] "=&c"(next), [area] "=&r"(area)                   \
                              : RSEQ_INPUTS(percpu), [hot] "r"(hot)                                              \
                              : "memory", "cc"                                                                   \
                              : miss);                                                                           \
        *link = next;                                                                                            \
        if (!result) __builtin_unreachable(); /* so that the caller's test for a miss is the jump above */       \
        return (block_t *)result;                                                                                \
    miss:                                                                                                        \
        RSEQ_MISSED;                                                                                             \
        return NULL;                                                                                             \
    }
/* clang-format on */

SECTION_POP(pop, "(%[area],%[hot],8)", "")
/* In CHECKED heaps. `hot` with SLOT_MARK, which the addressing takes off. */
SECTION_POP(pop_marked, "-8(%[area],%[hot],8)", "8")
#undef SECTION_POP

/*
 * Push: the old word into the block, the new word over it. The seal is written here, because it
 * depends on the word; the test for a double free is the caller's, before: a restart must not see
 * its own mark. `shifted` (chain_address) is the new word but for the count, which a restart writes
 * again; `unlinked` the seal but for the link, key ^ address.
 */
/* clang-format off */
#define RSEQ_PUSH_HEAD " movq (%[area],%[hot],8),%[result]\n cmpw 8(%[area],%[hot],8),%w[result]\n" \
                       " jae %l[miss]\n"
#define RSEQ_PUSH_LINK " movq %[result],(%[block])\n"
#define RSEQ_PUSH_COUNT " movw %w[result],%w[shifted]\n incq %[shifted]\n"
#define RSEQ_PUSH_SEAL  " movq %[result],8(%[block])\n xorq %[unlinked],%[result]\n movq %[result],(%[block])\n"
#define RSEQ_PUSH_TAIL  " movq %[shifted],(%[area],%[hot],8)\n2:\n"

/* Defines section_<name> and section_<name>_sealed; WHERE is one of the three ways, INPUT the
 * operand it takes. */
#define SECTION_PUSH(name, WHERE, INPUT)                                                                     \
    HAK_INLINE push_t section_##name(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted, uint16_t tag)                 \
    {                                                                                                        \
        uint64_t result, area;                            \
        __asm__ volatile goto(RSEQ_ARM WHERE RSEQ_PUSH_HEAD RSEQ_PUSH_LINK RSEQ_PUSH_COUNT RSEQ_PUSH_TAIL                                 \
                              : [result] "=&r"(result), [area] "=&r"(area), [shifted] "+&r"(shifted)         \
                              : RSEQ_INPUTS(percpu), [hot] "r"(hot), [block] "r"(ptr), INPUT                 \
                              : "memory", "cc"                                                               \
                              : miss, away);                                                                 \
        return (void)tag, PUSH_DONE;                                                                        \
    miss:                                                                                                    \
        return PUSH_MISSED;                                                                                  \
    away:                                                                                                    \
        return PUSH_AWAY;                                                                                    \
    }                                                                                                        \
    HAK_INLINE push_t section_##name##_sealed(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted, uint16_t tag,        \
                                              uint64_t unlinked)                                             \
    {                                                                                                        \
        uint64_t result, area;                     \
        __asm__ volatile goto(RSEQ_ARM WHERE RSEQ_PUSH_HEAD RSEQ_PUSH_COUNT RSEQ_PUSH_SEAL RSEQ_PUSH_TAIL                    \
                              : [result] "=&r"(result), [area] "=&r"(area), [shifted] "+&r"(shifted)                                                     \
                              : RSEQ_INPUTS(percpu), [hot] "r"(hot), [block] "r"(ptr),                       \
                                [unlinked] "r"(unlinked), INPUT                                              \
                              : "memory", "cc"                                                               \
                              : miss, away);                                                                 \
        return (void)tag, PUSH_DONE;                                                                        \
    miss:                                                                                                    \
        return PUSH_MISSED;                                                                                  \
    away:                                                                                                    \
        return PUSH_AWAY;                                                                                    \
    }
/* clang-format on */

/* The hot magazine, where the CPU is the block's home, or the block has none. */
SECTION_PUSH(push_home, RSEQ_HOME, [tag] "r"(tag))
SECTION_PUSH(push, RSEQ_HERE, [tag] "X"(tag)) /* the hot magazine of whichever CPU this is */
SECTION_PUSH(post,
             RSEQ_OUTBOX, [outbox] "i"(PERCPU_OUTBOX)) /* the outbox of whichever CPU this is */
#undef SECTION_PUSH

/* Take: the whole chain, leaving the magazine empty. */
HAK_INLINE chain_t section_take(percpu_t *percpu, size_t word)
{
    uint64_t result, area;
    __asm__ volatile goto(
        RSEQ_SECTION
        " movq (%[area],%[word],8),%[result]\n testq %[result],%[result]\n jz %l[miss]\n"
        " movq $0,(%[area],%[word],8)\n2:\n"
        : [result] "=&r"(result), [area] "=&r"(area)
        : RSEQ_INPUTS(percpu), [word] "r"(word)
        : "memory", "cc"
        : miss);
    return result;
miss:
    RSEQ_MISSED;
    return 0;
}

/* The same of the outbox. */
HAK_INLINE chain_t section_take_outbox(percpu_t *percpu, size_t hot)
{
    uint64_t result, area;
    __asm__ volatile goto(
        RSEQ_ARM RSEQ_OUTBOX
        " movq (%[area],%[hot],8),%[result]\n testq %[result],%[result]\n jz %l[miss]\n"
        " movq $0,(%[area],%[hot],8)\n2:\n"
        : [result] "=&r"(result), [area] "=&r"(area)
        : RSEQ_INPUTS(percpu), [hot] "r"(hot), [outbox] "i"(PERCPU_OUTBOX)
        : "memory", "cc"
        : miss);
    return result;
miss:
    RSEQ_MISSED;
    return 0;
}

/* Install: a chain into a magazine that is empty and runs (its class's hot limit is not 0). */
HAK_INLINE bool section_install(percpu_t *percpu, size_t hot, size_t word, chain_t chain)
{
    uint64_t result, area;
    __asm__ volatile goto(
        RSEQ_SECTION " cmpq $0,(%[area],%[word],8)\n jne %l[miss]\n"
                     " cmpl $0,8(%[area],%[hot],8)\n je %l[miss]\n"
                     " movq %[chain],(%[area],%[word],8)\n2:\n"
        : [result] "=&r"(result), [area] "=&r"(area)
        : RSEQ_INPUTS(percpu), [hot] "r"(hot), [word] "r"(word), [chain] "r"(chain)
        : "memory", "cc"
        : miss);
    return true;
miss:
    return false;
}

#else

#define SECTION_POP(name)                                                           \
    HAK_INLINE block_t *section_##name(percpu_t *percpu, size_t hot, chain_t *link) \
    {                                                                               \
        return (void)percpu, (void)hot, (void)link, NULL;                           \
    }

SECTION_POP(pop)
SECTION_POP(pop_marked)
#undef SECTION_POP

#define SECTION_PUSH(name)                                                                       \
    HAK_INLINE push_t section_##name(percpu_t *percpu, size_t hot, void *ptr, uint64_t shifted,  \
                                     uint16_t tag)                                               \
    {                                                                                            \
        return (void)percpu, (void)hot, (void)ptr, (void)shifted, (void)tag, PUSH_MISSED;        \
    }                                                                                            \
    HAK_INLINE push_t section_##name##_sealed(percpu_t *percpu, size_t hot, void *ptr,           \
                                              uint64_t shifted, uint16_t tag, uint64_t unlinked) \
    {                                                                                            \
        return (void)percpu, (void)hot, (void)ptr, (void)shifted, (void)tag, (void)unlinked,     \
               PUSH_MISSED;                                                                      \
    }

SECTION_PUSH(push_home)
SECTION_PUSH(push)
SECTION_PUSH(post)
#undef SECTION_PUSH

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
#endif
