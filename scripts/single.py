#!/usr/bin/env python3
"""Makes one C file of the library, for programs that carry it in their own tree.

  scripts/single.py <directory>   writes hakheap.c and a copy of hakheap.h there
  scripts/single.py --self-test   proves on small sources what it does, and that it refuses

hakheap.c is the text of src/, lower levels first, each header once, with four changes:

  - What is hidden in the library is static here: HAK_PRIVATE stands before each function and
    variable that neither is static already nor has its name in hakheap.h.
  - A name that two files use, each for itself, gets the name of its file before it.
  - A macro of a .c file ends with the file.
  - What assembly names (its attribute says that it is hidden) stays hidden, with hak_ before it:
    gcc -flto gives static names others, and does not read assembly.

The same sources give the same bytes. Sources whose form is not understood end the run.
"""
import collections
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

HEAD = """\
/*
 * hakheap {version}: an embeddable, instance-based heap library, as one file. Made by `make single`
 * from the sources of the library; changes belong there. It needs hakheap.h beside it, and a
 * compiler that takes gnu11 or later: cc program.c hakheap.c -pthread
 *
 * -DHAK_COUNTERS=1 compiles counters in, -DHAK_DEBUG=1 asserts. -DHAK_PRIVATE= gives the names
 * inside the library to the linker, as tests need them.
 *
{license}
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "hakheap.h"

#ifndef HAK_PRIVATE
#define HAK_PRIVATE static __attribute__((unused))
#endif
"""

# Comments, strings, characters, directives with the lines that they go on in, words, any other.
TOKEN = re.compile(
    r"(?P<comment>/\*.*?\*/|//[^\n]*)"
    r"|(?P<string>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
    r"|(?P<directive>(?m:^)[ \t]*\#(?:\\\n|/\*.*?\*/|[^\n])*)"
    r"|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<number>\d[\w.]*)"
    r"|(?P<space>\s+)"
    r"|(?P<sign>.)",
    re.DOTALL)
OPEN, CLOSE = "([{", ")]}"
# Names of src/ that the C library declares in a header which another file includes.
LIBC = {"unlink"}

Token = collections.namedtuple("Token", "kind text at")
Declaration = collections.namedtuple("Declaration", "tokens at")


class Refused(Exception):
    """A source that this script does not understand."""


def tokens_of(text):
    return [Token(found.lastgroup, found.group(), found.start()) for found in TOKEN.finditer(text)]


def is_macro_call(tokens):
    """A macro that stands alone, as SIZE_CLASSES(FITS) does."""
    name = tokens[0].text
    return name.isupper() and not name.startswith("HAK_") and tokens[1].text == "("


def declarations_of(text, path):
    """What stands outside of all braces: each ends with a semicolon, a body or a directive."""
    found, current, depth, body = [], [], 0, False

    def end():
        if current:
            found.append(Declaration(list(current), current[0].at))
        current.clear()

    for token in tokens_of(text):
        if token.kind in ("comment", "space"):
            continue
        if token.kind == "directive":
            if depth == 0:
                end()
            continue
        if token.text == "{" and depth == 0:
            # A body follows the closing parenthesis of parameters; other braces follow a word or =.
            body = current[-1].text == ")"
        current.append(token)
        if token.kind == "sign" and token.text in OPEN:
            depth += 1
        elif token.kind == "sign" and token.text in CLOSE:
            depth -= 1
            if depth == 0 and (token.text == "}" and body or is_macro_call(current)):
                body = False
                end()
        elif token.text == ";" and depth == 0:
            if len(current) > 1:
                end()
            current.clear()
    if depth != 0:
        raise Refused(f"{path}: braces that do not match")
    end()
    return found


def outside(tokens):
    """The tokens outside of braces, without attributes and alignments and their parentheses."""
    out, depth, skip = [], 0, False
    for at, token in enumerate(tokens):
        if depth == 0 and token.text in ("__attribute__", "_Alignas", "_Atomic"):
            skip = at + 1 < len(tokens) and tokens[at + 1].text == "("
            continue
        if token.text in OPEN:
            depth += 1
            if depth == 1 and not skip:
                out.append(token)
        elif token.text in CLOSE:
            depth -= 1
            if depth == 0 and skip:
                skip = False
        elif depth == 0:
            out.append(token)
    return out


def name_of(tokens):
    """The name that a function or variable has: the last word before a sign that ends it."""
    words = []
    for token in outside(tokens):
        if token.kind == "word":
            words.append(token.text)
        elif token.text == "{" and {"struct", "union", "enum"} & set(words):
            words.clear()
        elif token.text != "*":
            break
    # Macros of attributes may follow the name, in capitals.
    while len(words) > 1 and words[-1].isupper() and words[-1].startswith("HAK_"):
        words.pop()
    return words[-1] if words else None


def is_type_alone(tokens):
    """struct x {...}; and the like, which declare no function or variable."""
    start = next((i for i, t in enumerate(tokens) if t.text not in ("const", "_Alignas")), 0)
    if tokens[start].text not in ("struct", "union", "enum"):
        return False
    signs = [t.text for t in outside(tokens[start:]) if t.kind != "word"]
    words = [t.text for t in outside(tokens[start:]) if t.kind == "word"]
    return (signs == ["{", ";"] and len(words) <= 2) or (signs == [";"] and len(words) == 2)


def file_names(declaration):
    """All names that a declaration gives to the rest of its file."""
    tokens = declaration.tokens
    names = set()
    if tokens[0].text == "_Static_assert" or is_macro_call(tokens):
        return names
    for at, token in enumerate(tokens):
        if token.text in ("struct", "union", "enum") and at + 1 < len(tokens):
            if tokens[at + 1].kind == "word" and at + 2 < len(tokens) and tokens[at + 2].text == "{":
                names.add(tokens[at + 1].text)
        if token.text == "enum":
            names |= enumerators(tokens[at:])
    if tokens[0].text == "typedef":
        pointer = [tokens[i + 2].text for i, t in enumerate(tokens[:-2])
                   if t.text == "(" and tokens[i + 1].text == "*"]
        names.add(pointer[0] if pointer else name_of(tokens))
    elif not is_type_alone(tokens):
        names.add(name_of(tokens))
    return names - {None}


def enumerators(tokens):
    names, depth, expected = set(), 0, False
    for token in tokens:
        if token.text in OPEN:
            depth += 1
            expected = token.text == "{" and depth == 1
        elif token.text in CLOSE:
            depth -= 1
            if depth == 0:
                break
        elif token.text == ";" and depth == 0:
            break
        elif token.text == "," and depth == 1:
            expected = True
        elif expected and token.kind == "word":
            names.add(token.text)
            expected = False
    return names


def members(tokens):
    """Places of the words that name members where a struct or union lists them."""
    found, opened, before = set(), [], ["", ""]
    solid = [token for token in tokens if token.kind not in ("space", "comment", "directive")]
    for token, after in zip(solid, solid[1:]):
        if token.text in OPEN:
            opened.append(token.text == "{" and bool({"struct", "union"} & set(before)))
        elif token.text in CLOSE:
            opened.pop()
        elif token.kind == "word" and opened and opened[-1] and after.text in (";", ",", "[", ":"):
            found.add(token.at)
        before = [before[1], token.text]
    return found


def words_of(text):
    """All words of a file that are no members."""
    tokens, words, before = tokens_of(text), set(), ""
    listed = members(tokens)
    for token in tokens:
        if token.kind == "directive":
            words |= set(re.findall(r"(?<![.\w>])[A-Za-z_]\w*", token.text))
        elif token.kind == "word" and before not in (".", "->") and token.at not in listed:
            words.add(token.text)
        if token.kind not in ("space", "comment"):
            before = "->" if token.text == ">" and before == "-" else token.text
    return words


def renamed(text, names):
    """Words of the file that are no members get other names. In macros, too, which use names."""
    tokens = tokens_of(text)
    out, before, listed = [], "", members(tokens)
    for token in tokens:
        if token.kind == "directive" and "include" not in token.text:
            out.append(re.sub(r"(?<![.\w>])(" + "|".join(sorted(names)) + r")\b",
                              lambda found: names[found.group()], token.text))
            continue
        is_member = before in (".", "->") or token.at in listed
        is_ours = token.kind == "word" and token.text in names and not is_member
        out.append(names[token.text] if is_ours else token.text)
        if token.kind not in ("space", "comment"):
            before = "->" if token.text == ">" and before == "-" else token.text
    return "".join(out)


class Source:
    def __init__(self, path):
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        first = re.match(r"/\* hakheap level (\d+): (\w+) - .+ \*/\n", self.text)
        if not first:
            raise Refused(f"{path}: line 1 names no level")
        self.level = int(first.group(1))
        self.is_header = path.suffix == ".h"
        self.declarations = declarations_of(self.text, path)
        self.words = words_of(self.text)
        self.names = set().union(*(file_names(d) for d in self.declarations))
        self.macros = re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", self.text, re.M)


def is_hidden(tokens, public):
    """Whether HAK_PRIVATE belongs before a declaration."""
    first = tokens[0].text
    if first in ("static", "typedef", "_Static_assert", "HAK_INLINE"):
        return False
    if is_type_alone(tokens) or is_macro_call(tokens):
        return False
    name = name_of(tokens)
    if not name or name.isupper() and name.startswith("HAK_"):
        raise Refused(f"what does this declare: {' '.join(t.text for t in tokens[:12])} ...")
    return name not in public


def edits_of(source, public, named):
    """Places in the text, what stands there, and what shall."""
    for declaration in source.declarations:
        first = declaration.tokens[0]
        try:
            if first.text == "extern":
                # In a .c file: what something else defines, the C library for instance.
                is_named = name_of(declaration.tokens) in named
                if source.is_header and not is_named:
                    if "[]" in "".join(t.text for t in declaration.tokens):
                        raise Refused("an array of unknown length cannot be static")
                    yield first.at, "extern", "HAK_PRIVATE"
            elif is_hidden(declaration.tokens, public | named):
                yield first.at, "", "HAK_PRIVATE "
        except Refused as refused:
            line = source.text.count("\n", 0, first.at) + 1
            raise Refused(f"{source.path}:{line}: {refused}") from None


class Single:
    def __init__(self, root):
        self.header = (root / "include/hakheap.h").read_text(encoding="utf-8")
        self.license = (root / "LICENSE").read_text(encoding="utf-8")
        self.public = set(re.findall(r"\b(hak_[a-z_]+)\(", self.header))
        paths = sorted((root / "src").glob("*.[ch]"))
        self.sources = {path.name: Source(path) for path in paths}
        # What is said to be hidden by an attribute has its name in assembly.
        self.named = {name_of(d.tokens) for source in self.sources.values() if source.is_header
                      for d in source.declarations if any(t.text == "visibility" for t in d.tokens)}
        self.seen = set()
        self.out = []

    def version(self):
        return ".".join(re.search(rf"define HAK_VERSION_{part} (\d+)", self.header).group(1)
                        for part in ("MAJOR", "MINOR", "PATCH"))

    def clashes(self, source):
        """Names of a .c file that another file or the C library uses, too, and what they become."""
        others = LIBC.union(*(o.words for o in self.sources.values() if o is not source))
        taken = others | source.words
        clashes = {}
        for name in (source.names & others) - self.declared_in_headers(source):
            prefixed = (source.path.stem + middle + name for middle in ("_", "_own_"))
            clashes[name] = next((p for p in prefixed if p not in taken), None)
            if not clashes[name]:
                raise Refused(f"{source.path}: no other name for {name}")
        return clashes

    def declared_in_headers(self, source):
        """What a .c file defines for others has its name in a header as well."""
        own = {name_of(d.tokens) for d in source.declarations
               if d.tokens[0].text not in ("static", "typedef") and not is_type_alone(d.tokens)}
        return own | self.public

    def changed(self, source):
        edits = sorted(edits_of(source, self.public, self.named), reverse=True)
        text = source.text
        for at, old, new in edits:
            text = text[:at] + new + text[at + len(old):]
        clashes = {} if source.is_header else self.clashes(source)
        return renamed(text, clashes) if clashes else text

    def add(self, source):
        self.seen.add(source.path.name)
        self.out.append(f"\n/* ==== src/{source.path.name} ==== */\n")
        for line in self.changed(source).splitlines():
            include = re.match(r'[ \t]*#[ \t]*include[ \t]+"([^"]+)"', line)
            if include:
                self.include(source, include.group(1))
            elif line != "#define _GNU_SOURCE":
                self.out.append(line)
        if not source.is_header:
            self.out += [f"#undef {name}" for name in dict.fromkeys(source.macros)
                         if name != "_GNU_SOURCE"]

    def include(self, source, name):
        if name == "hakheap.h" or name in self.seen:
            return
        if name not in self.sources:
            raise Refused(f"{source.path}: includes {name}, which is not in src/")
        self.add(self.sources[name])
        self.out.append(f"\n/* ==== src/{source.path.name}, continued ==== */")

    def text(self):
        license_lines = "\n".join((" * " + line).rstrip() for line in self.license.rstrip().split("\n"))
        self.out = [HEAD.format(version=self.version(), license=license_lines)]
        files = [source for source in self.sources.values() if not source.is_header]
        if not files:
            raise Refused("no .c files in src/")
        for source in sorted(files, key=lambda source: (source.level, source.path.name)):
            self.add(source)
        text = "\n".join(self.out) + "\n"
        for name in self.named:
            text = re.sub(rf"\b{name}\b", "hak_" + name, text)
        # A gap of one line, at most.
        return re.sub(r"\n{3,}", "\n\n", text)


# ---- That it can fail ----

FIXTURE = {
    "LICENSE": "MIT License\n",
    "include/hakheap.h": "#define HAK_VERSION_MAJOR 1\n#define HAK_VERSION_MINOR 2\n"
                         "#define HAK_VERSION_PATCH 3\nint hak_use(void);\n",
    "src/low.h": "/* hakheap level 0: low - a part */\n#ifndef LOW_H\n#define LOW_H\n"
                 "extern int low_count;\nextern int low_at __attribute__((visibility(\"hidden\")));\n"
                 "#define LOW \"mov low_at, %0\"\nstruct low { int take; };\nint low_use(struct low *low);\n"
                 "#endif\n",
    "src/low.c": "/* hakheap level 0: low - code */\n#include \"low.h\"\n#define ROW 1\n"
                 "static struct part { int take; } state;\n"
                 "int low_count;\nint low_at;\nstatic int take(void) { return ROW; }\n"
                 "int low_use(struct low *low) { return low->take + take(); /* take */ }\n",
    "src/high.c": "/* hakheap level 1: high - code */\n#include \"low.h\"\n#define ROW 2\n"
                  "static struct { int take; } state;\n"
                  "static int take(void) { return ROW; }\nint hak_use(void) { return take(); }\n",
}


def self_test():
    def made(changes):
        with tempfile.TemporaryDirectory() as name:
            root = pathlib.Path(name)
            for path, text in {**FIXTURE, **changes}.items():
                (root / path).parent.mkdir(exist_ok=True)
                (root / path).write_text(text, encoding="utf-8")
            return Single(root).text()

    text = made({})
    for words in ("hakheap 1.2.3:", "HAK_PRIVATE int low_count;\nextern int hak_low_at __attr",
                  '"mov hak_low_at, %0"', "\nint hak_low_at;",
                  "HAK_PRIVATE int low_use(struct low *low);", "static int low_take(void)",
                  "return low->take + low_take(); /* take */", "static int high_take(void)",
                  "\nint hak_use(void) { return high_take(); }", "#undef ROW",
                  "static struct { int take; } high_state;",
                  "static struct part { int take; } low_state;"):
        if words not in text:
            sys.exit(f"single: self-test: not in the file: {words}\n{text}")
    if text.count("ifndef LOW_H") != 1 or text != made({}):
        sys.exit("single: self-test: a header twice, or another file each time")
    for what, path, source in (
            ("a file without a level", "src/low.h", "int x;\n"),
            ("braces that do not match", "src/high.c", FIXTURE["src/high.c"] + "int x(void) {\n"),
            ("a header that is not there", "src/high.c",
             FIXTURE["src/high.c"] + "#include \"gone.h\"\n"),
            ("a declaration of no known form", "src/low.h",
             FIXTURE["src/low.h"].replace("extern int low_count;", "(low_count);"))):
        try:
            made({path: source})
        except Refused:
            continue
        sys.exit(f"single: self-test: {what} is not refused")
    print("single: self-test holds")


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        single = Single(ROOT)
        directory = pathlib.Path(sys.argv[1])
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hakheap.c").write_text(single.text(), encoding="utf-8")
        (directory / "hakheap.h").write_text(single.header, encoding="utf-8")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        sys.exit(f"single: {refused}")
