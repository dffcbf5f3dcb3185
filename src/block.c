/* hakheap level 1: block - keys, and the end of a process whose blocks are broken */
#include "block.h"

_Noreturn HAK_COLD void block_corrupt(const guard_t *guard, const char *operation,
                                      const void *block, size_t bytes)
{
    hak_fatal(&(hak_fault_t){
        .code = "CORRUPT",
        .operation = operation,
        .ptr = block,
        .heap = guard->name,
        .class_bytes = bytes,
        .words = "a free block was written to (write after free, or overflow of its neighbour)"});
}

/* SplitMix64 (Steele, Lea, Flood, 2014). */
uint64_t block_key(uint64_t process_key, uint64_t serial)
{
    uint64_t z = process_key + serial * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (z ^ (z >> 31)) | 1;
}

static struct {
    uint64_t key;
    _Atomic uint64_t serial; /* relaxed: only its being different each time matters */
} process;

void block_start_process(uint64_t process_key) { process.key = process_key; }
uint64_t block_next_key(void) { return block_key(process.key, add_relaxed(&process.serial, 1u)); }
