/* hakheap level 3: options - reading a config and the environment */
#include "options.h"

#include <errno.h>
#include <stdio.h>
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

/* ---- The environment ---- */

/* Lines about variables whose value is not known. Written while the process starts, read later. */
static struct {
    size_t used;
    char text[1024];
    _Atomic uint32_t said; /* the first to exchange it writes; it orders nothing */
} unknown;

/* A value is shown up to its 40th byte; what would end the line or the quotes is shown as `?`. */
static const char *shown(const char *value, char out[41])
{
    size_t length = 0;
    for (; value[length] && length < 40; length++) {
        unsigned char byte = (unsigned char)value[length];
        out[length] = byte < ' ' || byte == '"' || byte == 0x7f ? '?' : (char)byte;
    }
    out[length] = '\0';
    return out;
}

void options_unknown(const char *name, const char *value, const char *taken_for, const char *known)
{
    char quoted[41];
    size_t room = sizeof unknown.text - unknown.used;
    int length = snprintf(unknown.text + unknown.used, room,
                          "hakheap: CONFIG: %s=\"%s\" is not known; taken for %s (known: %s)\n",
                          name, shown(value, quoted), taken_for, known);
    /* The variables there are fit; a line that does not is left out. */
    if (length > 0 && (size_t)length < room) unknown.used += (size_t)length;
}

void options_tell_unknown(void)
{
    if (unknown.used && exchange_acquire(&unknown.said, 1u) == 0)
        os_print(unknown.text, unknown.used);
}

/* A variable's value; NULL where it is not set, or is empty. */
static const char *variable(const char *name)
{
    const char *value = os_environment(name);
    return value && *value ? value : NULL;
}

static bool parse_number(const char *text, size_t lowest, size_t highest, size_t *out)
{
    if (*text < '0' || *text > '9') return false;
    char *end;
    int before = errno;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 0);
    bool good = errno == 0 && *end == '\0' && in_range(value, lowest, highest);
    errno = before;
    if (good) *out = (size_t)value;
    return good;
}

static size_t number(const char *name, size_t otherwise, size_t lowest, size_t highest)
{
    size_t value = otherwise;
    const char *text = variable(name);
    if (!text || parse_number(text, lowest, highest, &value)) return value;
    char taken_for[24], known[48];
    snprintf(taken_for, sizeof taken_for, "%zu", otherwise);
    snprintf(known, sizeof known, "%zu to %zu", lowest, highest);
    options_unknown(name, text, taken_for, known);
    return value;
}

static hak_level_t level(const char *name)
{
    const char *text = variable(name);
    if (text && strcmp(text, "checked") == 0) return HAK_LEVEL_CHECKED;
    if (text && strcmp(text, "fast") != 0) options_unknown(name, text, "fast", "fast, checked");
    return HAK_LEVEL_FAST;
}

/* What a heap gets that does not ask. Written by options_start_process, before there is a heap. */
static settings_t defaults;

void options_start_process(void)
{
    unknown.used = 0;
    defaults.level = level("HAKHEAP_LEVEL");
#define READ(field, otherwise, lowest, highest, environment, words) \
    defaults.field = number(environment, otherwise, lowest, highest);
    OPTIONS(READ)
#undef READ
}

size_t options_reserve_bytes(size_t otherwise)
{
    return number("HAKHEAP_RESERVE_BYTES", otherwise, 0, SIZE_MAX);
}

/* ---- The config ---- */

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
    static const size_t ends[] = {END(struct_size),     END(name),        END(level),
                                  END(flags),           END(cache_bytes), END(large_cache_bytes),
                                  END(region_bytes),    END(parent),      END(live_limit),
                                  END(committed_limit), END(soft_limit),  END(on_pressure),
                                  END(pressure_ctx)};
#undef END
    if (size >= sizeof(hak_heap_config_t)) return true;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (size == ends[i]) return true;
    return false;
}

static size_t limit(size_t given) { return given ? given : HAK_NO_LIMIT; }

/* What is live is never above a limit, and never more than what is committed for it. */
int options_limits(const hak_limits_t *given, bool heard, hak_limits_t *out, hak_error_t *why)
{
    *out = (hak_limits_t){.struct_size = sizeof *out,
                          .live_limit = limit(given->live_limit),
                          .committed_limit = limit(given->committed_limit),
                          .soft_limit = limit(given->soft_limit)};
    if (out->soft_limit == HAK_NO_LIMIT) return 0;
    bool reached = out->soft_limit < hak_min(out->live_limit, out->committed_limit);
    if (heard && reached) return 0;
    *why = heard ? HAK_ERROR_SOFT_LIMIT : HAK_ERROR_UNHEARD;
    return EINVAL;
}

/* A heap counts that has a limit, or a place in a tree. */
static int read_counting(const hak_heap_config_t *given, settings_t *out, hak_error_t *why)
{
    hak_limits_t limits = {.live_limit = given->live_limit,
                           .committed_limit = given->committed_limit,
                           .soft_limit = given->soft_limit};
    out->parent = given->parent;
    out->counts = given->parent || given->live_limit || given->committed_limit || given->soft_limit;
    out->on_pressure = given->on_pressure;
    out->pressure_ctx = given->pressure_ctx;
    /* It would never run. */
    if (!out->counts) return given->on_pressure ? EINVAL : 0;
    return options_limits(&limits, given->on_pressure != NULL, &out->limits, why);
}

int options_read(const hak_heap_config_t *config, settings_t *out, hak_error_t *why)
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
    int error = read_counting(&given, out, why);
    if (error) return error;
    memset(out->name, 0, sizeof out->name);
    strncpy(out->name, given.name ? given.name : "unnamed", sizeof out->name - 1);
    error = read_level(given.level, &out->level);
#define READ(field, otherwise, lowest, highest, environment, text) \
    if (!error) error = read_number(given.field, defaults.field, lowest, highest, &out->field);
    OPTIONS(READ)
#undef READ
    return error;
}
