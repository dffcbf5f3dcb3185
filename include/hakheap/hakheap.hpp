/**
 * @file hakheap.hpp
 * @brief Heaps for C++17: hak::heap owns one, hak::resource and hak::allocator allocate from one,
 * hak::scope makes one the calling thread's current heap.
 *
 * **Ownership.** Only hak::heap owns. What allocates holds a pointer to the heap, which must outlive
 * it and every block. Destroying the heap frees all blocks at once, in time that does not follow
 * their number; destructors of objects in it do not run. So a whole graph of objects may be left to
 * its heap, where their destructors would do no more than free.
 * **Threads.** Any thread may use any of these, except that hak::scope belongs to its thread.
 * **Errors.** What cannot be allocated throws std::bad_alloc; hak_last_error() says why. So the
 * header needs exceptions, and RTTI for the equality of resources.
 */
#ifndef HAKHEAP_HAKHEAP_HPP
#define HAKHEAP_HAKHEAP_HPP

#include <hakheap.h>

#include <cerrno>
#include <cstddef>
#include <limits>
#include <memory_resource>
#include <new>
#include <system_error>
#include <type_traits>
#include <utility>

/** Heaps for C++. */
namespace hak {

/** Every block of hak_heap_malloc() is aligned to this. */
inline constexpr std::size_t block_alignment = 16;

/** A config of defaults. @return #HAK_HEAP_CONFIG_INIT, to set fields of. */
inline hak_heap_config_t config() noexcept
{
    hak_heap_config_t defaults = HAK_HEAP_CONFIG_INIT;
    return defaults;
}

/**
 * Allocates from a heap.
 * @param heap the heap.
 * @param bytes how many; 0 gives a block, too.
 * @param alignment a power of two.
 * @return the block, for hak::deallocate() with the same size and alignment.
 * @throws std::bad_alloc where it is refused.
 */
[[nodiscard]] inline void *allocate(hak_heap_t *heap, std::size_t bytes, std::size_t alignment)
{
    void *block = alignment <= block_alignment ? hak_heap_malloc(heap, bytes)
                                               : hak_heap_aligned_alloc(heap, alignment, bytes);
    if (!block) throw std::bad_alloc();
    return block;
}

/** Frees a block of hak::allocate(). @param heap the heap. @param block the block, or nullptr.
 *  @param bytes as asked for. @param alignment as asked for. */
inline void deallocate(hak_heap_t *heap, void *block, std::size_t bytes,
                       std::size_t alignment) noexcept
{
    /* An aligned block is charged its size, at least 1, rounded up to the alignment. */
    if (alignment > block_alignment)
        bytes = ((bytes ? bytes : 1) + alignment - 1) & ~(alignment - 1);
    hak_heap_free_sized(heap, block, bytes);
}

/**
 * Owns a heap, and destroys it at its end. Moves, and is not copied. A heap below another one must
 * go before it: hak_heap_destroy() of the one above ends it, too.
 */
class heap {
  public:
    /** Creates a heap. @param config see hak_heap_config_t.
     *  @throws std::bad_alloc for lack of memory, else std::system_error with what
     *  hak_heap_create() says. */
    explicit heap(const hak_heap_config_t &config = hak::config()) : heap_(hak_heap_create(&config))
    {
        if (heap_) return;
        if (errno == ENOMEM) throw std::bad_alloc();
        throw std::system_error(errno, std::generic_category(), "hak_heap_create");
    }

    /** Takes a heap over. @param owned the heap, which this owns from here on; or nullptr. */
    explicit heap(hak_heap_t *owned) noexcept : heap_(owned) {}

    /** @param other gives its heap away, and has none afterwards. */
    heap(heap &&other) noexcept : heap_(other.release()) {}

    /** Destroys the heap that this has, and takes another. @param other gives its heap away.
     *  @return this. */
    heap &operator=(heap &&other) noexcept
    {
        heap(std::move(other)).swap(*this);
        return *this;
    }

    heap(const heap &) = delete;
    heap &operator=(const heap &) = delete;

    /** Destroys the heap, with every block in it and every heap below. */
    ~heap()
    {
        if (heap_) (void)hak_heap_destroy(heap_);
    }

    /** @param other the heap to exchange this one's with. */
    void swap(heap &other) noexcept { std::swap(heap_, other.heap_); }

    /** @return the heap, for calls of hakheap.h; still owned. nullptr: none. */
    [[nodiscard]] hak_heap_t *get() const noexcept { return heap_; }

    /** @return the heap, which belongs to the caller from here on; nullptr: none. */
    [[nodiscard]] hak_heap_t *release() noexcept { return std::exchange(heap_, nullptr); }

    /** @return whether this has a heap. */
    explicit operator bool() const noexcept { return heap_ != nullptr; }

  private:
    hak_heap_t *heap_;
};

/** Exchanges two heaps. @param a one. @param b the other. */
inline void swap(heap &a, heap &b) noexcept { a.swap(b); }

/**
 * A std::pmr::memory_resource on a heap. Resources of one heap are equal: what one has allocated,
 * another may free.
 */
class resource : public std::pmr::memory_resource {
  public:
    /** @param heap the heap; outlives the resource and its blocks. */
    explicit resource(hak_heap_t *heap) noexcept : heap_(heap) {}
    /** @param heap the heap, as above. */
    explicit resource(const heap &heap) noexcept : heap_(heap.get()) {}
    /** An owner that ends here would take the heap along. */
    explicit resource(heap &&) = delete;

    /** @return the heap. */
    [[nodiscard]] hak_heap_t *get() const noexcept { return heap_; }

  private:
    void *do_allocate(std::size_t bytes, std::size_t alignment) override
    {
        return hak::allocate(heap_, bytes, alignment);
    }

    void do_deallocate(void *block, std::size_t bytes, std::size_t alignment) override
    {
        hak::deallocate(heap_, block, bytes, alignment);
    }

    bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override
    {
        const resource *same = dynamic_cast<const resource *>(&other);
        return same && same->heap_ == heap_;
    }

    hak_heap_t *heap_;
};

/**
 * An allocator of the standard library on a heap. A container that is moved or swapped takes its
 * heap along, so that no element moves; one that is assigned to stays in the heap that it has.
 */
template <typename T> class allocator {
  public:
    /** What it allocates. */
    using value_type = T;
    /** A copy stays where it is. */
    using propagate_on_container_copy_assignment = std::false_type;
    /** What is moved stays in its heap. */
    using propagate_on_container_move_assignment = std::true_type;
    /** Likewise. */
    using propagate_on_container_swap = std::true_type;
    /** There are many heaps. */
    using is_always_equal = std::false_type;

    /** @param heap the heap; outlives the containers. */
    allocator(hak_heap_t *heap) noexcept : heap_(heap) {}
    /** @param heap the heap, as above. */
    allocator(const hak::heap &heap) noexcept : heap_(heap.get()) {}
    /** An owner that ends here would take the heap along. */
    allocator(hak::heap &&) = delete;
    /** @param other an allocator of another type, on the same heap. */
    template <typename U> allocator(const allocator<U> &other) noexcept : heap_(other.get()) {}

    /** @param count elements. @return room for them, not constructed.
     *  @throws std::bad_alloc; std::bad_array_new_length where no size can say it. */
    [[nodiscard]] T *allocate(std::size_t count)
    {
        if (count > std::numeric_limits<std::size_t>::max() / sizeof(T))
            throw std::bad_array_new_length();
        return static_cast<T *>(hak::allocate(heap_, count * sizeof(T), alignof(T)));
    }

    /** @param at what allocate() has returned. @param count as asked for. */
    void deallocate(T *at, std::size_t count) noexcept
    {
        hak::deallocate(heap_, at, count * sizeof(T), alignof(T));
    }

    /** @return the heap. */
    [[nodiscard]] hak_heap_t *get() const noexcept { return heap_; }

  private:
    hak_heap_t *heap_;
};

/** @param a one. @param b the other. @return whether one frees what the other allocates. */
template <typename T, typename U>
bool operator==(const allocator<T> &a, const allocator<U> &b) noexcept
{
    return a.get() == b.get();
}

/** @param a one. @param b the other. @return whether their heaps differ. */
template <typename T, typename U>
bool operator!=(const allocator<T> &a, const allocator<U> &b) noexcept
{
    return a.get() != b.get();
}

/**
 * Makes a heap the calling thread's current one until the end of the block, also where an exception
 * ends it: see hak_scope_enter(). Guards end in the reverse of the order they began in, in the
 * thread that made them; so none lives across a co_await that may resume elsewhere.
 */
class [[nodiscard]] scope {
  public:
    /** @param heap the heap; nullptr for the process's default. */
    explicit scope(hak_heap_t *heap) noexcept : outer_(hak_scope_enter(heap)) {}
    /** @param heap the heap. */
    explicit scope(const heap &heap) noexcept : outer_(hak_scope_enter(heap.get())) {}
    /** An owner that ends here would take the heap along. */
    explicit scope(heap &&) = delete;
    scope(const scope &) = delete;
    scope &operator=(const scope &) = delete;
    /** Leaves the scope. */
    ~scope() { hak_scope_leave(outer_); }

  private:
    hak_heap_t *outer_;
};

} // namespace hak

#endif
