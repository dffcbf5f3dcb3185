#!/usr/bin/env python3
"""Breaks the library on purpose, a small change at a time, and shows which test notices.

A mutant is a row of tests/mutants/*.toml: a file of src/, a text in it and what the text becomes.
Each is applied to a copy of the tree, built with asserts and counters, and put through the tests
from the cheapest to the dearest, until one of them fails: then the mutant is killed. One that
survives all of them is a missing test, or changes nothing that can be seen; then its row says why.

  scripts/mutants.py check     proves that each row can be applied; needs no compiler
  scripts/mutants.py self-test proves that the check can fail
  scripts/mutants.py run       kills; results go to build/mutants/results.tsv, and what is there
                               already is not run again while the sources and tests are the same
  scripts/mutants.py planted   the rows that are planted bugs: the fuzzer alone has a minute each

The last line of run and planted is `N passed, N failed`. Exits 1 where something failed, and where
less than nine tenths of all mutants are killed.

A row: name; file; kind; old, new; optional: after, a text that stands once in the file, and the
first `old` behind it is meant (else `old` stands once in the file); planted, which kind of bug the
fuzzer must find; survives, a sentence that says why no test can see the change.
"""
import argparse
import collections
import concurrent.futures
import fcntl
import fnmatch
import functools
import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLES = ROOT / "tests/mutants"
WORK = ROOT / "build/mutants"
BUILT = ["Makefile", "src", "include", "packaging", "tests", "examples"]
COPIED = BUILT + ["README.md", "scripts", "docs", "bench"]
CHECKED = "build/debug-counters"
THREADS = "build/debug-counters-thread"
BUILD = ["make", "-s", "DEBUG=1", "COUNTERS=1"]
LEAST_KILLED = 0.9
FUZZ_FIRST = 10  # seconds
FUZZ_EPISODE = 240  # an episode that has begun, on a busy machine; the fuzzer itself tells a hang
PLANTED_LIMIT = 60
BUILD_LIMIT = 900
FOUND = b"FAILED: seed"  # of the fuzzer, which goes on to cut down the sequence
MOST_MEMORY = 8 << 30  # bytes resident of a step: the tests need less than one GiB

PLANTED = ["lost refund of a budget", "double hand-out", "missed zero", "wrong usable size",
           "mapping that leaks", "drain never called", "bound ignored", "home never returned to",
           "count off by one after fork", "content not copied by realloc",
           "statistics wrong by a block"]
FIELDS = {"name", "file", "kind", "old", "new"}
OPTIONAL = {"after", "planted", "survives"}
# What runs for long or starts compilers. The suite `tree` looks at texts, and would see any change.
SLOW_SUITES = "docs|fuzz|programs|fault|stress|debugger|plugins|examples"
# The suites that know most of a module, where that is not just the one of its name.
SUITES = {"area": "@(home|adapt|limits)", "drain": "@(home|adapt|coarse|region|limits|windows)",
          "refill": "@(home|api|coarse|large|region|limits|giveback|pocket)",
          "trim": "@(flush_trim|windows|coarse|region|limits|ends|kept)",
          "runs": "@(giveback|home|region)", "mapping": "@(large|misuse|api|windows|kept)",
          "record": "meta", "life": "@(api|home|kept)", "resize": "@(api|limits)",
          "pointer": "misuse", "heap": "@(api|region)", "walk": "@(stats|home)",
          "validate": "@(stats|charges)", "report": "stats", "os_linux": "os",
          "percpu_rseq": "percpu", "recall": "@(limits|ledger|committed)",
          "ledger": "@(ledger|windows|limits|committed)", "tree": "@(limits|api|ends)",
          "api_tree": "@(limits|kept)",
          "request": "@(limits|limits2|committed|api|api_inside|bounds|kept|request)"}
# How far a run goes with a mutant; what survives to an early end is not noted.
ENDS = ["own", "quick", "all"]
# These kinds are races where they are anything: ThreadSanitizer looks at them, too.
RACES = {"order relaxed", "race"}

Result = collections.namedtuple("Result", "name key tests outcome step by seconds")


# ---- The table ----

def read_table():
    rows = []
    for path in sorted(TABLES.glob("*.toml")):
        rows += tomllib.loads(path.read_text())["mutant"]
    return rows


def place(row, text):
    """Where a row's old text begins; -1 where that is not certain."""
    begin = 0
    if "after" in row:
        if text.count(row["after"]) != 1:
            return -1
        begin = text.index(row["after"])
        return text.find(row["old"], begin)
    return text.find(row["old"]) if text.count(row["old"]) == 1 else -1


def apply(row, text):
    at = place(row, text)
    return text[:at] + row["new"] + text[at + len(row["old"]):]


def complaints_of(row):
    fields = set(row)
    if not FIELDS <= fields <= FIELDS | OPTIONAL or not all(isinstance(v, str) for v in
                                                            row.values()):
        yield "its fields are not those of a row"
        return
    path = ROOT / "src" / row["file"]
    if not path.is_file():
        yield f"there is no src/{row['file']}"
    elif not row["old"] or place(row, path.read_text()) < 0:
        yield "its old text is not found, or not only once"
    if row["old"] == row["new"]:
        yield "it changes nothing"
    if row.get("planted", PLANTED[0]) not in PLANTED:
        yield f"no such planted bug: {row['planted']}"
    if "planted" in row and "survives" in row:
        yield "a planted bug cannot survive"
    if "survives" in row and len(row["survives"].split()) < 4:
        yield "its reason to survive is no sentence"


def complaints(rows):
    bad = [(row.get("name"), words) for row in rows for words in complaints_of(row)]
    names = collections.Counter(row.get("name") for row in rows)
    bad += [(name, "its name is not its own") for name, count in names.items() if count > 1]
    planted = {row.get("planted") for row in rows}
    bad += [(kind, "no row is planted with this bug") for kind in PLANTED if kind not in planted]
    return bad


def check(rows, say):
    bad = complaints(rows)
    for name, words in bad:
        print(f"mutants: {name}: {words}")
    if bad or say:
        print(f"mutants: {len(rows)} rows, {len(bad)} complaints")
    return 1 if bad else 0


def self_test(rows):
    """Proves that the check can fail: each way of breaking a table is found."""
    first, rest = rows[0], rows[1:]
    without = {name: value for name, value in first.items() if name != "kind"}
    ways = {
        "fields": [without, *rest],
        "no src/": [first | {"file": "nowhere.c"}, *rest],
        "not found": [first | {"old": "no such text stands anywhere"}, *rest],
        "only once": [first | {"old": "("}, *rest],
        "nothing": [first | {"new": first["old"]}, *rest],
        "no such planted": [first | {"planted": "anything"}, *rest],
        "no sentence": [first | {"survives": "because"}, *rest],
        "not its own": [first, *rows],
        "no row": [row for row in rows if row.get("planted") != PLANTED[-1]],
    }
    unseen = [way for way, table in ways.items()
              if not any(way in words for _, words in complaints(table))]
    for way in unseen:
        print(f"mutants: self-test: not found: {way}")
    print(f"mutants: self-test {'fails' if unseen else 'holds'}")
    return 1 if unseen else 0


# ---- Results ----

def digest(*parts):
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else part.encode())
        whole.update(b"\0")
    return whole.hexdigest()[:16]


@functools.cache  # what is edited while mutants run is not what the workers have copied
def digest_of_files(*paths):
    files = sorted(p for path in paths for p in ([path] if path.is_file() else path.rglob("*"))
                   if p.is_file() and TABLES not in p.parents and "__pycache__" not in p.parts)
    return digest(*(part for p in files for part in (str(p.relative_to(ROOT)), p.read_bytes())))


class Results:
    """One line for each mutant that came to an end, the last of a name counts."""
    path = WORK / "results.tsv"

    def __init__(self):
        self.lock = threading.Lock()
        self.rows = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines()[1:]:
                row = Result(*line.split("\t"))
                self.rows[row.name] = row

    @staticmethod
    def key(row):
        return digest(digest_of_files(ROOT / "src" / row["file"]), row["old"], row["new"],
                      row.get("after", ""))

    @staticmethod
    def tests(outcome, step, by):
        """What the outcome rests on: the file of the test that killed, else all tests."""
        suite = ROOT / f"tests/test_{by.split('::')[0]}.c"
        if outcome == "killed" and "::" in by and suite.is_file():
            return digest_of_files(suite)
        if outcome == "killed" and step.startswith("fuzz"):
            return digest_of_files(ROOT / "tests/fuzz")
        return digest_of_files(ROOT / "tests")

    def known(self, row):
        got = self.rows.get(row["name"])
        if got and got.key == self.key(row) and got.outcome != "broken" and \
                got.tests == self.tests(got.outcome, got.step, got.by):
            return got
        return None

    def add(self, row, outcome, step, by, seconds):
        by = " ".join(by.split())[:100]
        got = Result(row["name"], self.key(row), self.tests(outcome, step, by), outcome, step, by,
                     f"{seconds:.0f}")
        with self.lock:
            self.rows[got.name] = got
            fresh = not self.path.exists()
            with self.path.open("a") as out:
                if fresh:
                    out.write("\t".join(Result._fields) + "\n")
                out.write("\t".join(got) + "\n")
        return got


# ---- Processes: of each step nothing is left behind ----

class Stopped(Exception):
    pass


stop = threading.Event()


def processes_of(mark):
    """The processes of a step, with their resident bytes. Test runners start sessions of their own,
    so that neither a group nor a session holds all of them: each inherits a variable."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark in (entry / "environ").read_bytes():
                pages = int((entry / "statm").read_text().split()[1])
                found[int(entry.name)] = pages * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            continue  # it has ended
    return found


def end_all(mark):
    """Until there is none: the killed may just have started others."""
    while left := processes_of(mark):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)


def environment(mark, more):
    mine = {name: value for name, value in os.environ.items()
            if not name.startswith(("HAKHEAP_", "HAK_TEST_", "MAKE", "MFLAGS"))}
    name, value = mark.decode().split("=")
    return mine | more | {name: value}


def run_step(argv, cwd, limit, log, more=None):
    """Returns (how it ended, the text): an exit status, "hang", "memory" or "found"."""
    mark = f"MUTANT_STEP={os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}".encode()
    with open(log, "wb") as out:
        child = subprocess.Popen(argv, cwd=cwd, env=environment(mark, more or {}), stdout=out,
                                 stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                 start_new_session=True)
    end, turn, status = time.monotonic() + limit, 0, None
    try:
        while status is None:
            try:
                status = child.wait(0.1)
            except subprocess.TimeoutExpired:
                turn += 1
                if stop.is_set():
                    raise Stopped from None
                status = why_to_end(mark, end, turn, log)
    finally:
        end_all(mark)
        child.wait()
    return status, pathlib.Path(log).read_text(errors="replace")


def why_to_end(mark, end, turn, log):
    if time.monotonic() > end:
        return "hang"
    if turn % 3 == 0 and sum(processes_of(mark).values()) > MOST_MEMORY:
        return "memory"
    return "found" if FOUND in pathlib.Path(log).read_bytes() else None


# ---- A worker: a built copy of the tree, from which each mutant gets its own ----

class Worker:
    def __init__(self, name, jobs, threads):
        self.home = WORK / name
        self.home.mkdir(parents=True, exist_ok=True)
        self.hold = (self.home / "lock").open("w")
        try:
            fcntl.flock(self.hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"mutants: another run uses {self.home.relative_to(ROOT)}")
        self.tree, self.pristine = self.home / "tree", self.home / "pristine"
        self.make = BUILD + [f"-j{max(1, (os.cpu_count() or 1) // jobs)}"]
        self.threads = threads  # whether a build under ThreadSanitizer is wanted
        self.fuzz = (ROOT / "tests/fuzz").is_dir()

    def build(self, variant, *goals):
        more = ["SANITIZE=thread"] if variant == THREADS else []
        goals = [f"{variant}/{goal}" if "/" in goal else goal for goal in goals]
        return run_step(self.make + more + goals, self.tree, BUILD_LIMIT, self.home / "build.log")

    def prepare(self):
        """Builds the tree as it is, once; later runs find it."""
        stamp = self.home / "stamp"
        wanted = digest_of_files(*(ROOT / name for name in BUILT)) + str(self.threads)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        for old in (self.tree, self.pristine):
            if old.exists():
                shutil.rmtree(old)
        self.tree.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, self.tree / name)
        fuzz = ["tests/fuzz"] if self.fuzz else []
        jobs = [(CHECKED, ["tests", *fuzz])]
        if self.threads:
            jobs.append((THREADS, ["stress", *fuzz]))
        for variant, goals in jobs:
            status, text = self.build(variant, *goals)
            if status != 0:
                sys.exit(f"mutants: the tree itself does not build:\n{text[-3000:]}")
        # The copy is put back under the same name for each mutant: the tests have it built in.
        self.tree.rename(self.pristine)
        stamp.write_text(wanted)

    def fresh(self, row=None):
        shutil.rmtree(self.tree, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", self.pristine, self.tree], check=True)
        if row:
            path = self.tree / "src" / row["file"]
            path.write_text(apply(row, path.read_text()))

    def suite(self, name, pattern, limit, more=None):
        """A step that runs Criterion suites."""
        argv = [f"{CHECKED}/tests/run", "--fail-fast", "--color=never"]
        if pattern:
            argv.append(f"--filter={pattern}")
        return name, argv, limit, {"HAK_TEST_QUICK": "1"} | (more or {})

    def fuzzer(self, name, variant, seconds, seed, more=None):
        prefix = ["setarch", "-R"] if variant == THREADS else []
        argv = [*prefix, f"{variant}/tests/fuzz", "--seconds", str(seconds), "--seed", str(seed)]
        return name, argv, seconds + FUZZ_EPISODE, more or {}

    def threaded(self):
        """What runs under ThreadSanitizer."""
        options = {"TSAN_OPTIONS": "halt_on_error=1"}
        for each in sorted((self.tree / "tests").glob("stress_*.c")):
            argv = ["setarch", "-R", f"{THREADS}/tests/{each.stem}", "--seconds", "2"]
            yield f"tsan {each.stem}", argv, 90, options
        if self.fuzz:
            yield self.fuzzer("fuzz tsan", THREADS, FUZZ_FIRST, 3, options)

    def steps(self, row, seconds, until):
        """From the cheapest to the dearest: goals to build, or a step to run. Limits are far above
        what a step takes, so that a busy machine kills nothing."""
        yield CHECKED, ["tests/run"]
        own = row["file"].partition(".")[0]
        own = SUITES.get(own, own)
        yield self.suite(f"suite {own}", f"{own}/*", 300)
        if until == "own":
            return
        if self.fuzz:
            yield CHECKED, ["tests/fuzz"]
            yield self.fuzzer("fuzz", CHECKED, FUZZ_FIRST, 1)
        yield self.suite("quick suites", f"!(tree|{SLOW_SUITES})/*", 600)
        if until == "quick":
            return
        if row["kind"] in RACES:
            yield THREADS, ["stress"] + (["tests/fuzz"] if self.fuzz else [])
            yield from self.threaded()
        yield CHECKED, ["tests"]
        yield self.suite("slow suites", f"@({SLOW_SUITES})/*", 900)
        yield self.suite("locked", f"!(tree|{SLOW_SUITES})/*", 600, {"HAKHEAP_RSEQ": "0"})
        yield self.suite("locked, slow", "@(fault|stress)/*", 900, {"HAKHEAP_RSEQ": "0"})
        if self.fuzz and seconds > FUZZ_FIRST:
            yield self.fuzzer("fuzz, longer", CHECKED, seconds - FUZZ_FIRST, 2)

    def kill(self, row, seconds, until):
        """Returns (outcome, step, by)."""
        for step in self.steps(row, seconds, until):
            if len(step) == 2:
                status, text = self.build(step[0], *step[1])
                if status != 0:
                    return "broken", "build", first_line(text, "error:")
                continue
            name, argv, limit, more = step
            status, text = run_step(argv, self.tree, limit, self.home / "step.log", more)
            if status != 0:
                return "killed", name, killer(status, text)
        return "survived", "", ""


def first_line(text, word):
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if word in line), lines[-1] if lines else "")


def killer(status, text):
    """The first test that failed, or what was said last."""
    failed = re.search(r"\[FAIL\] (\w+::\w+)", text)
    if failed:
        return failed[1]
    if status in ("hang", "memory"):
        return status
    for word in ("FAILED: ", "SUMMARY: ThreadSanitizer", "hakheap: ", "fuzz: "):
        if word in text:
            return first_line(text, word)
    return f"exit status {status}: {first_line(text, 'failed')}"


# ---- All of them ----

def in_parallel(workers, rows, work):
    """Calls work(worker, row) for each row; a worker does one at a time."""
    idle = list(workers)
    lock = threading.Lock()

    def one(row):
        if stop.is_set():
            return
        with lock:
            worker = idle.pop()
        try:
            work(worker, row)
        except Stopped:
            pass
        finally:
            with lock:
                idle.append(worker)

    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        try:
            for each in [pool.submit(one, row) for row in rows]:
                each.result()
        except BaseException:
            stop.set()
            raise


def prove_sound(worker, results, seconds, until):
    """The tree itself must survive, or every mutant would be killed by what is wrong with it."""
    row = {"name": "(the tree itself)", "file": "base.h", "old": "", "new": worker.home.name,
           "kind": "race" if worker.threads else "none"}
    sources = digest_of_files(ROOT / "src", ROOT / "include")
    row["after"] = sources + until
    if results.known(row):
        return
    worker.fresh()
    began = time.monotonic()
    outcome, step, by = worker.kill(row, seconds, until)
    if outcome != "survived":
        sys.exit(f"mutants: the tree itself fails, without any change: {step}: {by}")
    results.add(row, outcome, step, by, time.monotonic() - began)


def prepared(names, threads):
    workers = [Worker(name, len(names), threads) for name in names]
    if not workers[0].fuzz:
        print("mutants: tests/fuzz is not there: the suites work alone", flush=True)
    in_parallel(workers, names, lambda worker, _: worker.prepare())
    return workers


def run(rows, arguments):
    results = Results()
    # In an order that makes every part of a run a fair sample.
    todo = [row for row in rows if not results.known(row)]
    todo.sort(key=lambda row: digest(row["name"]))
    if todo:
        names = [str(number) for number in range(min(arguments.jobs, len(todo)))]
        threads = arguments.until == "all" and any(row["kind"] in RACES for row in todo)
        workers = prepared(names, threads)
        prove_sound(workers[0], results, arguments.seconds, arguments.until)

        def work(worker, row):
            began = time.monotonic()
            worker.fresh(row)
            outcome, step, by = worker.kill(row, arguments.seconds, arguments.until)
            took = time.monotonic() - began
            if outcome != "survived" or arguments.until == "all":
                results.add(row, outcome, step, by, took)
            print(f"{outcome:8} {row['name']}: {step}: {by} ({took:.0f} s)", flush=True)

        in_parallel(workers, todo, work)
    return summary(rows, results, whole=arguments.only == "*")


def count_by(title, rows, results, key):
    table = collections.defaultdict(collections.Counter)
    for row in rows:
        table[key(row)][state(row, results)] += 1
    print(f"\n{title:32} {'killed':>8} {'explained':>10} {'survived':>9} {'not run':>8} {'all':>5}")
    for name, counts in sorted(table.items()):
        print(f"{name:32} {counts['killed']:8} {counts['explained']:10} {counts['survived']:9} "
              f"{counts['not run'] + counts['broken']:8} {counts.total():5}")


def state(row, results):
    got = results.known(row) or results.rows.get(row["name"])
    if not got or (got.outcome != "broken" and not results.known(row)):
        return "not run"
    if got.outcome == "survived":
        return "explained" if "survives" in row else "survived"
    return got.outcome


def summary(rows, results, whole):
    count_by("kind", rows, results, lambda row: row["kind"])
    count_by("file", rows, results, lambda row: row["file"])
    states = collections.Counter(state(row, results) for row in rows)
    dead = [results.rows[row["name"]] for row in rows if state(row, results) == "killed"]
    print("\nkilled by")
    by = collections.Counter(got.by.split("::")[0] if "::" in got.by else got.step for got in dead)
    for name, count in by.most_common():
        print(f"{name:32} {count:8}")
    print()
    for row in rows:
        if state(row, results) == "broken":
            print(f"does not build: {row['name']}: {results.rows[row['name']].by}")
        elif state(row, results) == "survived":
            print(f"survived without a reason: {row['name']}")
        elif state(row, results) == "explained":
            print(f"survived: {row['name']}: {row['survives']}")
    ran = states.total() - states["not run"]
    few = whole and states["killed"] < LEAST_KILLED * ran
    if few:
        print(f"only {states['killed']} of {ran} were killed")
    passed, failed = states["killed"] + states["explained"], states["survived"] + states["broken"]
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or few or not ran else 0


def planted(rows, arguments):
    """What the fuzzer alone finds, and how soon."""
    if not (ROOT / "tests/fuzz").is_dir():
        print("mutants: tests/fuzz is not there: nothing can be planted for it")
        print("0 passed, 1 failed")
        return 1
    worker, = prepared(["planted"], threads=False)
    passed = 0
    print(f"{'bug':32} {'mutant':34} {'seconds':>8}  found by")
    for row in [None, *(row for row in rows if "planted" in row)]:
        worker.fresh(row)
        status, text = worker.build(CHECKED, "tests/fuzz")
        if status != 0:
            print(f"does not build: {row and row['name']}: {first_line(text, 'error:')}")
            continue
        began = time.monotonic()
        seconds = PLANTED_LIMIT if row else FUZZ_FIRST
        _, argv, limit, more = worker.fuzzer("", CHECKED, seconds, 1)
        status, text = run_step(argv, worker.tree, limit, worker.home / "step.log", more)
        took = time.monotonic() - began
        # A process that hangs is found too late.
        passed += (status != 0 and took <= PLANTED_LIMIT) if row else status == 0
        bug, name = (row["planted"], row["name"]) if row else ("(none)", "")
        by = killer(status, text) if status != 0 else "nothing"
        print(f"{bug:32} {name:34} {took:8.1f}  {by}", flush=True)
    failed = 1 + sum("planted" in row for row in rows) - passed
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["check", "self-test", "run", "planted"])
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    parser.add_argument("--only", default="*",
                        help="names, files or kinds that match one of these patterns, with commas "
                             "between them")
    parser.add_argument("--seconds", type=int, default=60, help="of fuzzing for each mutant (60)")
    parser.add_argument("--until", choices=ENDS, default="all",
                        help="the module's own suite only, or the quick ones: what survives those "
                             "is not noted")
    arguments = parser.parse_args()
    rows = read_table()
    if arguments.what == "self-test":
        return self_test(rows)
    bad = check(rows, say=arguments.what == "check")
    if bad or arguments.what == "check":
        return bad
    rows = [row for row in rows if any(fnmatch.fnmatch(row[field], pattern)
                                       for pattern in arguments.only.split(",")
                                       for field in ("name", "file", "kind"))]
    return (run if arguments.what == "run" else planted)(rows, arguments)


if __name__ == "__main__":
    # Also where a shell that started this in the background has it ignored.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        stop.set()
        sys.exit("mutants: stopped; what is done stays in build/mutants/results.tsv")
