/* hakheap level 2: os_copies - whether the process has another copy of this library */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "os.h"

/*
 * A plugin that links the archive has a copy of its own: heaps, tables and all. No copy sees the
 * names of another. So each carries an ELF note, a record that the linker puts into the module (the
 * program, plugin or shared library) and the loader maps with it, and a copy that is asked looks
 * for that note in every module but its own.
 *
 * The modules are read off /proc/self/maps: the loader's own list is behind a lock, and the caller
 * may have interrupted its holder. Their memory is read by the kernel, which returns an error where
 * a module is just being unmapped. Caller: validate, before it ends the process. Async-signal-safe;
 * allocates nothing.
 */
typedef struct note {
    Elf64_Nhdr header;
    char name[8];
} note_t;

static const note_t own_note
    __attribute__((used, aligned(4), section(".note.hakheap"))) = {{8, 0, 1}, "hakheap"};

static bool read_memory(void *out, uintptr_t at, size_t bytes)
{
    struct iovec to = {out, bytes}, from = {(void *)at, bytes};
    return syscall(SYS_process_vm_readv, getpid(), &to, 1, &from, 1, 0) == (long)bytes;
}

/* Whether one of the notes from `at` on is another copy's. */
static bool notes_have_a_copy(uintptr_t at, size_t bytes)
{
    note_t note;
    /* More is no module's, but a file that only looks like one. */
    bytes = hak_min(bytes, 16 * HAK_PAGE);
    for (size_t used = 0; used + sizeof note <= bytes;) {
        if (!read_memory(&note, at + used, sizeof note)) return false;
        bool ours = at + used == (uintptr_t)&own_note;
        if (!ours && memcmp(&note, &own_note, sizeof note) == 0) return true;
        used += sizeof note.header + hak_round_up(note.header.n_namesz, 4) +
                hak_round_up(note.header.n_descsz, 4);
    }
    return false;
}

/* A module's first page is mapped at `base`, and begins with what the loader reads: its header, and
 * a list of its parts. */
static bool module_has_a_copy(uintptr_t base)
{
    Elf64_Ehdr header;
    Elf64_Phdr part;
    if (!read_memory(&header, base, sizeof header)) return false;
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_phentsize != sizeof part)
        return false;
    uintptr_t shift = header.e_type == ET_DYN ? base : 0;
    for (size_t i = 0; i < header.e_phnum; i++) {
        if (!read_memory(&part, base + header.e_phoff + i * sizeof part, sizeof part)) return false;
        if (part.p_type == PT_NOTE && notes_have_a_copy(shift + part.p_vaddr, part.p_memsz))
            return true;
    }
    return false;
}

/* A hexadecimal number, after which `*text` stands at what follows it. */
static uintptr_t hexadecimal(const char **text)
{
    uintptr_t value = 0;
    for (;; (*text)++) {
        char c = **text;
        if (c >= '0' && c <= '9') value = value * 16 + (uintptr_t)(c - '0');
        else if (c >= 'a' && c <= 'f') value = value * 16 + (uintptr_t)(c - 'a' + 10);
        else return value;
    }
}

/* A line of the file: "7f00-7f20 r--p 00000000 08:01 1234   /usr/lib/libx.so". Gives the path of a
 * file whose first page is mapped here, else NULL. */
static const char *module_of_line(const char *line, uintptr_t *base)
{
    *base = hexadecimal(&line);
    const char *offset = strchr(line, ' ');
    if (offset) offset = strchr(offset + 1, ' ');
    if (!offset || *++offset == '\0' || hexadecimal(&offset) != 0) return NULL;
    return strchr(offset, '/');
}

/* Reads lines into a buffer, the rest of a line that is longer is left out. */
typedef struct lines {
    int file;
    size_t used, filled;
    char buffer[1024];
} lines_t;

static bool next_byte(lines_t *lines, char *out)
{
    if (lines->used == lines->filled) {
        long got = syscall(SYS_read, lines->file, lines->buffer, sizeof lines->buffer);
        if (got <= 0) return false;
        lines->filled = (size_t)got;
        lines->used = 0;
    }
    *out = lines->buffer[lines->used++];
    return true;
}

static bool next_line(lines_t *lines, char *out, size_t bytes)
{
    size_t length = 0;
    for (char c; next_byte(lines, &c);) {
        if (c == '\n') {
            out[length] = '\0';
            return true;
        }
        if (length < bytes - 1) out[length++] = c;
    }
    return false;
}

bool os_other_copy(char *path, size_t bytes)
{
    char line[512];
    bool found = false;
    lines_t lines = {
        .file = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC)};
    if (lines.file < 0) return false;
    while (!found && next_line(&lines, line, sizeof line)) {
        uintptr_t base;
        const char *name = module_of_line(line, &base);
        if (!name || !module_has_a_copy(base)) continue;
        found = true;
        size_t length = hak_min(strlen(name), bytes - 1);
        memcpy(path, name, length);
        path[length] = '\0';
    }
    syscall(SYS_close, lines.file);
    return found;
}
