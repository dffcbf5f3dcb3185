/* Every header of include/hakheap/, alone, as each language that it is for, by gcc and clang. */
#include "adapter.h"
#include "support_run.h"

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

/* uv.h needs more of POSIX than -std=c11 shows: _GNU_SOURCE, which C++ has by itself.
 * $1: a header, $2: its package, $3: a statement, then the compiler and its options. */
static const char compile[] =
    "file=$1 package=$2 use=$3; shift 3\n"
    "[ -z \"$package\" ] || pkg-config --exists \"$package\" || { echo absent; exit 0; }\n"
    "flags=$([ -z \"$package\" ] || pkg-config --cflags \"$package\" | sed 's/-I/-isystem /g')\n"
    "printf '#include <hakheap/%s>\\nint use(void);\\nint use(void) { %s }\\n' \"$file\" \"$use\" "
    "|\n"
    "    \"$@\" -fsyntax-only -D_GNU_SOURCE -Wall -Wextra -Wconversion -Wshadow -pedantic -Werror "
    "-Iinclude "
    "$flags -";

static void each_compiles(const char *compiler, const char *language, const char *standard)
{
    run_result_t result;
    bool is_c = strcmp(language, "c") == 0;
    RUN_ONCE();
    run_program(&result, 10, (const char *const[]){compiler, "--version", NULL});
    if (result.status != 0) cr_skip_test("%s is not installed", compiler);
    for (size_t i = 0; i < CONTRACT_LENGTH(headers); i++) {
        if (is_c && strstr(headers[i][0], ".hpp")) continue;
        run_program(&result, 60,
                    (const char *const[]){"bash", "-c", compile, "bash", headers[i][0],
                                          headers[i][1], headers[i][2], compiler, "-x", language,
                                          standard, NULL});
        cr_assert(result.status == 0, "%s: %s", headers[i][0], result.text);
    }
}

Test(headers, c11_gcc) { each_compiles("gcc", "c", "-std=c11"); }
Test(headers, c11_clang) { each_compiles("clang", "c", "-std=c11"); }
Test(headers, c17_gcc) { each_compiles("gcc", "c", "-std=c17"); }
Test(headers, c17_clang) { each_compiles("clang", "c", "-std=c17"); }
Test(headers, cpp17_gcc) { each_compiles("g++", "c++", "-std=c++17"); }
Test(headers, cpp17_clang) { each_compiles("clang++", "c++", "-std=c++17"); }
Test(headers, cpp20_gcc) { each_compiles("g++", "c++", "-std=c++20"); }
Test(headers, cpp20_clang) { each_compiles("clang++", "c++", "-std=c++20"); }
