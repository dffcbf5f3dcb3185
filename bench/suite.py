#!/usr/bin/env python3
"""Every benchmark on hakheap and on every allocator that is installed, as one page.

Rounds are interleaved: a round runs each experiment once, in random order, and within it each allocator once, in random
order, so that a drift of the machine meets all of them alike; and from copies of programs and libraries that no other round
has. What is compared is the ratio within a round. Needs python3, gcc and make; gnuplot for the plots. Writes build/bench/page/: raw.csv, summary.csv, tables.md, *.svg and index.html.
"""
import argparse
import collections
import csv
import html
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "build/bench/page"
GLOBAL = ["mimalloc", "jemalloc", "tcmalloc"]  # what "the best global malloc" is chosen from
OURS = ["hakheap fast", "hakheap checked"]
# Each row's adapter and options, in the order of the tables.
ROWS = {
    "hakheap fast": ("hakheap", "--level fast"),
    "hakheap checked": ("hakheap", "--level checked"),
    "system": ("system", ""),
    "mimalloc": ("mimalloc", ""),
    "mimalloc heaps": ("mimalloc_heap", ""),
    "mimalloc 3": ("mimalloc3", ""),
    "jemalloc": ("jemalloc", ""),
    "jemalloc arenas": ("jemalloc_arena", ""),
    "tcmalloc": ("tcmalloc", ""),
    "APR pools": ("apr", ""),
}
# Who runs an experiment, of those that have a program for it.
WHO = {
    "all": list(ROWS),
    "one thread": [row for row in ROWS if row != "jemalloc arenas"],
    "heaps": OURS + ["mimalloc heaps", "mimalloc 3", "jemalloc arenas"],
    "many heaps": OURS + ["mimalloc heaps"],  # jemalloc has not so many, and mimalloc 3 takes a quarter of a MB for each
    "many users": [row for row in ROWS if row not in ("jemalloc arenas", "mimalloc 3")],
    "hakheap": OURS,
}
REFUSED = 2  # the exit code of a program whose allocator cannot do what it is asked for

# A figure: its key in the program's line, what it is called, and whether more is better. `bar` is what the figure has to
# reach: (against, FAST's factor, CHECKED's factor); against is "best" (of GLOBAL), a row, None for an absolute value, or
# OVER and an experiment's name for the difference to that.
OVER = "over "
Figure = collections.namedtuple("Figure", "key words more bar extra", defaults=(None, ()))
# An experiment: a workload's program, its options, its figures, its rounds, a key of WHO, and how the program's name ends.
Experiment = collections.namedtuple("Experiment", "name program options figures rounds quick who suffix",
                                    defaults=("15", "2", "all", "-{}"))

PAIRS = Figure("mps", "M pairs/s", True, ("best", 1.05, 1.00), (("jemalloc arenas", 2.5, 2.5),))
HOP16 = Figure("mps", "M pairs/s", True, ("best", 0.80, 0.80))
HOP256 = Figure("mps", "M pairs/s", True, ("best", 0.40, 0.40))
PEAK = Figure("rss_peak_kib", "KiB at the end", False)
PEAK256 = PEAK._replace(bar=(None, 80000, 80000))  # 5 MB are live
TRIMMED = Figure("rss_trimmed_kib", "KiB after trim", False)
LARSON = "--seconds 0.3 --placement "


def larson(name, options, pairs=PAIRS, peak=PEAK):
    return Experiment("larson " + name, "larson", LARSON + options, (pairs, peak, TRIMMED))


def battle(size, blocks, rounds, quick):
    figures = (
        Figure("peak_over_floor", "peak / floor", False, ("floor", 1.005, 1.005) if size == 16 else None),
        Figure("peak_kib", "KiB at peak", False, ("best", 1.0, 1.0) if size == 16 else None),
        Figure("metadata_kib", "of it metadata", False), Figure("cached_kib", "cached", False),
        Figure("arrays_kib", "the program's array", False), Figure("page_tables_kib", "page tables", False),
        Figure("freed_kib", "KiB after free", False),
        Figure("flushed_kib", "KiB after flush", False),
        Figure("trimmed_over_idle_kib", "KiB over idle after trim", False, (None, 150, 150) if size == 16 else None),
    )
    return Experiment(f"battle {blocks // 1000} K x {size}", "battle", f"--blocks {blocks} --size {size}", figures, rounds,
                      quick)


def live(heaps, kib=None, mappings=None, fork=None, rounds="15", quick="2", who="heaps"):
    figures = (
        Figure("kib_a_heap", "KiB a heap", False, kib), Figure("create_ns", "ns to create", False),
        Figure("block_ns", "ns for the first block", False), Figure("destroy_ns", "ns to destroy", False),
        Figure("mappings_total", "mappings", False, mappings), Figure("fork_ms", "ms a fork", False, fork),
    )
    return Experiment(f"lifecycle live {heaps // 1000} K", "lifecycle", f"--what live --heaps {heaps}", figures, rounds,
                      quick, who)


def flushcost(blocks, rounds, words="", threads=""):
    figures = (Figure("flush_ns", "ns to flush", False), Figure("trim_ns", "ns to trim", False),
               Figure("reset_ns", "ns to reset", False), Figure("destroy_ns", "ns to destroy", False),
               Figure("beside_us", "us, longest call beside a trim", False))
    return Experiment(f"flushcost {blocks // 1000} K blocks{words}", "flushcost",
                      f"--blocks {blocks} --rounds {rounds}{threads}", figures, who="heaps")


USERS = "5"  # rounds of the workloads of heaps that come, breathe and go
MEAN = 251.5 / 1024  # KiB of a block of 16 to 1,023 bytes, log-uniform


def sessions(heaps, blocks, churn=0, sizes="", quick="0"):
    most = 4.6 if sizes else round(1.5 * blocks * MEAN + 6 if churn else 1.15 * blocks * MEAN + 4.5, 1)
    if churn:
        figures = (Figure("churned_live_kib", "KiB live a heap", False),
                   Figure("churned_kib", "KiB a heap", False, (None, most, most)),
                   Figure("pair_ns", "CPU ns a pair", False))
    else:
        figures = (Figure("live_kib", "KiB live a heap", False),
                   Figure("filled_kib", "KiB a heap", False, (None, most, most)),
                   Figure("fill_us", "CPU us to fill", False), Figure("destroy_us", "CPU us to destroy", False),
                   Figure("life_us", "CPU us of both", False, None if sizes else ("system", 1.0, 1.0)))
    return Experiment(f"sessions {heaps:,} x {blocks:,}" + (f", replaced {churn} times" if churn else ""), "sessions",
                      f"--heaps {heaps} --blocks {blocks} --churn {churn}{sizes}", figures, USERS, quick, "many users")


def queries(allocations):
    peers = (("mimalloc heaps", 1.0, 1.0), ("tcmalloc", 1.0, 1.0)) if allocations >= 1000 else ()
    figures = (Figure("cpu_ns", "CPU ns a cycle", False, None if peers else (None, 2000, 2000), peers),
               Figure("cycle_ns", "ns by the clock", False), Figure("faults", "page faults a cycle", False))
    return Experiment(f"queries of {allocations:,}", "queries", f"--allocations {allocations} --rounds 15", figures, USERS,
                      "1", "one thread")


def waves(mib, least, most, later=0, quick="0"):
    gone = mib * 1024 // 10
    figures = (Figure("cpu_ms", "CPU ms a wave", False, ("best", 1.2, 1.2)), Figure("wave_ms", "ms by the clock", False),
               Figure("faults", "page faults a wave", False), Figure("peak_kib", "KiB at the top", False),
               Figure("freed_kib", "KiB freed", False))
    if later:
        figures += (Figure("later_kib", f"KiB {later} s later", False, (None, gone, gone)),)
    words = f"blocks of {least:,}" if least == most else "mixed"
    return Experiment(f"waves of {mib} MiB, {words}", "waves",
                      f"--mib {mib} --min {least} --max {most} --waves 5 --seconds {later}", figures, USERS, quick,
                      "one thread")


def bulk(blocks, size):
    figures = [Figure(f"{order}_{key}_ns", f"{order}: {words}", False, ("best", 1.5, 1.5) if key == "pair" else None)
               for order in ("same", "reverse", "random")
               for key, words in (("malloc", "CPU ns a malloc"), ("free", "a free"), ("pair", "a pair"))]
    rounds = 1 if blocks * size >= 1 << 28 else 3
    return Experiment(f"bulk {blocks:,} x {size:,}", "bulk", f"--blocks {blocks} --size {size} --rounds {rounds}",
                      tuple(figures), USERS, "1" if size == 64 else "0", "one thread")


EXPERIMENTS = [
    larson("shared, 1 thread", "shared --threads 1"),
    larson("shared, 2 threads", "shared --threads 2"),
    larson("isolated, 1 thread", "isolated --threads 1"),
    larson("isolated, 2 threads", "isolated --threads 2"),
    larson("mt8", "shared --threads 8"),
    larson("hop16", "hop --heaps 16", HOP16),
    larson("hop256", "hop --heaps 256", HOP256, PEAK256),
    larson("mid", "shared --min 8192 --max 32768 --blocks 500", Figure("mps", "M pairs/s", True, ("best", 1.0, 1.0))),
    larson("large", "shared --min 1048576 --max 4194304 --blocks 16",
           Figure("mps", "M pairs/s", True, ("best", 1.0, 1.0))),
    Experiment("handoff", "handoff", "--seconds 0.3", (
        Figure("mps", "M pairs/s", True, ("best", 1.2, 1.2)), Figure("rss_end_kib", "KiB at the end", False))),
    Experiment("mixed", "mixed", "--seconds 0.3", (
        Figure("mops", "M operations/s", True, ("best", 1.0, 1.0)), Figure("rss_end_kib", "KiB at the end", False),
        Figure("rss_trimmed_kib", "KiB after trim", False))),
    Experiment("sharing", "sharing", "--size 16", (
        Figure("shared_percent", "% of lines shared", False, (None, 10, 10)),
        Figure("write_over_alone", "write / write alone", False, (None, 1.3, 1.3)))),
    Experiment("latency", "latency", "--seconds 0.3 --flush-ms 0", (
        Figure("p50_ns", "p50 ns", False), Figure("p99_ns", "p99 ns", False),
        Figure("p999_ns", "p99.9 ns", False, ("best", 1.0, 1.0)), Figure("p9999_ns", "p99.99 ns", False),
        Figure("max_ns", "max ns", False))),
    Experiment("latency, flush every 10 ms", "latency", "--seconds 0.3 --flush-ms 10", (
        Figure("p50_ns", "p50 ns", False), Figure("p99_ns", "p99 ns", False), Figure("p999_ns", "p99.9 ns", False),
        Figure("p9999_ns", "p99.99 ns", False, (OVER + "latency", 50000, 50000)), Figure("max_ns", "max ns", False))),
    Experiment("longrun", "longrun", "", (
        Figure("peak_kib", "KiB at peak", False, ("best", 1.0, 1.0)),
        Figure("end_freed_kib", "KiB, 90 % freed", False), Figure("end_trimmed_kib", "KiB after trim", False),
        Figure("trimmed_over_pages", "over the live pages", False, (None, 0.05, 0.05))), quick="1"),
]
EXPERIMENTS += [
    sessions(10000, 10), sessions(10000, 30, quick="1"), sessions(10000, 100), sessions(2000, 300), sessions(2000, 1000),
    sessions(100000, 1, sizes=" --min 64 --max 64"),
    sessions(2000, 10, 50), sessions(2000, 30, 50, quick="1"), sessions(2000, 100, 50), sessions(500, 300, 50),
    sessions(200, 1000, 50),
    *(queries(n) for n in (100, 1000, 10000, 100000)),
    waves(64, 64, 64), waves(64, 256, 256, 2, "1"), waves(64, 8192, 8192), waves(64, 65536, 65536), waves(64, 64, 65535),
    waves(256, 64, 64), waves(256, 256, 256), waves(256, 8192, 8192, 2), waves(256, 65536, 65536), waves(256, 64, 65535),
    Experiment("waves, large blocks in turn", "waves", "--large 300", (
        Figure("cpu_ms", "CPU ms", False, ("system", 1.1, 1.1)), Figure("faults", "page faults", False),
        Figure("live_kib", "KiB live", False), Figure("resident_kib", "KiB resident", False, ("mimalloc", 1.0, 1.0))),
        USERS, "1", "one thread"),
    *(bulk(blocks, size) for size in (64, 256, 1024, 4096) for blocks in (1000, 10000, 131072)),
]
EXPERIMENTS += [battle(16, n, "15", "1") for n in (100000, 500000, 1000000, 2000000, 5000000)]
EXPERIMENTS += [battle(s, n, "3", "0") for s in (64, 256, 1024) for n in (100000, 1000000)]
EXPERIMENTS += [
    Experiment("lifecycle empty", "lifecycle", "--what empty --batch 100",
               (Figure("cycle_ns", "ns a cycle", False, (None, 150, 150)),), who="heaps"),
    Experiment("lifecycle hundred", "lifecycle", "--what hundred --batch 20",
               (Figure("cycle_ns", "ns a cycle", False, (None, 2000, 2000)),), who="heaps"),
    live(1000),
    live(10000, (None, 12, 12)),
    live(100000, (None, 12, 12), (None, 2000, 2000), (None, 100, 100), "15", "1", "many heaps"),
    flushcost(1000, 9), flushcost(10000, 9), flushcost(100000, 3), flushcost(500000, 1),
    *(flushcost(100000, 3, f", {n} {threads}", f" --threads {n} --busy {busy}") for n in (2, 8, 32) if n <= os.cpu_count()
      for busy, threads in ((0, "threads asleep"), (1, "threads busy"))),
    Experiment("flushcost 10 K idle heaps", "flushcost", "--heaps 10000 --blocks 1 --rounds 1", (
        Figure("idle_flush_ms", "ms to flush all", False, (None, 10, 10)),
        Figure("idle_again_ms", "ms again, nothing cached", False), Figure("idle_trim_ms", "ms to trim all", False)),
        who="heaps"),
    Experiment("128 CPUs touch every heap", "simulated", "--heaps 500", (
        Figure("kib_a_heap", "KiB a heap, magazines filled", False),
        Figure("flushed_kib_a_heap", "after flush", False), Figure("trimmed_kib_a_heap", "after trim", False)),
        "3", "1", "hakheap", ""),
]


def attempt(command, **more):
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, **more)


def printed(done):
    """What a command has printed; the end of the suite where it has failed."""
    if done.returncode:
        sys.exit(f"suite.py: {' '.join(map(str, done.args))} ended with {done.returncode}\n{done.stderr}")
    return done.stdout.strip()


def run(command, **more):
    return printed(attempt(command, **more))


def make(*targets):
    return run(["make", "--no-print-directory", "-s", *targets], env={k: v for k, v in os.environ.items()
                                                                     if k not in ("MAKEFLAGS", "MAKELEVEL")})


def fields(line):
    return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)


def build(experiments):
    """Builds everything; returns the rows whose allocator is installed."""
    make("all")
    for workload in sorted({e.program for e in experiments}):
        make("-f", "bench/bench.mk", workload)
    adapters = make("-f", "bench/bench.mk", "adapters").split()
    return [row for row in ROWS if ROWS[row][0] in adapters]


def program_name(experiment, adapter):
    return f"build/bench/{experiment.program}{experiment.suffix.format(adapter)}"


def program(experiment, row):
    return ROOT / program_name(experiment, ROWS[row][0])


def serve(experiment, rows):
    """The rows of an experiment."""
    return [row for row in rows if row in WHO[experiment.who] and program(experiment, row).exists()]


def environment(experiments, rows):
    programs = {row: program(e, row) for e in reversed(experiments) for row in serve(e, rows)}  # the first has the say
    info = {row: fields(run([programs[row], "--info"])) for row in rows if row in programs}
    line = run(["bash", "-c", "source bench/environment.sh; environment_line \"$1\" \"$2\"", "-",
                make("-f", "bench/bench.mk", "compiler"), info[OURS[0]]["mode"]])
    files = [f"{row.replace(' fast', '')} {its['version']} ({its['library']})"
             for row, its in info.items() if row != "hakheap checked"]
    return line, files, [row for row in GLOBAL + ["mimalloc 3"] if row not in rows]


class Progress:
    def __init__(self, total):
        self.total, self.done, self.began = total, 0, time.monotonic()

    def step(self, words):
        spent = time.monotonic() - self.began
        left = f"about {spent / self.done * (self.total - self.done) / 60:.1f} min left" if self.done else ""
        if sys.stderr.isatty():
            print(f"\r\033[K{self.done}/{self.total} {left}  {words}", end="", file=sys.stderr, flush=True)
        elif self.done % max(1, self.total // 20) == 0:
            print(f"{self.done}/{self.total} {left}", file=sys.stderr, flush=True)
        self.done += 1


def stage(programs):
    """Copies of the programs and of the allocators' libraries for one round. Where a file's pages happen to lie in memory can
    make a tenth of a program's speed, and lasts as long as the file; so no allocator keeps its luck for the whole run."""
    here = PAGE / "stage"
    shutil.rmtree(here, ignore_errors=True)
    (here / "bench").mkdir(parents=True)
    libraries = {ROOT / "build/libhakheap.so.0"}
    for path in programs:
        shutil.copy(path, here / "bench")
        libraries |= set(map(pathlib.Path, re.findall(r"lib(?:mimalloc|jemalloc|tcmalloc|apr-1)\S* => (/\S+)", run(["ldd", path]))))
    for path in libraries:
        shutil.copy(path, here)
    return here


def measure(experiments, rows, rounds_of, seed):
    """Runs everything and writes raw.csv. Returns results[experiment][row][key], a list of values, one a round, and
    refusals[experiment], what the programs said that cannot run it; their rows stay empty."""
    dice = random.Random(seed)
    results = {e.name: {r: collections.defaultdict(list) for r in serve(e, rows)} for e in experiments}
    refusals = {e.name: {} for e in experiments}
    progress = Progress(sum(rounds_of(e) * len(results[e.name]) for e in experiments))
    with open(PAGE / "raw.csv", "w", newline="", encoding="utf-8") as file:
        raw = csv.writer(file)
        raw.writerow(["round", "experiment", "allocator", "options", "line"])
        for round_ in range(max(rounds_of(e) for e in experiments)):
            here = stage(sorted({program(e, row) for e in experiments for row in results[e.name]}))
            libraries = {**os.environ, "LD_LIBRARY_PATH": str(here)}
            for e in dice.sample(experiments, len(experiments)):
                if round_ >= rounds_of(e):
                    continue
                for row in dice.sample(list(results[e.name]), len(results[e.name])):
                    progress.step(f"{e.name}: {row}")
                    if row in refusals[e.name]:
                        continue
                    options = (e.options + " " + ROWS[row][1]).split()
                    done = attempt([here / "bench" / program(e, row).name, *options], env=libraries)
                    if done.returncode == REFUSED:
                        refusals[e.name][row] = f"no figures of {row}: {done.stderr.strip()}"
                        continue
                    line = printed(done)
                    raw.writerow([round_ + 1, e.name, row, " ".join(options), line])
                    got = fields(line)
                    for figure in e.figures:
                        if got.get(figure.key, "-") != "-":
                            results[e.name][row][figure.key].append(float(got[figure.key]))
    shutil.rmtree(here)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return results, refusals


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, mid, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, mid, high


def best_of(of_rows, figure):
    """The global malloc with the best median of a figure; None unless all of GLOBAL are there."""
    medians = {r: statistics.median(of_rows[r][figure.key]) for r in GLOBAL if of_rows.get(r, {}).get(figure.key)}
    if len(medians) < len(GLOBAL):
        return None
    return (max if figure.more else min)(medians, key=medians.get)


def ratios(of_rows, row, against, key):
    pairs = zip(of_rows[row][key], of_rows[against][key])
    return [a / b if b else (1.0 if a == b else float("inf")) for a, b in pairs]


def measured(experiment, figure, row, against, results):
    """What a bar compares: its words, and a value for each round; no values where what it compares with has not run."""
    of_rows = results[experiment.name]
    values = of_rows[row][figure.key]
    if against is None:
        return figure.words, values
    if against == "floor":  # a factor, and 0.3 MB
        slack = 300 / statistics.median(of_rows[row]["peak_kib"])
        return "peak / floor, less 0.3 MB", [value - slack for value in values]
    if against.startswith(OVER):
        other = against[len(OVER):]
        base = results[other][row][figure.key] if other in results else []
        return f"{figure.words}, {against}", [a - b for a, b in zip(values, base)]
    peer = best_of(of_rows, figure) if against == "best" else against
    if peer not in of_rows:
        return "the peers are not all installed", []
    return f"{figure.words}, of {peer}", ratios(of_rows, row, peer, figure.key)


def judge(experiments, results):
    """One verdict for each bar and each of our rows: (experiment, figure, row, words, value, wanted, met)."""
    verdicts = []
    for e in experiments:
        for figure in e.figures:
            for against, *factors in ([figure.bar] if figure.bar else []) + list(figure.extra):
                for row, factor in zip(OURS, factors):
                    if not results[e.name].get(row, {}).get(figure.key):
                        continue
                    words, values = measured(e, figure, row, against, results)
                    value = quartiles(values) if values else None
                    met = bool(value) and (value[1] >= factor if figure.more else value[1] <= factor)
                    verdicts.append((e, figure, row, words, value, factor, met))
    return verdicts


def number(value):
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.1f}"


def table(experiment, of_rows):
    """Rows of cells; the first row is the head."""
    figures = [f for f in experiment.figures if any(of_rows[r][f.key] for r in of_rows)]
    out = [["allocator"] + [f.words for f in figures]]
    for row, values in of_rows.items():
        cells = [row]
        for f in figures:
            if not values[f.key]:
                cells.append("-")
                continue
            low, mid, high = quartiles(values[f.key])
            cells.append(number(mid) + (f" ({number(low)} to {number(high)})" if high > low else ""))
        out.append(cells)
    return out


def verdict_rows(verdicts, lost_only):
    out = [["experiment", "row", "figure", "median (quartiles)", "bar", "met"]]
    for e, figure, row, words, value, wanted, met in verdicts:
        if lost_only and met:
            continue
        text = f"{value[1]:.3f} ({value[0]:.3f} to {value[2]:.3f})" if value else "-"
        sign = ">=" if figure.more else "<="
        out.append([e.name, row, words, text, f"{sign} {wanted}", "yes" if met else "NO"])
    return out


def losses(experiments, results):
    """Every figure in which one of ours is behind the best global malloc, bar or no bar."""
    out = [["experiment", "row", "figure", "ours", "best", "ratio"]]
    for e in experiments:
        of_rows = results[e.name]
        for figure in e.figures:
            best = best_of(of_rows, figure)
            if not best:
                continue
            for row in OURS:
                if not of_rows[row][figure.key]:
                    continue
                ratio = statistics.median(ratios(of_rows, row, best, figure.key))
                if ratio < 1 if figure.more else ratio > 1:
                    out.append([e.name, row, figure.words, number(statistics.median(of_rows[row][figure.key])),
                                f"{number(statistics.median(of_rows[best][figure.key]))} ({best})", f"{ratio:.2f}"])
    return out


def markdown(rows):
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in rows[1:]]) + "\n"


def html_table(rows):
    def cells(row, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row) + "</tr>"
    return "<table>" + cells(rows[0], "th") + "".join(cells(r, "td") for r in rows[1:]) + "</table>"


def html_lines(lines):
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def plot(experiment, of_rows):
    """A bar for each allocator, with quartiles, of the first figure; the SVG's text, or nothing without gnuplot."""
    if not shutil.which("gnuplot"):
        return ""
    figure = experiment.figures[0]
    name = "".join(c if c.isalnum() else "-" for c in experiment.name)
    if not any(values[figure.key] for values in of_rows.values()):
        return ""
    data = "".join(f"\"{r}\" {m} {l} {h}\n" for r, v in of_rows.items() if v[figure.key]
                   for l, m, h in [quartiles(v[figure.key])])
    script = f"""set terminal svg size 720,260 font 'sans,11' background '#ffffff'
set output '{PAGE / name}.svg'
set style data histograms
set style histogram errorbars gap 1 lw 1
set style fill solid 0.6
set boxwidth 0.7
set yrange [0:*]
set ylabel "{figure.words.replace('%', 'percent')}"
set title "{experiment.name}" noenhanced
set xtics noenhanced
unset key
$d << EOD
{data}EOD
plot $d using 2:3:4:xtic(1) lc rgb '#3a6ea5'
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True, cwd=PAGE)
    text = (PAGE / f"{name}.svg").read_text(encoding="utf-8")
    return text[text.index("<svg"):]


STYLE = """body{font:15px/1.45 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.7rem 0}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:left}
th{background:#eee}svg{max-width:100%;height:auto}"""


def write_page(experiments, results, refusals, head, verdicts):
    line, files, missing = head
    lost, behind = verdict_rows(verdicts, True), losses(experiments, results)
    parts = [("Environment", "<p>" + html.escape(line) + "</p><p>" + html.escape("; ".join(files)) + "</p>"
              + (f"<p>Not installed, and skipped: {html.escape(', '.join(missing))}</p>" if missing else ""))]
    parts.append(("Where we lose: bars not met", html_table(lost) if len(lost) > 1 else "<p>None.</p>"))
    parts.append(("Where we lose: figures behind the best global malloc",
                  html_table(behind) if len(behind) > 1 else "<p>None.</p>"))
    parts.append(("All bars", html_table(verdict_rows(verdicts, False))))
    tables = [f"{line}\n\n{'; '.join(files)}\n", "## Bars\n", markdown(verdict_rows(verdicts, False)),
              "## Where we lose\n", markdown(behind)]
    for e in experiments:
        of_rows = results[e.name]
        rows = table(e, of_rows)
        command = f"{program_name(e, '*')} {e.options}"
        parts.append((e.name, f"<p><code>{html.escape(command)}</code></p>"
                      + html_table(rows) + html_lines(refusals[e.name].values()) + plot(e, of_rows)))
        tables += [f"## {e.name}\n", f"`{command}`\n", markdown(rows),
                   *(f"{words}\n" for words in refusals[e.name].values())]
    (PAGE / "tables.md").write_text("\n".join(tables), encoding="utf-8")
    body = "".join(f"<h2>{html.escape(title)}</h2>{text}" for title, text in parts)
    (PAGE / "index.html").write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>hakheap: benchmarks</title><style>{STYLE}</style>"
        f"<h1>hakheap: benchmarks</h1><p>Medians of interleaved rounds, quartiles in brackets; ratios are medians of the "
        f"ratios within a round.</p>{body}</html>", encoding="utf-8")
    with open(PAGE / "summary.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["experiment", "allocator", "figure", "rounds", "quartile1", "median", "quartile3"])
        for e in experiments:
            for row, values in results[e.name].items():
                for f in e.figures:
                    if values[f.key]:
                        out.writerow([e.name, row, f.key, len(values[f.key]), *quartiles(values[f.key])])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", default=os.environ.get("BENCH") == "quick",
                        help="few rounds; also BENCH=quick")
    parser.add_argument("--rounds", type=int, help="this many rounds of everything that runs")
    parser.add_argument("--only", action="append", help="experiments whose name contains this; may be given several times")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--list", action="store_true", help="print the experiments and run nothing")
    options = parser.parse_args()
    experiments = [e for e in EXPERIMENTS if any(word in e.name for word in options.only or [""])]
    if options.list or not experiments:
        print("\n".join(e.name for e in EXPERIMENTS))
        return 0 if options.list else 2

    def rounds_of(e):
        count = int(e.quick if options.quick else e.rounds)
        return count and (options.rounds or count)
    experiments = [e for e in experiments if rounds_of(e)]
    PAGE.mkdir(parents=True, exist_ok=True)
    rows = build(experiments)
    head = environment(experiments, rows)
    print(head[0] + "\n" + "; ".join(head[1]))
    if head[2]:
        print("not installed, and skipped: " + ", ".join(head[2]))
    if not shutil.which("gnuplot"):
        print("gnuplot is not installed: no plots")
    results, refusals = measure(experiments, rows, rounds_of, options.seed)
    verdicts = judge(experiments, results)
    write_page(experiments, results, refusals, head, verdicts)
    for e in experiments:
        for words in refusals[e.name].values():
            print(f"{e.name}: {words}")
    for cells in verdict_rows(verdicts, False):
        print("{:40} {:16} {:34} {:26} {:>9} {}".format(*cells))
    print(f"{PAGE.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
