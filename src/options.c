/* hakheap level 3: options - reading a config and the environment */
#include "options.h"

#include <errno.h>
#include <stdlib.h>

#include "os.h"

bool options_struct_is_known(const void *of, size_t struct_size, size_t least, size_t known)
{
    if (struct_size < least || struct_size > HAK_PAGE) return false;
    const unsigned char *bytes = of;
    for (size_t i = known; i < struct_size; i++)
        if (bytes[i] != 0) return false;
    return true;
}

static bool in_range(size_t value, size_t lowest, size_t highest)
{
    return value >= lowest && value <= highest;
}

/* A number from the environment; 0 where there is none, or none in range. */
static size_t from_environment(const char *name, size_t lowest, size_t highest)
{
    const char *text = os_environment(name);
    if (!text || *text < '0' || *text > '9') return 0;
    char *end;
    int before = errno;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 0);
    bool good = errno == 0 && *end == '\0' && in_range(value, lowest, highest);
    errno = before;
    return good ? (size_t)value : 0;
}

/* What a heap gets that does not ask. Written by options_start_process, before there is a heap. */
static settings_t defaults;

void options_start_process(void)
{
    const char *text = os_environment("HAKHEAP_LEVEL");
    defaults.level = text && strcmp(text, "checked") == 0 ? HAK_LEVEL_CHECKED : HAK_LEVEL_FAST;
#define READ(field, otherwise, lowest, highest, environment, words)  \
    defaults.field = from_environment(environment, lowest, highest); \
    if (!defaults.field) defaults.field = (otherwise);
    OPTIONS(READ)
#undef READ
}

static int read_number(size_t given, size_t otherwise, size_t lowest, size_t highest, size_t *out)
{
    if (given && !in_range(given, lowest, highest)) return EINVAL;
    *out = given ? given : otherwise;
    return 0;
}

static int read_level(hak_level_t given, hak_level_t *out)
{
    switch (given) {
    case HAK_LEVEL_DEFAULT: *out = defaults.level; return 0;
    case HAK_LEVEL_FAST:
    case HAK_LEVEL_CHECKED: *out = given; return 0;
    case HAK_LEVEL_HARDENED: return ENOTSUP;
    }
    return EINVAL;
}

/* No version has a struct that ends inside a field. */
static bool ends_at_a_field(size_t size)
{
#define END(field) (offsetof(hak_heap_config_t, field) + sizeof(((hak_heap_config_t *)0)->field))
    static const size_t ends[] = {END(struct_size), END(name),        END(level),
                                  END(flags),       END(cache_bytes), END(large_cache_bytes)};
#undef END
    if (size >= sizeof(hak_heap_config_t)) return true;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (size == ends[i]) return true;
    return false;
}

int options_read(const hak_heap_config_t *config, settings_t *out)
{
    hak_heap_config_t given = HAK_HEAP_CONFIG_INIT;
    if (config) {
        size_t size = config->struct_size;
        if (!options_struct_is_known(config, size, sizeof size, sizeof given) ||
            !ends_at_a_field(size))
            return EINVAL;
        memcpy(&given, config, hak_min(size, sizeof given));
    }
    if (given.flags != 0) return EINVAL;
    memset(out->name, 0, sizeof out->name);
    strncpy(out->name, given.name ? given.name : "unnamed", sizeof out->name - 1);
    int error = read_level(given.level, &out->level);
#define READ(field, otherwise, lowest, highest, environment, text) \
    if (!error) error = read_number(given.field, defaults.field, lowest, highest, &out->field);
    OPTIONS(READ)
#undef READ
    return error;
}
