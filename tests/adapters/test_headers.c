/* Every header of include/hakheap/, alone, as each language that it is for, by gcc and clang. */
#include "adapter.h"
#include "support_compile.h"

TestSuite(headers, .timeout = 120);

/* A header, what pkg-config calls its library, and something of it in use. */
static const char *const headers[][3] = {
    {"curl.h", "libcurl", "return (int)hak_curl_install(CURL_GLOBAL_ALL);"},
    {"libuv.h", "libuv", "return hak_libuv_install();"},
    {"lua.h", "lua5.4", "return hak_lua_alloc(0, 0, 0, 0) != 0;"},
    {"nghttp2.h", "libnghttp2", "return hak_nghttp2_mem(0).malloc == 0;"},
    {"sqlite.h", "sqlite3", "return 0;"},
    {"xml2.h", "libxml-2.0", "return hak_xml2_install();"},
    {"zlib.h", "zlib", "z_stream s; hak_zlib_use(&s, 0); return s.zfree == 0;"},
    {"zstd.h", "libzstd", "return hak_zstd_mem(0).customFree == 0;"},
    {"hakheap.hpp", "", "return hak::config().flags != 0;"},
};

/* uv.h needs more of POSIX than -std=c11 shows: _GNU_SOURCE, which C++ has by itself. */
static void compile_use(const char *const row[3], const char *compiler, const char *language,
                        const char *standard)
{
    char script[1024];
    snprintf(script, sizeof script,
             "flags=$([ -z '%s' ] || pkg-config --cflags '%s' | sed 's/-I/-isystem /g')\n"
             "printf '#include <hakheap/%s>\\nint use(void);\\nint use(void) { %s }\\n' | "
             "\"$@\" -D_GNU_SOURCE $flags -",
             row[1], row[1], row[0], row[2]);
    compile_strictly(script, compiler, language, standard);
}

static void each_compiles(const char *compiler, const char *language, const char *standard)
{
    static run_result_t result;
    bool is_c = strcmp(language, "c") == 0;
    for (size_t i = 0; i < CONTRACT_LENGTH(headers); i++) {
        if (is_c && strstr(headers[i][0], ".hpp")) continue;
        run_program(&result, 10,
                    (const char *const[]){"pkg-config", "--exists", headers[i][1], NULL});
        if (headers[i][1][0] && result.status != 0) continue;
        compile_use(headers[i], compiler, language, standard);
    }
}

#define EACH(name, ...) \
    Test(headers, name) { each_compiles(__VA_ARGS__); }
COMPILE_EACH(EACH)
