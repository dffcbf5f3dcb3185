/* include/hakheap/hakheap.hpp: who owns, what containers take from where, what is thrown. */
#include <hakheap/hakheap.hpp>

#include "adapter.h"

#include <list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <vector>

TestSuite(hakheap_hpp, .timeout = 120);

static_assert(std::is_nothrow_move_constructible_v<hak::heap>);
static_assert(std::is_nothrow_move_assignable_v<hak::heap>);
static_assert(!std::is_copy_constructible_v<hak::heap> && !std::is_copy_assignable_v<hak::heap>);
static_assert(!std::is_copy_constructible_v<hak::scope>);
static_assert(!std::allocator_traits<hak::allocator<int>>::is_always_equal::value);
/* A heap that ends with the expression would leave what allocates without one. */
static_assert(!std::is_constructible_v<hak::resource, hak::heap>);
static_assert(!std::is_constructible_v<hak::allocator<int>, hak::heap>);
static_assert(!std::is_constructible_v<hak::scope, hak::heap>);
static_assert(std::is_constructible_v<hak::allocator<int>, const hak::heap &>);
using ints_t = std::vector<int, hak::allocator<int>>;
static_assert(std::is_nothrow_move_assignable_v<ints_t>);
static_assert(std::is_nothrow_swappable_v<ints_t>);

static hak::heap make(int level, size_t limit = HAK_NO_LIMIT)
{
    hak_heap_config_t config = hak::config();
    config.level = level ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
    config.live_limit = limit;
    return hak::heap(config);
}

/* ---- The owner ---- */

Test(hakheap_hpp, an_owner_destroys_its_heap_once)
{
    hak_heap_t *raw;
    {
        hak::heap a = make(1);
        raw = a.get();
        cr_assert(a && raw);
        hak::heap b = std::move(a);
        cr_assert(!a && b.get() == raw);
        hak::heap c = make(0);
        hak_heap_t *second = c.get();
        swap(b, c);
        cr_assert(b.get() == second && c.get() == raw);
        b = std::move(c);
        cr_assert(!c && b.get() == raw && hak_heap_trim(second, 0) == 0);
        cr_assert(hak_heap_close(second) == EINVAL);
        hak::heap &same = b;
        b = std::move(same);
        cr_assert(b.get() == raw);
    }
    cr_assert(hak_heap_close(raw) == EINVAL);
}

Test(hakheap_hpp, an_owner_gives_and_takes_heaps)
{
    hak_heap_t *raw = make(0).release();
    cr_assert(raw && hak_heap_check(raw) == 0);
    {
        hak::heap owner(raw), none(nullptr);
        cr_assert(owner.get() == raw && !none);
    }
    cr_assert(hak_heap_close(raw) == EINVAL);
}

/* An owner that has none: what asks it gets an exception, and an end is none. */
Test(hakheap_hpp, what_is_moved_from_gives_nothing)
{
    hak::heap a = make(1), b = std::move(a);
    hak::resource of_none(a);
    hak::allocator<int> ints(a);
    int thrown = 0;
    try {
        (void)of_none.allocate(1, 4096);
    } catch (const std::bad_alloc &) {
        thrown += hak_last_error() == HAK_ERROR_ARGUMENT;
    }
    try {
        (void)ints.allocate(1);
    } catch (const std::bad_alloc &) {
        thrown += hak_last_error() == HAK_ERROR_ARGUMENT;
    }
    cr_assert(thrown == 2 && ints != hak::allocator<int>(b));
    a = std::move(b);
    cr_assert(a && !b);
    adapter_require_empty(a.get());
}

Test(hakheap_hpp, what_create_refuses_is_thrown)
{
    hak_heap_config_t config = hak::config();
    config.level = HAK_LEVEL_HARDENED;
    int code = 0;
    try {
        hak::heap heap(config);
    } catch (const std::system_error &error) {
        code = error.code().value();
    }
    cr_assert(code == ENOTSUP);
}

/* ---- The memory resource ---- */

/* Elements of all sizes, in containers that grow, shrink and rehash. */
static void fill(std::pmr::memory_resource *from, size_t count)
{
    std::pmr::unordered_map<int, std::pmr::string> by_number(from);
    std::pmr::map<std::pmr::string, std::pmr::vector<int>> by_name(from);
    std::pmr::list<double> numbers(from);
    for (size_t i = 0; i < count; i++) {
        std::pmr::string name(i % 3000, 'x', from);
        name += std::to_string(i);
        by_number.emplace(static_cast<int>(i), name);
        by_name[name].resize(i % 500);
        numbers.push_back(static_cast<double>(i));
        if (i % 7 == 0) by_number.erase(static_cast<int>(i / 2));
    }
    cr_assert(by_name.size() == count && numbers.size() == count);
    cr_assert(by_number.at(static_cast<int>(count - 1)).size() > (count - 1) % 3000);
    cr_assert(by_number.get_allocator().resource() == from);
}

Test(hakheap_hpp, containers_of_a_resource_lie_in_its_heap_and_leave_nothing)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak::heap heap = make(level);
        hak::resource resource(heap);
        fill(&resource, contract_work(4000));
        std::pmr::vector<int> ints(1000, 7, &resource);
        cr_assert(hak_heap_of(ints.data()) == heap.get());
        ints = std::pmr::vector<int>(&resource);
        adapter_require_empty(heap.get());
    }
}

Test(hakheap_hpp, a_resource_honours_every_size_and_alignment)
{
    static const size_t sizes[] = {0, 1, 15, 16, 17, 100, 1000, 5000, 40000, 300000, 3000000};
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak::heap heap = make(level);
        hak::resource resource(heap);
        for (size_t alignment = 1; alignment <= 65536; alignment *= 2)
            for (size_t size : sizes) {
                void *block = resource.allocate(size, alignment);
                cr_assert(reinterpret_cast<uintptr_t>(block) % alignment == 0);
                cr_assert(hak_heap_of(block) == heap.get() && hak_usable_size(block) >= size);
                memset(block, 0xa5, size);
                resource.deallocate(block, size, alignment);
            }
        adapter_require_empty(heap.get());
    }
}

Test(hakheap_hpp, a_resource_throws_where_memory_is_refused)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak::heap heap = make(level, 1 << 20);
        hak::resource resource(heap);
        bool thrown = false;
        try {
            fill(&resource, 100000);
        } catch (const std::bad_alloc &) {
            thrown = true;
        }
        cr_assert(thrown && hak_last_error() == HAK_ERROR_LIMIT);
        adapter_require_empty(heap.get());
        fill(&resource, 50);
        try {
            thrown = false;
            (void)resource.allocate(2 << 20, 4096);
        } catch (const std::bad_alloc &) {
            thrown = true;
        }
        cr_assert(thrown);
        adapter_require_empty(heap.get());
    }
}

Test(hakheap_hpp, resources_are_equal_by_their_heap)
{
    hak::heap a = make(0), b = make(0);
    hak::resource of_a(a), also_of_a(a.get()), of_b(b);
    cr_assert(of_a == also_of_a && of_a != of_b && of_a.get() == a.get());
    cr_assert(of_a != *std::pmr::new_delete_resource());
    std::pmr::vector<int> from(1000, 7, &of_a), to(&also_of_a);
    int *data = from.data();
    to = std::move(from);
    cr_assert(to.data() == data);
    std::pmr::vector<int> elsewhere(&of_b);
    elsewhere = std::move(to);
    cr_assert(elsewhere.data() != data && hak_heap_of(elsewhere.data()) == b.get());
}

/* ---- A heap in place of destructors ---- */

struct node {
    std::pmr::vector<int> values;
    std::pmr::map<int, node *> children;
    explicit node(std::pmr::memory_resource *from) : values(100, 1, from), children(from) {}
};

Test(hakheap_hpp, a_heap_goes_in_place_of_what_lies_in_it)
{
    size_t before = 0;
    for (size_t i = 0; i < contract_work(100); i++) {
        hak::heap heap = make(static_cast<int>(i % 2));
        hak::resource resource(heap);
        std::pmr::polymorphic_allocator<node> allocator(&resource);
        node *root = new (allocator.allocate(1)) node(&resource);
        for (int child = 0; child < 50; child++)
            root->children[child] = new (allocator.allocate(1)) node(&resource);
        cr_assert(contract_stats(heap.get()).live_blocks >= 51 * 2 + 50);
        if (i == 10) before = adapter_malloc_bytes();
    }
    cr_assert(adapter_malloc_bytes() <= before + 65536);
}

/* ---- The allocator ---- */

Test(hakheap_hpp, containers_of_an_allocator_lie_in_its_heap_and_leave_nothing)
{
    using pair_t = std::pair<const int, int>;
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak::heap heap = make(level);
        {
            hak::allocator<int> from(heap);
            ints_t ints(from);
            std::map<int, int, std::less<int>, hak::allocator<pair_t>> map(from);
            std::unordered_map<int, int, std::hash<int>, std::equal_to<int>, hak::allocator<pair_t>>
                hashed(from);
            std::basic_string<char, std::char_traits<char>, hak::allocator<char>> text(from);
            for (int i = 0; i < 10000; i++) {
                ints.push_back(i);
                map[i] = hashed[i] = i;
                text += 'x';
            }
            cr_assert(hak_heap_of(ints.data()) == heap.get() && ints[9999] == 9999);
            cr_assert(hak_heap_of(text.data()) == heap.get() && hashed[777] == map[777]);
            auto shared = std::allocate_shared<ints_t>(hak::allocator<ints_t>(heap), ints, from);
            cr_assert(hak_heap_of(shared.get()) == heap.get() && shared->size() == 10000);
        }
        adapter_require_empty(heap.get());
    }
}

Test(hakheap_hpp, moves_and_swaps_take_the_heap_along_and_copies_do_not)
{
    hak::heap a = make(0), b = make(1);
    {
        ints_t x(1000, 1, a), y(2000, 2, b);
        int *of_x = x.data(), *of_y = y.data();
        swap(x, y);
        cr_assert(x.data() == of_y && y.data() == of_x && x.get_allocator().get() == b.get());
        y = x;
        cr_assert(hak_heap_of(y.data()) == a.get() && y.size() == 2000 && y[1999] == 2);
        y = std::move(x);
        cr_assert(y.data() == of_y && y.get_allocator().get() == b.get());
        ints_t copy(y), moved(std::move(y));
        cr_assert(copy.get_allocator().get() == b.get() && moved.data() == of_y);
        hak::allocator<char> other(moved.get_allocator());
        cr_assert(other == moved.get_allocator() && other != hak::allocator<int>(a));
    }
    adapter_require_empty(a.get());
    adapter_require_empty(b.get());
}

struct alignas(256) wide {
    char bytes[256];
};

Test(hakheap_hpp, an_allocator_honours_alignment_and_throws)
{
    for (int level = 0; level < CONTRACT_LEVELS; level++) {
        hak::heap heap = make(level, 1 << 20);
        {
            std::vector<wide, hak::allocator<wide>> many(heap);
            for (int i = 0; i < 100; i++) {
                many.emplace_back();
                cr_assert(reinterpret_cast<uintptr_t>(many.data()) % 256 == 0);
            }
            hak::allocator<long> longs(heap);
            int thrown = 0;
            try {
                (void)longs.allocate(SIZE_MAX / 4);
            } catch (const std::bad_array_new_length &) {
                thrown++;
            }
            try {
                (void)longs.allocate(1 << 20);
            } catch (const std::bad_alloc &) {
                thrown++;
            }
            cr_assert(thrown == 2);
        }
        adapter_require_empty(heap.get());
    }
}

/* ---- The scope ---- */

Test(hakheap_hpp, a_guard_leaves_its_scope_also_by_an_exception)
{
    hak::heap a = make(0), b = make(1);
    {
        hak::scope outer(a);
        cr_assert(hak_scope_heap() == a.get());
        try {
            hak::scope inner(b.get());
            cr_assert(hak_scope_heap() == b.get());
            hak_heap_t *inherited = b.get();
            std::thread([&] { inherited = hak_scope_heap(); }).join();
            cr_assert(inherited == nullptr);
            throw std::runtime_error("out");
        } catch (const std::runtime_error &) {
        }
        cr_assert(hak_scope_heap() == a.get());
        hak::scope none(nullptr);
        cr_assert(hak_scope_heap() == nullptr);
    }
    cr_assert(hak_scope_heap() == nullptr);
}
