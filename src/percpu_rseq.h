/* hakheap level 6: percpu_rseq - the restartable sequences themselves, x86-64; included by percpu.h */
#ifndef HAK_PERCPU_RSEQ_H
#define HAK_PERCPU_RSEQ_H

#ifndef __has_feature
#define __has_feature(x) 0
#endif

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer) && !__has_feature(memory_sanitizer)
#define PERCPU_SECTIONS 1
#else
#define PERCPU_SECTIONS 0
#endif

enum { RSEQ_CPU_ID = 4, RSEQ_CS = 8, RSEQ_MM_CID = 24, RSEQ_BYTES = 32 };
#define RSEQ_SIGNATURE 0x53053053

#if PERCPU_SECTIONS

/*
 * Every section: a descriptor {version, flags, start, length, abort} in __rseq_cs; the abort handler, preceded by the
 * signature, which starts the section again; label 6, where what cannot succeed leaves with the zero flag set. Then
 *   5  arm: store the descriptor's address in the thread's rseq area
 *   1  start: leave where the thread has no rseq (cpu_id < 0: mm_cid reads 0 then, a valid index of somebody else) or
 *      its index is not below the heap's count; load the area of the index, from the table of now
 *   2  end; the store before it commits
 * The flags "aw?" and "ax?" put both in the group of the function they are in, so that C++ inline functions link.
 */
#define RSEQ_SECTION                                                                            \
    ".pushsection __rseq_cs,\"aw?\"\n .balign 32\n"                                             \
    "3: .long 0,0\n .quad 1f,(2f-1f),4f\n .popsection\n"                                        \
    ".pushsection __rseq_abort,\"ax?\"\n .byte 0x0f,0xb9,0x3d\n .long 0x53053053\n"             \
    "4: jmp 5f\n"                                                                               \
    "6: xorl %k[result],%k[result]\n jmp 2f\n .popsection\n"                                    \
    "5: leaq 3b(%%rip),%[area]\n movq %[area],%%fs:8(%[rseq])\n"                                \
    "1: cmpl $0,%%fs:4(%[rseq])\n js 6b\n"                                                      \
    " movl %%fs:(%[index]),%k[result]\n"                                                        \
    " cmpl %[count],%k[result]\n jae 6b\n"                                                      \
    " movq %[table],%[area]\n movq (%[area],%[result],8),%[area]\n"

#define RSEQ_INPUTS(p)                                                                          \
    [rseq] "r"(percpu_site.rseq), [index] "r"(percpu_site.index), [count] "m"((p)->count), [table] "m"((p)->table)

/* Pop: load the word, load the newest block's link, store it back. */
HAK_INLINE bool section_pop(percpu_t *percpu, size_t hot, block_t **block, chain_t *link)
{
    uint64_t result, next, area;
    bool ok;
    __asm__ volatile(RSEQ_SECTION " movq (%[area],%[hot]),%[result]\n shrq $16,%[result]\n jz 2f\n"
                                  " movq (%[result]),%[next]\n movq %[next],(%[area],%[hot])\n"
                                  "2:\n"
                     : "=@ccnz"(ok), [result] "=&r"(result), [next] "=&r"(next), [area] "=&r"(area)
                     : RSEQ_INPUTS(percpu), [hot] "r"(hot)
                     : "memory");
    *block = (block_t *)result;
    *link = next;
    return ok;
}

/* Push: the old word into the block, the new word over it. The seal is written here, because it depends on the word; the
 * test for a double free is the caller's, before: a restart must not see its own mark. */
#define RSEQ_PUSH_HEAD " movq (%[area],%[hot]),%[result]\n cmpw 8(%[area],%[hot]),%w[result]\n jae 6b\n" \
                       " movq %[result],(%[block])\n"
#define RSEQ_PUSH_SEAL " movq %[result],%[seal]\n xorq %[unlinked],%[seal]\n movq %[seal],8(%[block])\n"
#define RSEQ_PUSH_TAIL " incl %k[result]\n movzwl %w[result],%k[result]\n orq %[shifted],%[result]\n" \
                       " movq %[result],(%[area],%[hot])\n2:\n"

HAK_INLINE bool section_push(percpu_t *percpu, size_t hot, void *ptr)
{
    uint64_t result, area;
    bool ok;
    __asm__ volatile(RSEQ_SECTION RSEQ_PUSH_HEAD RSEQ_PUSH_TAIL
                     : "=@ccnz"(ok), [result] "=&r"(result), [area] "=&r"(area)
                     : RSEQ_INPUTS(percpu), [hot] "r"(hot), [block] "r"(ptr),
                       [shifted] "r"((uint64_t)(uintptr_t)ptr << CHAIN_SHIFT)
                     : "memory");
    return ok;
}

HAK_INLINE bool section_push_sealed(percpu_t *percpu, size_t hot, void *ptr, uint64_t key)
{
    uint64_t result, area, seal;
    bool ok;
    __asm__ volatile(RSEQ_SECTION RSEQ_PUSH_HEAD RSEQ_PUSH_SEAL RSEQ_PUSH_TAIL
                     : "=@ccnz"(ok), [result] "=&r"(result), [area] "=&r"(area), [seal] "=&r"(seal)
                     : RSEQ_INPUTS(percpu), [hot] "r"(hot), [block] "r"(ptr),
                       [shifted] "r"((uint64_t)(uintptr_t)ptr << CHAIN_SHIFT),
                       [unlinked] "r"(key ^ (uint64_t)(uintptr_t)ptr)
                     : "memory");
    return ok;
}

/* Take: the whole chain, leaving the magazine empty. */
HAK_INLINE chain_t section_take(percpu_t *percpu, size_t word)
{
    uint64_t result, area;
    __asm__ volatile(RSEQ_SECTION " movq (%[area],%[word]),%[result]\n testq %[result],%[result]\n jz 2f\n"
                                  " movq $0,(%[area],%[word])\n2:\n"
                     : [result] "=&r"(result), [area] "=&r"(area)
                     : RSEQ_INPUTS(percpu), [word] "r"(word)
                     : "memory", "cc");
    return result;
}

/* Install: a chain into a magazine that is empty and runs (its class's hot limit is not 0). */
HAK_INLINE bool section_install(percpu_t *percpu, size_t hot, size_t word, chain_t chain)
{
    uint64_t result, area;
    __asm__ volatile(RSEQ_SECTION " xorl %k[result],%k[result]\n cmpq $0,(%[area],%[word])\n jne 2f\n"
                                  " cmpq $0,8(%[area],%[hot])\n je 2f\n"
                                  " incl %k[result]\n movq %[chain],(%[area],%[word])\n2:\n"
                     : [result] "=&r"(result), [area] "=&r"(area)
                     : RSEQ_INPUTS(percpu), [hot] "r"(hot), [word] "r"(word), [chain] "r"(chain)
                     : "memory", "cc");
    return result != 0;
}

#else

HAK_INLINE bool section_pop(percpu_t *percpu, size_t hot, block_t **block, chain_t *link)
{
    (void)percpu, (void)hot, (void)block, (void)link;
    return false;
}

HAK_INLINE bool section_push(percpu_t *percpu, size_t hot, void *ptr)
{
    (void)percpu, (void)hot, (void)ptr;
    return false;
}

HAK_INLINE bool section_push_sealed(percpu_t *percpu, size_t hot, void *ptr, uint64_t key)
{
    (void)percpu, (void)hot, (void)ptr, (void)key;
    return false;
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
