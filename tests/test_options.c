/* options: config structs of every size, ranges, levels, the environment. */
#include "options.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "os.h"
#include "support_child.h"

static void forget_environment(void)
{
    unsetenv("HAKHEAP_RSEQ");
    unsetenv("HAKHEAP_LEVEL");
    unsetenv("HAKHEAP_CACHE_BYTES");
    unsetenv("HAKHEAP_LARGE_CACHE_BYTES");
    unsetenv("HAKHEAP_RESERVE_BYTES");
}

/* With the environment of now. */
static int read_again(const hak_heap_config_t *config, settings_t *settings)
{
    hak_error_t why;
    options_start_process();
    return options_read(config, settings, &why);
}

TestSuite(options, .init = forget_environment, .timeout = 600);

#define DEFAULT_OF(field, otherwise, lowest, highest, environment, text) \
    static const size_t default_##field = otherwise;
OPTIONS(DEFAULT_OF)

static void must_be_defaults(const settings_t *settings)
{
    cr_assert(strcmp(settings->name, "unnamed") == 0, "%s", settings->name);
    cr_assert(settings->level == HAK_LEVEL_FAST);
    cr_assert(settings->cache_bytes == default_cache_bytes, "%zu", settings->cache_bytes);
    cr_assert(settings->large_cache_bytes == default_large_cache_bytes, "%zu",
              settings->large_cache_bytes);
    cr_assert(settings->region_bytes == default_region_bytes, "%zu", settings->region_bytes);
}

Test(options, no_config_and_an_empty_one_are_defaults)
{
    settings_t settings;
    memset(&settings, 0xff, sizeof settings);
    cr_assert(read_again(NULL, &settings) == 0);
    must_be_defaults(&settings);
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    memset(&settings, 0xff, sizeof settings);
    cr_assert(read_again(&config, &settings) == 0);
    must_be_defaults(&settings);
}

Test(options, every_field_is_read)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = "sessions";
    config.level = HAK_LEVEL_CHECKED;
    config.cache_bytes = 12345;
    config.large_cache_bytes = 67890;
    config.region_bytes = 345;
    settings_t settings;
    cr_assert(read_again(&config, &settings) == 0);
    cr_assert(strcmp(settings.name, "sessions") == 0);
    cr_assert(settings.level == HAK_LEVEL_CHECKED);
    cr_assert(settings.cache_bytes == 12345);
    cr_assert(settings.large_cache_bytes == 67890);
    cr_assert(settings.region_bytes == 345);
}

Test(options, names_are_cut_to_31_bytes)
{
    static const char long_name[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.name = long_name;
    settings_t settings;
    cr_assert(read_again(&config, &settings) == 0);
    cr_assert(strlen(settings.name) == 31);
    cr_assert(strncmp(settings.name, long_name, 31) == 0);
    config.name = "";
    cr_assert(read_again(&config, &settings) == 0);
    cr_assert(settings.name[0] == '\0');
}

/* ---- Struct sizes ---- */

/* What a program built against a version with more fields hands over. */
typedef struct longer {
    hak_heap_config_t known;
    unsigned char tail[64];
} longer_t;

static longer_t longer_config(void)
{
    longer_t longer = {.known = HAK_HEAP_CONFIG_INIT};
    longer.known.struct_size = sizeof longer;
    longer.known.cache_bytes = 4711;
    return longer;
}

Test(options, a_longer_struct_with_a_zero_tail_is_read)
{
    longer_t longer = longer_config();
    settings_t settings;
    cr_assert(read_again(&longer.known, &settings) == 0);
    cr_assert(settings.cache_bytes == 4711);
}

Test(options, a_longer_struct_that_says_more_is_refused)
{
    for (size_t at = 0; at < sizeof((longer_t *)0)->tail; at++) {
        longer_t longer = longer_config();
        longer.tail[at] = 1;
        settings_t settings;
        cr_assert(read_again(&longer.known, &settings) == EINVAL, "byte %zu", at);
    }
    /* Beyond the struct's own size nothing is looked at. */
    longer_t longer = longer_config();
    longer.known.struct_size = sizeof longer - 1;
    longer.tail[63] = 1;
    settings_t settings;
    cr_assert(read_again(&longer.known, &settings) == 0);
}

static void note_pressure(void *ctx, hak_heap_t *full, size_t bytes)
{
    (void)ctx, (void)full, (void)bytes;
}

/* Of a struct that ends at the i-th of the fields below. */
static void prove_limits(const settings_t *settings, unsigned i)
{
    cr_assert((settings->parent != NULL) == (i > 6), "field %u", i);
    cr_assert(settings->counts == (i > 6), "field %u", i);
    if (i <= 6) return;
    cr_assert(settings->limits.live_limit == (i > 7 ? 4444 : HAK_NO_LIMIT), "field %u", i);
    cr_assert(settings->limits.committed_limit == (i > 8 ? 55555 : HAK_NO_LIMIT), "field %u", i);
    cr_assert(settings->limits.soft_limit == (i > 10 ? 3333 : HAK_NO_LIMIT), "field %u", i);
    cr_assert(settings->on_pressure == (i > 10 ? note_pressure : NULL), "field %u", i);
    cr_assert((settings->pressure_ctx != NULL) == (i > 11), "field %u", i);
}

/* Fields beyond the struct's end take their defaults, whatever lies there. */
Test(options, a_shorter_struct_is_read_up_to_its_end)
{
    static const size_t ends[] = {offsetof(hak_heap_config_t, name),
                                  offsetof(hak_heap_config_t, level),
                                  offsetof(hak_heap_config_t, flags),
                                  offsetof(hak_heap_config_t, cache_bytes),
                                  offsetof(hak_heap_config_t, large_cache_bytes),
                                  offsetof(hak_heap_config_t, region_bytes),
                                  offsetof(hak_heap_config_t, parent),
                                  offsetof(hak_heap_config_t, live_limit),
                                  offsetof(hak_heap_config_t, committed_limit),
                                  offsetof(hak_heap_config_t, soft_limit),
                                  offsetof(hak_heap_config_t, on_pressure),
                                  offsetof(hak_heap_config_t, pressure_ctx),
                                  sizeof(hak_heap_config_t)};
    for (unsigned i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        /* A soft limit without a callback is refused. */
        hak_heap_config_t config = {.struct_size = ends[i], .name = "given", .cache_bytes = 1111};
        config.level = HAK_LEVEL_CHECKED;
        config.flags = i < 3 ? 99 : 0;
        config.large_cache_bytes = 2222, config.region_bytes = 3333;
        config.parent = (hak_heap_t *)(uintptr_t)64;
        config.live_limit = 4444, config.committed_limit = 55555;
        config.soft_limit = i > 10 ? 3333 : 0;
        config.on_pressure = note_pressure;
        config.pressure_ctx = (void *)(uintptr_t)64;
        settings_t settings;
        cr_assert(read_again(&config, &settings) == 0, "size %zu", ends[i]);
        cr_assert(strcmp(settings.name, i > 0 ? "given" : "unnamed") == 0, "size %zu", ends[i]);
        cr_assert(settings.level == (i > 1 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST), "size %zu",
                  ends[i]);
        cr_assert(settings.cache_bytes == (i > 3 ? 1111 : default_cache_bytes), "size %zu",
                  ends[i]);
        cr_assert(settings.large_cache_bytes == (i > 4 ? 2222 : default_large_cache_bytes),
                  "size %zu", ends[i]);
        cr_assert(settings.region_bytes == (i > 5 ? 3333 : default_region_bytes), "size %zu",
                  ends[i]);
        prove_limits(&settings, i);
    }
}

/* No version has a struct that ends inside a field: half a pointer or half a number is nobody's
 * wish. */
Test(options, a_struct_that_ends_inside_a_field_is_refused)
{
    static const size_t ends[] = {9,
                                  offsetof(hak_heap_config_t, name) + 4,
                                  offsetof(hak_heap_config_t, level) + 2,
                                  offsetof(hak_heap_config_t, flags) + 1,
                                  offsetof(hak_heap_config_t, cache_bytes) + 4,
                                  offsetof(hak_heap_config_t, large_cache_bytes) + 7,
                                  offsetof(hak_heap_config_t, region_bytes) + 7,
                                  offsetof(hak_heap_config_t, parent) + 1,
                                  offsetof(hak_heap_config_t, live_limit) + 4,
                                  offsetof(hak_heap_config_t, committed_limit) + 4,
                                  offsetof(hak_heap_config_t, soft_limit) + 4,
                                  offsetof(hak_heap_config_t, on_pressure) + 7,
                                  offsetof(hak_heap_config_t, pressure_ctx) + 4};
    for (unsigned i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        hak_heap_config_t config = {
            .struct_size = ends[i], .cache_bytes = 1000, .large_cache_bytes = 1000};
        settings_t settings;
        cr_assert(read_again(&config, &settings) == EINVAL, "size %zu", ends[i]);
    }
}

/* A callback of a heap that counts nothing would never run. */
Test(options, a_callback_without_a_limit_is_refused)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.on_pressure = note_pressure;
    settings_t settings;
    cr_assert(read_again(&config, &settings) == EINVAL);
    config.live_limit = HAK_NO_LIMIT;
    cr_assert(read_again(&config, &settings) == 0, "a limit may come later");
}

static hak_error_t why_not(const hak_heap_config_t *config)
{
    settings_t settings;
    hak_error_t why = HAK_ERROR_NONE;
    cr_assert((options_read(config, &settings, &why) == EINVAL) == (why != HAK_ERROR_NONE));
    return why;
}

/* A soft limit that nobody hears of, or that is never passed because another one comes first. */
Test(options, limits_that_contradict_each_other_are_refused)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.soft_limit = 1000;
    cr_assert(why_not(&config) == HAK_ERROR_UNHEARD);
    config.on_pressure = note_pressure;
    cr_assert(why_not(&config) == HAK_ERROR_NONE, "a soft limit makes a heap count");
    config.live_limit = 1000;
    cr_assert(why_not(&config) == HAK_ERROR_SOFT_LIMIT);
    config.live_limit = 1001;
    cr_assert(why_not(&config) == HAK_ERROR_NONE);
    config.committed_limit = 1000;
    cr_assert(why_not(&config) == HAK_ERROR_SOFT_LIMIT);
    config.committed_limit = config.soft_limit = HAK_NO_LIMIT;
    cr_assert(why_not(&config) == HAK_ERROR_NONE);
}

Test(options, a_struct_without_a_size_is_refused)
{
    static _Alignas(hak_heap_config_t) char page[2 * HAK_PAGE];
    hak_heap_config_t *config = (hak_heap_config_t *)(void *)page;
    settings_t settings;
    for (size_t size = 0; size < sizeof(size_t); size++) {
        config->struct_size = size;
        cr_assert(read_again(config, &settings) == EINVAL, "size %zu", size);
    }
    static const size_t absurd[] = {HAK_PAGE + 1, HAK_GIB, SIZE_MAX};
    for (unsigned i = 0; i < 3; i++) {
        config->struct_size = absurd[i];
        cr_assert(read_again(config, &settings) == EINVAL, "size %zu", absurd[i]);
    }
}

Test(options, known_structs)
{
    static unsigned char bytes[64];
    cr_assert(options_struct_is_known(bytes, 16, 16, 32));
    cr_assert(!options_struct_is_known(bytes, 15, 16, 32));
    cr_assert(options_struct_is_known(bytes, 64, 16, 32));
    bytes[31] = 1;
    cr_assert(options_struct_is_known(bytes, 64, 16, 32));
    bytes[32] = 1;
    cr_assert(options_struct_is_known(bytes, 32, 16, 32));
    cr_assert(!options_struct_is_known(bytes, 33, 16, 32));
    bytes[32] = 0;
    bytes[63] = 1;
    cr_assert(options_struct_is_known(bytes, 63, 16, 32));
    cr_assert(!options_struct_is_known(bytes, 64, 16, 32));
}

/* ---- Values ---- */

Test(options, flags_must_be_zero)
{
    for (unsigned bit = 0; bit < 32; bit++) {
        hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
        config.flags = 1u << bit;
        settings_t settings;
        cr_assert(read_again(&config, &settings) == EINVAL, "bit %u", bit);
    }
}

static int level_error(int level, settings_t *settings)
{
    hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;
    config.level = (hak_level_t)level;
    return read_again(&config, settings);
}

Test(options, levels)
{
    settings_t settings;
    cr_assert(level_error(HAK_LEVEL_FAST, &settings) == 0 && settings.level == HAK_LEVEL_FAST);
    cr_assert(level_error(HAK_LEVEL_CHECKED, &settings) == 0 &&
              settings.level == HAK_LEVEL_CHECKED);
    cr_assert(level_error(HAK_LEVEL_HARDENED, &settings) == ENOTSUP);
    cr_assert(level_error(HAK_LEVEL_HARDENED + 1, &settings) == EINVAL);
    cr_assert(level_error(0x7fffffff, &settings) == EINVAL);
}

Test(options, levels_by_environment)
{
    settings_t settings;
    setenv("HAKHEAP_LEVEL", "checked", 1);
    cr_assert(level_error(HAK_LEVEL_DEFAULT, &settings) == 0 &&
              settings.level == HAK_LEVEL_CHECKED);
    cr_assert(level_error(HAK_LEVEL_FAST, &settings) == 0 && settings.level == HAK_LEVEL_FAST);
    setenv("HAKHEAP_LEVEL", "fast", 1);
    cr_assert(level_error(HAK_LEVEL_DEFAULT, &settings) == 0 && settings.level == HAK_LEVEL_FAST);
    cr_assert(level_error(HAK_LEVEL_CHECKED, &settings) == 0 &&
              settings.level == HAK_LEVEL_CHECKED);
    setenv("HAKHEAP_LEVEL", "nonsense", 1);
    cr_assert(level_error(HAK_LEVEL_DEFAULT, &settings) == 0 && settings.level == HAK_LEVEL_FAST);
}

/* Each row of the table: its field, its default, both ends of its range, its environment name. */
#define RANGE_HOLDS(field, otherwise, lowest, highest, environment, text)                     \
    {                                                                                         \
        static const size_t good[] = {lowest, (lowest) + 1, (highest)-1, highest};            \
        for (unsigned i = 0; i < 4; i++) {                                                    \
            hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;                                  \
            config.field = good[i];                                                           \
            cr_assert(read_again(&config, &settings) == 0, #field " %zu", good[i]);           \
            cr_assert(settings.field == good[i], #field " %zu", settings.field);              \
        }                                                                                     \
        static const size_t bad[] = {(highest) + 1, SIZE_MAX, (size_t)1 << 63};               \
        for (unsigned i = 0; i < 3; i++) {                                                    \
            hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;                                  \
            config.field = bad[i];                                                            \
            cr_assert(read_again(&config, &settings) == EINVAL, #field " %zu", bad[i]);       \
        }                                                                                     \
        cr_assert(read_again(NULL, &settings) == 0 && settings.field == (otherwise), #field); \
    }

Test(options, ranges_hold_at_both_ends)
{
    settings_t settings;
    OPTIONS(RANGE_HOLDS)
}

typedef struct number {
    const char *given;
    size_t wanted; /* 0: not taken */
} number_t;

static const number_t numbers[] = {
    {"1", 1},
    {"65536", 65536},
    {"0x10000", 65536},
    {"0", 0},
    {"", 0},
    {" 65536", 0},
    {"-1", 0},
    {"+5", 0},
    {"64k", 0},
    {"65536 ", 0},
    {"12.5", 0},
    {"checked", 0},
    {"1e6", 0},
    {"0x", 0},
    {"99999999999999999999999999", 0},
    {"18446744073709551615", 0},
};

#define ENVIRONMENT_HOLDS(field, otherwise, lowest, highest, environment, text)                 \
    for (unsigned i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {                         \
        setenv(environment, numbers[i].given, 1);                                               \
        errno = 4242;                                                                           \
        cr_assert(read_again(NULL, &settings) == 0);                                            \
        cr_assert(errno == 4242, #field ": errno is %d after \"%s\"", errno, numbers[i].given); \
        size_t wanted = numbers[i].wanted ? numbers[i].wanted : (otherwise);                    \
        cr_assert(settings.field == wanted, #field ": %zu by \"%s\"", settings.field,           \
                  numbers[i].given);                                                            \
        hak_heap_config_t config = HAK_HEAP_CONFIG_INIT;                                        \
        config.field = 777;                                                                     \
        cr_assert(read_again(&config, &settings) == 0 && settings.field == 777,                 \
                  #field ": the config comes first");                                           \
    }                                                                                           \
    unsetenv(environment);

Test(options, environment_numbers)
{
    settings_t settings;
    OPTIONS(ENVIRONMENT_HOLDS)
}

#define ENVIRONMENT_ENDS(field, otherwise, lowest, highest, environment, text)          \
    snprintf(digits, sizeof digits, "%zu", (size_t)(highest));                          \
    setenv(environment, digits, 1);                                                     \
    cr_assert(read_again(NULL, &settings) == 0 && settings.field == (highest), #field); \
    snprintf(digits, sizeof digits, "%zu", (size_t)(highest) + 1);                      \
    setenv(environment, digits, 1);                                                     \
    cr_assert(read_again(NULL, &settings) == 0 && settings.field == (otherwise),        \
              #field " out of range");                                                  \
    unsetenv(environment);

Test(options, environment_numbers_in_range_only)
{
    settings_t settings;
    char digits[32];
    OPTIONS(ENVIRONMENT_ENDS)
}

/* ---- Values that are not known ---- */

typedef struct said {
    const char *name, *value;
    const char *line; /* what follows the value; NULL: nothing is said */
} said_t;

static const said_t said[] = {
    {"HAKHEAP_LEVEL", "CHECKED", "taken for fast (known: fast, checked)"},
    {"HAKHEAP_LEVEL", "hardened", "taken for fast (known: fast, checked)"},
    {"HAKHEAP_LEVEL", "checked ", "taken for fast (known: fast, checked)"},
    {"HAKHEAP_LEVEL", "fast", NULL},
    {"HAKHEAP_LEVEL", "checked", NULL},
    {"HAKHEAP_LEVEL", "", NULL},
    {"HAKHEAP_RSEQ", "xyz", "taken for the best there is (known: 0, locked, cpu)"},
    {"HAKHEAP_RSEQ", "1", "taken for the best there is (known: 0, locked, cpu)"},
    {"HAKHEAP_RSEQ", "0", NULL},
    {"HAKHEAP_RSEQ", "locked", NULL},
    {"HAKHEAP_RSEQ", "cpu", NULL},
    {"HAKHEAP_RSEQ", "", NULL},
    {"HAKHEAP_CACHE_BYTES", "0", "taken for 33554432 (known: 1 to 1073741824)"},
    {"HAKHEAP_CACHE_BYTES", "64k", "taken for 33554432 (known: 1 to 1073741824)"},
    {"HAKHEAP_CACHE_BYTES", "1073741825", "taken for 33554432 (known: 1 to 1073741824)"},
    {"HAKHEAP_CACHE_BYTES", "0x10000", NULL},
    {"HAKHEAP_CACHE_BYTES", "", NULL},
    {"HAKHEAP_LARGE_CACHE_BYTES", "-1", "taken for 68719476736 (known: 1 to 68719476736)"},
    {"HAKHEAP_LARGE_CACHE_BYTES", "1", NULL},
};

/* Two heaps, in a process that has none yet. */
static void start_twice(void *unused)
{
    (void)unused;
    errno = 4242;
    for (int i = 0; i < 2; i++) {
        hak_heap_t *heap = hak_heap_create(NULL);
        if (!heap || errno != 4242) _exit(1);
        hak_heap_destroy(heap);
    }
}

Test(options, an_unknown_value_is_named_once)
{
    for (unsigned i = 0; i < sizeof said / sizeof said[0]; i++) {
        child_result_t result;
        char line[256] = "";
        if (said[i].line)
            snprintf(line, sizeof line, "hakheap: CONFIG: %s=\"%s\" is not known; %s\n",
                     said[i].name, said[i].value, said[i].line);
        setenv(said[i].name, said[i].value, 1);
        child_run(&result, start_twice, NULL);
        cr_assert(result.status == 0, "%s=%s: status %d, signal %d", said[i].name, said[i].value,
                  result.status, result.signal);
        cr_assert(strcmp(result.text, line) == 0, "%s=%s: \"%s\" is not \"%s\"", said[i].name,
                  said[i].value, result.text, line);
        unsetenv(said[i].name);
    }
}

static void tell_twice(void *unused)
{
    (void)unused;
    options_start_process();
    for (int i = 0; i < 2; i++) options_tell_unknown();
}

/* Whoever asks for the lines: the first one writes them. */
Test(options, lines_are_written_once)
{
    child_result_t result;
    setenv("HAKHEAP_LEVEL", "no level", 1);
    child_run(&result, tell_twice, NULL);
    unsetenv("HAKHEAP_LEVEL");
    const char *first = strstr(result.text, "hakheap: CONFIG: HAKHEAP_LEVEL");
    cr_assert(result.status == 0 && first, "status %d: %s", result.status, result.text);
    cr_assert(strstr(first + 1, "hakheap: CONFIG") == NULL, "%s", result.text);
}

/* All at once, each as long and as odd as can be. */
Test(options, every_unknown_value_has_one_line)
{
    static const char *const names[] = {"HAKHEAP_RSEQ", "HAKHEAP_LEVEL", "HAKHEAP_CACHE_BYTES",
                                        "HAKHEAP_LARGE_CACHE_BYTES"};
    char value[1000];
    memset(value, '\n', sizeof value - 1);
    value[0] = '"';
    value[sizeof value - 1] = '\0';
    for (int i = 0; i < 4; i++) setenv(names[i], value, 1);
    child_result_t result;
    child_run(&result, start_twice, NULL);
    cr_assert(result.status == 0, "status %d", result.status);
    unsigned lines = 0;
    for (const char *at = result.text; (at = strchr(at, '\n')) != NULL; at++) lines++;
    cr_assert(lines == 4, "%u lines:\n%s", lines, result.text);
    for (int i = 0; i < 4; i++) {
        char begin[128];
        snprintf(begin, sizeof begin,
                 "hakheap: CONFIG: %s=\"????????????????????????????????????"
                 "????\" is not known; taken for ",
                 names[i]);
        cr_assert(strstr(result.text, begin) != NULL, "%s:\n%s", names[i], result.text);
        unsetenv(names[i]);
    }
}

Test(options, what_the_process_keeps)
{
    static const struct {
        const char *value;
        size_t bytes;
    } rows[] = {{"0", 0}, {"4096", 4096}, {"0x100000", 1 << 20}, {"", 7}, {"-1", 7}, {"much", 7}};
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        setenv("HAKHEAP_RESERVE_BYTES", rows[i].value, 1);
        cr_assert(options_reserve_bytes(7) == rows[i].bytes, "\"%s\"", rows[i].value);
    }
    unsetenv("HAKHEAP_RESERVE_BYTES");
    cr_assert(options_reserve_bytes(7) == 7);
}
