#!/usr/bin/env python3
"""Compiles the code of README.md and docs/*.md, runs its programs; looks at commands and links.

  scripts/docs_code.py [--archive FILE] [ROOT]   FILE: libhakheap.a; without it nothing is run
  scripts/docs_code.py --site DIRECTORY          links of the pages that `make docs` has made
  scripts/docs_code.py --self-test               proves that each check can fail

A block of C or C++ that has a main is a program: it is compiled as it stands, and run. Any other
block is put into a function of its own, behind the includes of `PREAMBLE`. An HTML comment on the
line before the block says more, in parts with a semicolon between them:

  <!-- code: given hak_heap_t *heap, size_t size -->   parameters of that function
  <!-- code: file -->                                  not in a function: it has functions itself
  <!-- code: needs jemalloc -->                        only where the library is installed (`NEEDS`)
  <!-- code: dies DOUBLE_FREE -->                      the program ends in a line with that code
  <!-- code: prints TEXT -->                           the program writes that, among other things

Commands: a line of a `sh` block, or text in backticks, that begins with make names targets of the
Makefile; a `sh` block is sound for bash. Links: a page that is linked to exists.

The last line is `N passed, N failed`. Exits 1 where something failed.
"""
import argparse
import collections
import concurrent.futures
import html.parser
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
# What a piece of a program may well have.
PIECE = ["-Wno-unused-variable", "-Wno-unused-parameter", "-Wno-unused-but-set-variable",
         "-Wno-unused-function", "-Wno-unused-label"]
PREAMBLE = "".join(f"#include <{name}>\n" for name in [
    "hakheap.h", "errno.h", "pthread.h", "setjmp.h", "stdbool.h", "stdint.h", "stdio.h", "stdlib.h",
    "string.h"])
# Header, include line, flags of the libraries that other allocators' code needs.
NEEDS = {
    "sqlite": ("/usr/include/sqlite3.h", "hakheap/sqlite.h", []),
    "jemalloc": ("/usr/include/jemalloc/jemalloc.h", "jemalloc/jemalloc.h", []),
    "mimalloc": ("/usr/include/mimalloc.h", "mimalloc.h", []),
    "talloc": ("/usr/include/talloc.h", "talloc.h", []),
    "apr": ("/usr/include/apr-1.0/apr_pools.h", "apr_pools.h",
            ["-isystem", "/usr/include/apr-1.0", "-D_GNU_SOURCE"]),
    "postgresql": ("/usr/include/postgresql/15/server/postgres.h", "utils/memutils.h",
                   ["-isystem", "/usr/include/postgresql/15/server", "-include", "postgres.h"]),
}
LANGUAGES = {"c": ("gcc", "c", "-std=gnu11"), "cpp": ("g++", "c++", "-std=c++17")}
RUN_LIMIT = 60

Block = collections.namedtuple("Block", "file line language comment text")
Result = collections.namedtuple("Result", "name complaint skipped", defaults=(None, None))


# ---- Reading ----

def pages(root):
    return [page for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]
            if page.exists()]


def blocks(page):
    """The fenced blocks of a page, each with the comment on the line before it."""
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r"^ {0,3}(```+)(\w*)\s*$", lines[at])
        if not fence:
            at += 1
            continue
        end = at + 1
        while end < len(lines) and lines[end].strip() != fence[1]:
            end += 1
        said = re.fullmatch(r"<!-- code: (.*) -->", lines[at - 1].strip()) if at else None
        text = "".join(f"{line}\n" for line in lines[at + 1:end])
        yield Block(page, at + 1, fence[2], said[1] if said else "", text)
        at = end + 1


def prose(page):
    """Lines of a page outside of blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


# ---- Code ----

def words_of(comment):
    """The parts of a comment, as a dictionary; raises ValueError for one that is not known."""
    parts = {}
    for part in filter(None, map(str.strip, comment.split(";"))):
        key, _, value = part.partition(" ")
        if key not in ("given", "file", "needs", "dies", "prints"):
            raise ValueError(f"`{key}` is no word of such a comment")
        if key == "needs" and value not in NEEDS:
            raise ValueError(f"`{value}` is no library that is known here")
        parts[key] = value.strip()
    return parts


def whole(block, words):
    """The source that is compiled, with numbers of lines as in the page."""
    mark = f'#line {block.line + 1} "{block.file.name}"\n'
    if is_program(block):
        return mark + block.text
    top = PREAMBLE + (f"#include <{NEEDS[words['needs']][1]}>\n" if "needs" in words else "")
    if "file" in words:
        return top + mark + block.text
    lines = block.text.splitlines(keepends=True)
    top += "".join(line for line in lines if line.startswith("#include"))
    body = "".join("\n" if line.startswith("#include") else line for line in lines)
    given = words.get("given") or ("void" if block.language == "c" else "")
    return f"{top}void piece({given});\nvoid piece({given})\n{{\n{mark}{body}}}\n"


def is_program(block):
    return re.search(r"\bint main\(", block.text) is not None


def run(argv, text=None, limit=300):
    """Exit status and all that was written; a program that hangs has status None."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=limit,
                              env={**os.environ, "LC_ALL": "C"})
    except subprocess.TimeoutExpired:
        return None, f"did not end in {limit} s"
    return done.returncode, done.stdout + done.stderr


def run_program(path, words):
    status, text = run([path], "", RUN_LIMIT)
    if "dies" in words:
        line = f"hakheap: {words['dies']}: "
        return None if status == -6 and line in text else f"did not die of {words['dies']}: {text}"
    if status != 0:
        return f"ended with status {status}: {text}"
    if words.get("prints", "") not in text:
        return f"did not print `{words['prints']}`: {text}"
    return None


def prove(block, root, archive):
    """Compiles a block and runs what is a program."""
    name = f"{block.file.relative_to(root)}:{block.line}"
    try:
        words = words_of(block.comment)
    except ValueError as error:
        return Result(name, str(error))
    compiler, language, standard = LANGUAGES[block.language]
    needs = NEEDS.get(words.get("needs"))
    if needs and not os.path.exists(needs[0]):
        return Result(name, skipped=f"{words['needs']} is not installed")
    argv = [compiler, "-x", language, standard, "-O1", *WARNINGS, f"-I{root / 'include'}",
            *(needs[2] if needs else []), *([] if is_program(block) else PIECE)]
    with tempfile.TemporaryDirectory() as scratch:
        if not (is_program(block) and archive):
            status, text = run([*argv, "-fsyntax-only", "-"], whole(block, words))
            return Result(name, None if status == 0 else text)
        program = f"{scratch}/program"
        status, text = run([*argv, "-", "-x", "none", str(archive), "-pthread", "-o", program],
                           whole(block, words))
        return Result(name, text if status != 0 else run_program(program, words))


# ---- Commands ----

def targets(root):
    """Names that make knows. A Makefile is read, not run: its own targets may build."""
    text = (root / "Makefile").read_text().replace("\\\n", " ")
    names = set()
    for line in re.findall(r"^([^\s#=][^=\n]*?):(?!=)", text, re.M):
        names.update(line.split())
    for line in re.findall(r"^\.PHONY:(.*)$", text, re.M):
        names.update(line.split())
    return names


def complaint_of_make(command, known):
    """What is wrong with a command that begins with make; None where nothing is."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        return str(error)
    skip = False
    for word in words[1:]:
        if word in ("&&", "||", ";", "|"):
            break
        if skip or word.startswith("-") or "=" in word or re.search(r"[<>$]", word):
            skip = word in ("-f", "-C")
            if skip:
                return None  # another Makefile
            continue
        if word not in known:
            return f"`{word}` is no target of the Makefile"
    return None


def commands(root):
    known = targets(root)
    for page in pages(root):
        found = [(number, span) for number, line in prose(page)
                 for span in re.findall(r"`([^`]+)`", line)]
        for block in blocks(page):
            if block.language == "sh":
                status, text = run(["bash", "-n"], block.text)
                name = f"{page.relative_to(root)}:{block.line}"
                yield Result(name, None if status == 0 else text)
                found += [(block.line + 1 + number, line)
                          for number, line in enumerate(block.text.splitlines())]
        for number, text in found:
            for command in re.findall(r"(?:^|&& |sudo )(make\b[^&]*)", text):
                name = f"{page.relative_to(root)}:{number}"
                yield Result(name, complaint_of_make(command, known))


# ---- Links ----

def links(root):
    for page in pages(root):
        for number, line in prose(page):
            for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
                if re.match(r"[a-z]+:|#", target):
                    continue
                path = page.parent / urllib.parse.unquote(target.partition("#")[0])
                yield Result(f"{page.relative_to(root)}:{number}",
                             None if path.exists() else f"{target} does not exist")


class Page(html.parser.HTMLParser):
    """Names that a page has, and what it links to."""

    def __init__(self, path):
        super().__init__()
        self.names, self.targets = set(), []
        self.feed(path.read_text(errors="replace"))

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key == "id" or (key == "name" and tag == "a"):
                self.names.add(value)
            elif value and (key == "href" or key == "src" or (key == "data" and tag == "object")):
                self.targets.append(value)


def site(directory):
    read = {path.name: Page(path) for path in sorted(directory.glob("*.html"))}
    if not read:
        yield Result(str(directory), "no page is there")
    for name, page in read.items():
        for target in sorted(set(page.targets)):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = urllib.parse.unquote(target).partition("#")
            file = file or name
            there = (directory / file).exists()
            if there and anchor and file in read:
                there = anchor in read[file].names
            yield Result(f"{name}: {target}", None if there else "leads nowhere")


# ---- All of it ----

def everything(root, archive):
    code = [block for page in pages(root) for block in blocks(page) if block.language in LANGUAGES]
    with concurrent.futures.ThreadPoolExecutor(2) as workers:
        results = list(workers.map(lambda block: prove(block, root, archive), code))
    if not code:
        results.append(Result(str(root), "there is no code"))
    return results + list(commands(root)) + list(links(root))


def tell(results):
    failed = 0
    for result in results:
        if result.complaint is not None:
            failed += 1
            print(f"{result.name}: {result.complaint.strip() or 'failed'}")
    for reason in sorted({result.skipped for result in results if result.skipped}):
        number = sum(result.skipped == reason for result in results)
        print(f"docs_code: {number} blocks were left out: {reason}")
    passed = sum(result.complaint is None and not result.skipped for result in results)
    print(f"{passed} passed, {failed} failed")
    return failed


SOUND = "# Page\n\nSee [it](README.md) and `make all`.\n\n"
FAULTS = {  # what is added to a sound page, and what must be said of it
    "```c\nint main(void) { return 1; }\n```\n": "ended with status 1",
    "```c\nint main(void) { return x; }\n```\n": "undeclared",
    "```c\nint number = hak_heap_destroy();\n```\n": "too few arguments",
    "```cpp\nhak_heap_t *heap = 1;\n```\n": "invalid conversion",
    "<!-- code: dies SIZE -->\n```c\nint main(void) { return 0; }\n```\n": "did not die of SIZE",
    "<!-- code: prints no -->\n```c\nint main(void) { return 0; }\n```\n": "did not print `no`",
    "<!-- code: give int x -->\n```c\nx = 1;\n```\n": "`give` is no word",
    "```sh\nmake nothing\n```\n": "`nothing` is no target",
    "```sh\nif true\n```\n": "syntax error",
    "Try `make none`.\n": "`none` is no target",
    "See [that](gone.md).\n": "gone.md does not exist",
}


def self_test():
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        (root / "include").symlink_to(ROOT / "include")
        (root / "Makefile").write_text("all:\n")
        archive = root / "empty.a"
        run(["ar", "rcs", str(archive)])
        sound = SOUND + ("```c\nint main(void) { return 0; }\n```\n"
                         "<!-- code: given hak_heap_t *heap -->\n"
                         "```c\nhak_heap_free(heap, NULL);\n```\n")
        for fault, words in [("", None), *FAULTS.items()]:
            (root / "README.md").write_text(sound + fault)
            said = [result.complaint for result in everything(root, archive) if result.complaint]
            right = not said if words is None else len(said) == 1 and words in said[0]
            if not right:
                bad += 1
                print(f"docs_code: self-test: {words or 'the sound page'}: {said}")
        (root / "index.html").write_text('<a id="here" href="#here">a</a><a href="#gone">b</a>')
        if [result.complaint for result in site(root)].count("leads nowhere") != 1:
            bad += 1
            print("docs_code: self-test: a link that leads nowhere is not found")
    print("docs_code: self-test " + ("fails" if bad else "holds"))
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=pathlib.Path)
    parser.add_argument("--site", type=pathlib.Path)
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=ROOT)
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test() > 0
    if arguments.site:
        return tell(list(site(arguments.site))) > 0
    return tell(everything(arguments.root.resolve(), arguments.archive)) > 0


if __name__ == "__main__":
    sys.exit(main())
