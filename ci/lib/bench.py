#!/usr/bin/env python3
"""Table, plot and goals from the output of pfnmap_bench.

usage: bench.py --log LOG --out DIR [--tap FILE] [--note TEXT]...

LOG is anything that has the benchmark's rows in it, with or without "# " in front: eight fields between
tabs, method place nr metric reps median min max, values per page. Writes bench.tsv, table.md, bench.svg
and bench.png to DIR and prints the table. Exit status: 0 all goals met, 1 not, 2 no usable data.
"""

import argparse
import os
import re
import subprocess
import sys

METHODS = ("single", "loop", "batch", "iter", "remap", "mixed", "mixedbatch", "mixediter", "sparse", "zero")
PLACES = ("ram", "vram")
METRICS = ("insert_ns", "fault_ns", "fault1_ns", "munmap_ns", "fork_ns")
TITLES = {
    "insert_ns": "insertion", "fault_ns": "page fault, all of it", "fault1_ns": "one touch per window, per touch",
    "munmap_ns": "munmap", "fork_ns": "fork",
}
FIELDS = ("method", "place", "nr", "metric", "reps", "median", "min", "max")
NUMBER = r"\d+(?:\.\d+)?"
ROW = re.compile(rf"^(?:# ?)*([a-z0-9]+)\t([a-z]+)\t(\d+)\t([a-z0-9]+_(?:ns|faults))\t(\d+)\t({NUMBER})\t({NUMBER})\t({NUMBER})\s*$")

# name, method, nr, factor, method to compare with, its nr, metric
GOALS = [
    ("batch of 512 against remap_pfn_range", "batch", 512, 1.15, "remap", 512, "insert_ns"),
    ("batch of 512 against the loop", "batch", 512, 0.25, "loop", 512, "insert_ns"),
    ("batch of 1 against vmf_insert_pfn", "batch", 1, 1.02, "single", 1, "insert_ns"),
    ("batch of 1 against vmf_insert_pfn", "batch", 1, 1.02, "single", 1, "fault_ns"),
    ("munmap after a batch against after the loop", "batch", 512, 1.02, "loop", 512, "munmap_ns"),
    ("fork after a batch against after the loop", "batch", 512, 1.10, "loop", 512, "fork_ns"),
    ("munmap of a run against page by page", "batch", 512, 0.5, "sparse", 1, "munmap_ns"),
    ("fork of a run against page by page", "batch", 512, 0.5, "sparse", 1, "fork_ns"),
    ("mixed batch of 512 against vmf_insert_mixed", "mixedbatch", 512, 0.25, "mixed", 1, "insert_ns"),
    ("mixed batch of 1 against vmf_insert_mixed", "mixedbatch", 1, 1.10, "mixed", 1, "insert_ns"),
]


class DataError(Exception):
    """The log cannot be used."""


def read_rows(path, known=True):
    """{(method, place, nr, metric): (reps, median, min, max)}; known: of pfnmap_bench, no others."""
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode("utf-8", errors="replace").replace("\0", "")
    except OSError as err:
        raise DataError(f"{path}: {err.strerror}") from err
    rows = {}
    for line in text.split("\n"):
        match = ROW.match(line.rstrip("\r"))
        if not match:
            continue
        method, place, nr, metric, reps, *values = match.groups()
        if known and (method not in METHODS or place not in PLACES or metric not in METRICS):
            raise DataError(f"{path}: row with an unknown name: {line.strip()}")
        key = (method, place, int(nr), metric)
        if key in rows:
            raise DataError(f"{path}: {' '.join(str(k) for k in key)} is there twice")
        median, low, high = (float(v) for v in values)
        if not low <= median <= high or int(reps) < 1:
            raise DataError(f"{path}: impossible row: {line.strip()}")
        rows[key] = (int(reps), median, low, high)
    if not rows:
        raise DataError(f"{path}: no measurement in it")
    return rows


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def order(key):
    method, place, nr, metric = key
    return METHODS.index(method), PLACES.index(place), nr, METRICS.index(metric)


def write_tsv(rows, path):
    with open(path, "w", encoding="utf-8") as stream:
        stream.write("\t".join(FIELDS) + "\n")
        for key in sorted(rows, key=order):
            stream.write("\t".join([*(str(k) for k in key), *(f"{v:g}" for v in rows[key])]) + "\n")


def goals(rows):
    """(name, met, description) per goal and place."""
    for name, method, nr, factor, other, other_nr, metric in GOALS:
        for place in PLACES:
            title = f"{name}: {metric}, {place}"
            mine = rows.get((method, place, nr, metric))
            base = rows.get((other, place, other_nr, metric))
            if mine is None or base is None:
                lacking = [f"{m} {place} {n} {metric}" for m, n, row in
                           ((method, nr, mine), (other, other_nr, base)) if row is None]
                yield title, False, f"not measured: {', '.join(lacking)}", factor
            elif base[2] <= 0 or mine[2] <= 0:
                yield title, False, f"{number(mine[2])} and {number(base[2])} per page cannot be right", factor
            else:
                # The least of each: an interrupt can only add to it.
                ratio = mine[2] / base[2]
                yield title, ratio <= factor, f"{number(mine[2])} / {number(base[2])} = {ratio:.3f}", factor


def markdown(rows, notes):
    lines = ["Instructions per page, median of the repetitions.", ""]
    lines += [note for note in notes] + ([""] if notes else [])
    spread = 0.0
    for key, (_, median, low, high) in rows.items():
        if median:
            spread = max(spread, (high - low) / median)
    for place in PLACES:
        part = {key: row for key, row in rows.items() if key[1] == place}
        if not part:
            continue
        lines += [f"| {place} | nr | " + " | ".join(METHODS) + " |", "|---|--:|" + "--:|" * len(METHODS)]
        for metric in METRICS:
            for nr in sorted({key[2] for key in part if key[3] == metric}):
                cells = [part.get((method, place, nr, metric)) for method in METHODS]
                lines.append(f"| {TITLES[metric]} | {nr} | " +
                             " | ".join(number(cell[1]) if cell else "-" for cell in cells) + " |")
        lines.append("")
    lines += ["| goal | measured | limit | |", "|---|---|--:|---|"]
    for title, met, text, factor in goals(rows):
        lines.append(f"| {title} | {text} | {factor:.2f} | {'met' if met else '**not met**'} |")
    lines += ["", f"Largest spread of a row, (max - min) / median: {100 * spread:.1f} %"]
    return "\n".join(lines) + "\n"


def plot(rows, out):
    """bench.svg and bench.png: insertion cost over the size of the window."""
    data, blocks = [], {}
    for place in PLACES:
        for method in METHODS:
            points = sorted((key[2], row[1:]) for key, row in rows.items()
                            if key[0] == method and key[1] == place and key[3] == "insert_ns" and row[1] > 0)
            if points:
                blocks.setdefault(place, []).append((method, len(data)))
                data.append("".join(f"{nr} {m:g} {low:g} {high:g}\n" for nr, (m, low, high) in points))
    if not blocks:
        return
    dat = os.path.join(out, "bench.dat")
    with open(dat, "w", encoding="utf-8") as stream:
        stream.write("\n\n".join(data))
    script = []
    for terminal, name in (("svg size 900,420 dynamic background rgb 'white' font 'Helvetica,13'", "bench.svg"),
                           ("pngcairo size 1350,630 font 'Helvetica,14'", "bench.png")):
        script += [f"set terminal {terminal}", f"set output '{name}'",
                   f"set multiplot layout 1,{len(blocks)}",
                   "set logscale x 2", "set logscale y 10", "set grid", "set key top right",
                   "set xlabel 'pages per window'", "set xtics (1, 16, 64, 512)", "set xrange [0.8:640]"]
        for place, curves in blocks.items():
            script += [f"set title 'insertion, {place}'",
                       f"set ylabel '{'instructions per page' if place == next(iter(blocks)) else ''}'",
                       "plot " + ", ".join(f"'bench.dat' index {index} using 1:2 with linespoints lw 2 title '{method}'"
                                           for method, index in curves)]
        script += ["unset multiplot", "unset output"]
    try:
        subprocess.run(["gnuplot"], input="\n".join(script) + "\n", text=True, check=True, cwd=out,
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except FileNotFoundError as err:
        raise DataError("gnuplot is missing; to install what is needed: ci/run deps") from err
    except subprocess.CalledProcessError as err:
        raise DataError(f"gnuplot: {err.stderr.strip()}") from err
    finally:
        os.remove(dat)
    for name in ("bench.svg", "bench.png"):
        if not os.path.getsize(os.path.join(out, name)):
            raise DataError(f"gnuplot wrote nothing to {name}")


def write_tap(path, results, digits):
    """A point per goal, (name, met, description, limit); no file without a path."""
    if not path:
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write("TAP version 13\n")
        for count, (title, met, what, limit) in enumerate(results, 1):
            stream.write(f"{'ok' if met else 'not ok'} {count} - {title}\n# {what}, limit {limit:.{digits}f}\n")
        stream.write(f"1..{len(results)}\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Table, plot and goals from the output of pfnmap_bench.")
    parser.add_argument("--log", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--tap", help="a TAP point per goal goes here")
    parser.add_argument("--note", action="append", default=[], help="a line above the table")
    args = parser.parse_args(argv)
    try:
        rows = read_rows(args.log)
        os.makedirs(args.out, exist_ok=True)
        write_tsv(rows, os.path.join(args.out, "bench.tsv"))
        text = markdown(rows, args.note)
        with open(os.path.join(args.out, "table.md"), "w", encoding="utf-8") as stream:
            stream.write(text)
        print(text, end="")
        plot(rows, args.out)
    except DataError as err:
        print(f"bench: {err}", file=sys.stderr)
        return 2
    results = list(goals(rows))
    write_tap(args.tap, results, 2)
    return 0 if all(met for _, met, _, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
