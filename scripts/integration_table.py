#!/usr/bin/env python3
"""Prints the table of scripts/integration.sh: medians and quartiles, paired by round.

scripts/integration_table.py <raw.csv>

`best peer / hakheap` compares seconds within each round with the peer whose median is best: more than 1 is faster
than that peer.
"""
import csv
import statistics
import sys
from collections import defaultdict


ENOUGH = 9  # rounds


def quartiles(values):
    """The median and both quartiles; of one value, that value."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def text(values, scale=1.0, digits=3):
    return "{:.{d}f} [{:.{d}f} {:.{d}f}]".format(*(each * scale for each in quartiles(values)), d=digits)


def print_program(name, sides):
    """sides: allocator -> round -> row."""
    rounds = max(len(rounds) for rounds in sides.values())
    few = "" if rounds >= ENOUGH else f" (fewer than {ENOUGH}: shows that it runs, compares nothing)"
    print(f"\n{name}, {rounds} rounds{few}: median [quartiles]")
    print(f"  {'':10} {'seconds':26} {'a second':30} {'peak MiB':24} {'idle MiB':24}")
    for allocator in sorted(sides, key=lambda side: (side != "hakheap", side)):
        rows = list(sides[allocator].values())
        column = {key: [float(row[key]) for row in rows] for key in ("seconds", "rate", "peak_kib", "idle_kib")}
        print(f"  {allocator:10} {text(column['seconds']):26} {text(column['rate'], digits=0):30}"
              f" {text(column['peak_kib'], 1 / 1024, 1):24} {text(column['idle_kib'], 1 / 1024, 1):24}")
    peers = {side: statistics.median(float(row["seconds"]) for row in rounds.values())
             for side, rounds in sides.items() if side != "hakheap"}
    if not peers or "hakheap" not in sides:
        return
    best = min(peers, key=peers.get)
    ratios = [float(sides[best][each]["seconds"]) / float(row["seconds"])
              for each, row in sides["hakheap"].items() if each in sides[best]]
    if ratios:
        print(f"  best peer / hakheap: {text(ratios)} ({best}); above 1: hakheap is faster")


def main():
    table = defaultdict(lambda: defaultdict(dict))
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            table[row["program"]][row["allocator"]][row["round"]] = row
    for name in sorted(table):
        print_program(name, table[name])


main()
