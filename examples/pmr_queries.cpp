/*
 * Queries over JSON, each with a memory resource of its own: it parses a document of customers and
 * one of orders, joins them by a hash map, groups, sorts and writes its answer, in std::pmr
 * containers. Sixteen answers are open at a time. On hakheap a query ends by its hak::heap alone:
 * no destructor runs, and no block is freed by itself.
 *
 *   pmr_queries [--allocator hakheap|system] [--quick] [--monotonic]
 *
 * On `system` the same containers lie in std::pmr::new_delete_resource(), so in malloc, and with
 * --monotonic in a std::pmr::monotonic_buffer_resource above it.
 */
#include <hakheap/hakheap.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "measure.h"

namespace {

constexpr std::size_t OPEN = 16, DOCUMENTS = 8, REGIONS = 12;

[[noreturn]] void die(const char *what)
{
    std::fprintf(stderr, "pmr_queries: %s\n", what);
    std::exit(EXIT_FAILURE);
}

/* ---- JSON ---- */

struct member;

struct value {
    using array = std::pmr::vector<value>;
    using object = std::pmr::vector<member>;
    std::variant<std::monostate, bool, double, std::pmr::string, array, object> is;

    const value &operator[](std::string_view name) const;
    double number() const { return std::get<double>(is); }
    const std::pmr::string &text() const { return std::get<std::pmr::string>(is); }
    const array &elements() const { return std::get<array>(is); }
};

struct member {
    std::pmr::string name;
    value what;
};

const value &value::operator[](std::string_view name) const
{
    for (const member &each : std::get<object>(is))
        if (each.name == name) return each.what;
    die("a document lacks a member");
}

/* A document in memory, from its first byte to its last; anything else ends the program. */
class parser {
  public:
    parser(std::string_view text, std::pmr::memory_resource *from) : left_(text), from_(from) {}

    value parse()
    {
        switch (peek()) {
        case '{': return {parse_object()};
        case '[': return {parse_array()};
        case '"': return {parse_string()};
        case 't': return skip("true"), value{true};
        case 'f': return skip("false"), value{false};
        case 'n': return skip("null"), value{};
        default: return {parse_number()};
        }
    }

  private:
    char peek()
    {
        std::size_t blank = left_.find_first_not_of(" \t\r\n");
        if (blank == std::string_view::npos) die("a document ends too early");
        left_.remove_prefix(blank);
        return left_.front();
    }

    void skip(std::string_view word)
    {
        (void)peek();
        if (left_.substr(0, word.size()) != word) die("a document is no JSON");
        left_.remove_prefix(word.size());
    }

    /* Past a comma: true; past the end of the list: false. */
    bool goes_on(char end)
    {
        bool on = peek() == ',';
        skip(on ? std::string_view(",") : std::string_view(&end, 1));
        return on;
    }

    std::pmr::string parse_string()
    {
        std::pmr::string text(from_);
        skip("\"");
        for (;;) {
            std::size_t plain = left_.find_first_of("\"\\");
            if (plain == std::string_view::npos) die("a string has no end");
            text += left_.substr(0, plain);
            char at = left_[plain];
            left_.remove_prefix(plain + 1);
            if (at == '"') return text;
            text += left_.front() == 'n' ? '\n' : left_.front();
            left_.remove_prefix(1);
        }
    }

    double parse_number()
    {
        double number = 0;
        auto [end, error] = std::from_chars(left_.data(), left_.data() + left_.size(), number);
        if (error != std::errc()) die("a number is none");
        left_.remove_prefix(static_cast<std::size_t>(end - left_.data()));
        return number;
    }

    value::array parse_array()
    {
        value::array elements(from_);
        skip("[");
        if (peek() == ']') return skip("]"), elements;
        do elements.push_back(parse());
        while (goes_on(']'));
        return elements;
    }

    value::object parse_object()
    {
        value::object members(from_);
        skip("{");
        if (peek() == '}') return skip("}"), members;
        do {
            std::pmr::string name = parse_string();
            skip(":");
            members.push_back(member{std::move(name), parse()});
        } while (goes_on('}'));
        return members;
    }

    std::string_view left_;
    std::pmr::memory_resource *from_;
};

/* ---- Documents, and what is known of them ---- */

struct documents {
    std::string customers, orders;
    double total = 0;
};

std::uint64_t random_state = 88172645463325252u;

std::size_t random_below(std::size_t bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return static_cast<std::size_t>(random_state % bound);
}

documents generate(std::size_t customers, std::size_t orders)
{
    documents out;
    for (std::size_t i = 0; i < customers; i++) {
        out.customers += (i ? ",\n" : "[") + std::string("{\"id\": ") + std::to_string(i) +
                         ", \"name\": \"Customer \\\"" + std::string(5 + random_below(40), 'c') +
                         "\\\"\", \"region\": \"region " + std::to_string(random_below(REGIONS)) +
                         "\", \"active\": " + (random_below(2) ? "true" : "false") +
                         ", \"tags\": [\"a\", \"tag of some length, " + std::to_string(i) + "\"]}";
    }
    for (std::size_t i = 0; i < orders; i++) {
        std::size_t cents = 100 + random_below(100000);
        out.orders += (i ? ",\n" : "[") + std::string("{\"order\": ") + std::to_string(i) +
                      ", \"customer\": " + std::to_string(random_below(customers)) +
                      ", \"cents\": " + std::to_string(cents) + ", \"note\": " +
                      (random_below(3) ? std::string("null")
                                       : '"' + std::string(random_below(90), 'n') + '"') +
                      "}";
        out.total += static_cast<double>(cents);
    }
    out.customers += "]";
    out.orders += "]";
    return out;
}

/* ---- A query ---- */

struct row {
    std::pmr::string name, region;
    double cents = 0;
    std::pmr::vector<const value *> orders;
};

/* All that a query has, and its answer, which stays open for a while. */
struct query {
    value customers, orders;
    std::pmr::unordered_map<std::int64_t, row> by_customer;
    std::pmr::unordered_map<std::pmr::string, double> by_region;
    std::pmr::vector<const row *> best;
    std::pmr::string answer;

    query(const documents &of, std::pmr::memory_resource *from)
        : customers(parser(of.customers, from).parse()), orders(parser(of.orders, from).parse()),
          by_customer(from), by_region(from), best(from), answer(from)
    {
        join(from);
        write();
    }

    void join(std::pmr::memory_resource *from)
    {
        for (const value &each : customers.elements())
            by_customer.emplace(static_cast<std::int64_t>(each["id"].number()),
                                row{{each["name"].text(), from},
                                    {each["region"].text(), from},
                                    0,
                                    std::pmr::vector<const value *>(from)});
        for (const value &each : orders.elements()) {
            row &of = by_customer.at(static_cast<std::int64_t>(each["customer"].number()));
            of.cents += each["cents"].number();
            of.orders.push_back(&each);
        }
        for (const auto &[id, each] : by_customer) {
            by_region[each.region] += each.cents;
            best.push_back(&each);
        }
        std::sort(best.begin(), best.end(), [](const row *a, const row *b) {
            return a->cents != b->cents ? a->cents > b->cents : a->name < b->name;
        });
    }

    void write()
    {
        char sep = '[';
        for (const row *each : best) {
            (answer += sep) += "{\"name\": \"";
            ((answer += each->name) += "\", \"orders\": ") += std::to_string(each->orders.size());
            ((answer += ", \"cents\": ") += std::to_string(each->cents)) += '}';
            sep = ',';
        }
        answer += ']';
    }

    double total() const
    {
        double sum = 0;
        for (const auto &[region, cents] : by_region) sum += cents;
        return sum;
    }
};

/* ---- Who owns a query ---- */

/* In a heap of its own, which ends it. */
class in_heap {
  public:
    explicit in_heap(const documents &of) : resource_(heap_)
    {
        std::pmr::polymorphic_allocator<query> allocator(&resource_);
        query_ = new (allocator.allocate(1)) query(of, &resource_);
    }

    const query &get() const { return *query_; }

  private:
    hak::heap heap_;
    hak::resource resource_;
    query *query_; /* no destructor: all it has lies in the heap */
};

class by_malloc {
  public:
    explicit by_malloc(const documents &of) : query_(of, std::pmr::new_delete_resource()) {}
    const query &get() const { return query_; }

  private:
    query query_;
};

class monotonic {
  public:
    explicit monotonic(const documents &of)
    {
        std::pmr::polymorphic_allocator<query> allocator(&resource_);
        query_ = new (allocator.allocate(1)) query(of, &resource_);
    }

    const query &get() const { return *query_; }

  private:
    std::pmr::monotonic_buffer_resource resource_{std::pmr::new_delete_resource()};
    query *query_; /* likewise */
};

template <typename owner> std::size_t run(const std::vector<documents> &all, std::size_t count)
{
    std::array<std::unique_ptr<owner>, OPEN> open;
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < count; i++) {
        const documents &of = all[random_below(DOCUMENTS)];
        std::unique_ptr<owner> &place = open[random_below(OPEN)];
        place = std::make_unique<owner>(of);
        if (place->get().total() != of.total) die("an answer is wrong");
        bytes += place->get().answer.size();
    }
    return bytes;
}

} // namespace

int main(int argc, char **argv)
{
    static const char usage[] = "pmr_queries [--allocator hakheap|system] [--quick] [--monotonic]";
    measure_options_t options = measure_read_options(&argc, argv, usage, 1);
    bool buffers = argc > 1;
    if (buffers && std::string_view(argv[1]) != "--monotonic") options_refuse(usage, argv[1]);
    std::vector<documents> all;
    for (std::size_t i = 0; i < DOCUMENTS; i++)
        all.push_back(generate(std::size_t{500} << (i / 3), 4000));
    std::size_t count = options.quick ? 40 : 600;
    double begun = measure_seconds();
    std::size_t bytes = !options.system ? run<in_heap>(all, count)
                        : buffers       ? run<monotonic>(all, count)
                                        : run<by_malloc>(all, count);
    double seconds = measure_seconds() - begun;
    std::printf("%zu queries, %zu bytes of answers\n", count, bytes);
    measure_print(seconds, static_cast<double>(count) / seconds);
    return EXIT_SUCCESS;
}
