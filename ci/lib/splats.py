#!/usr/bin/env python3
"""Find warnings, oopses and other reports in a kernel console log.

usage: splats.py [--patterns FILE] [--allow FILE] [--variant V] [--no-min] CONSOLE...

Prints each report. Exit status: 0 none but allowed ones, 1 a report or an allowed one too often or
too seldom, 2 unreadable input or a mistake in the pattern files.
"""

import argparse
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(os.path.dirname(HERE), "splats")

CUT = "[ cut here ]"
END = "---[ end trace"
MAX_BLOCK = 500         # lines; a block without an end is taken to be over then
SHOWN = 40              # lines of a report that are kept for display

STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Lines that name functions, options or modules but never begin a report.
NOT_A_HEADER = re.compile(
    r"^\s*(?:\? )?[\w.$]+\+0x[0-9a-f]+/0x[0-9a-f]+"
    r"|^RIP: |^Code: |^Modules linked in:|^CPU: \d+ |^Hardware name:|^Tainted: "
    r"|^---\[ end |^(?:Kernel c|C)ommand line:|^Workqueue: |^Unknown kernel command line parameters")
# What continues a report that began at most so many lines ago, instead of being one more.
CONTINUES = {"trace": 200, "oops": 20}
# The line of a "cut here" block that says where; what precedes it is the message of the same report.
WHERE = re.compile(r"\bWARNING:|\bkernel BUG at\b|(?<![A-Za-z_])BUG:")


class DataError(Exception):
    """A mistake in a pattern or allow file."""


class Report:
    """One report: its name, header lines and the text from the header on."""

    def __init__(self, name, line_no):
        self.name = name
        self.line_no = line_no
        self.headers = []
        self.text = []

    @property
    def title(self):
        for header in self.headers:
            if WHERE.search(header):
                return header
        return self.headers[0] if self.headers else self.name


class Allowed:
    """One line of the allow file."""

    def __init__(self, where, regex, low, high, variants, reason):
        self.where = where
        self.regex = regex
        self.low = low
        self.high = high
        self.variants = variants
        self.reason = reason
        self.reports = []

    def applies(self, variant):
        return "*" in self.variants or variant in self.variants


def read_text(path):
    with open(path, "rb") as stream:
        data = stream.read()
    return data.decode("utf-8", errors="replace").replace("\0", "")


def lines_of(text):
    """Lines without their end; nothing but a newline ends one."""
    for line in text.split("\n"):
        yield ANSI.sub("", line.rstrip("\r"))


def data_lines(path):
    """(place, fields) of each line that is neither empty nor a comment."""
    try:
        text = read_text(path)
    except OSError as err:
        raise DataError(f"{path}: {err.strerror}") from err
    for number, line in enumerate(lines_of(text), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}:{number}", line.split("\t")


def compile_at(where, regex):
    try:
        return re.compile(regex)
    except re.error as err:
        raise DataError(f"{where}: bad regular expression '{regex}': {err}") from err


def load_patterns(path):
    patterns = []
    for where, fields in data_lines(path):
        if len(fields) != 2 or not fields[0].strip() or not fields[1].strip():
            raise DataError(f"{where}: want name<TAB>regex")
        patterns.append((fields[0].strip(), compile_at(where, fields[1])))
    if not patterns:
        raise DataError(f"{path}: no pattern in it")
    return patterns


def load_allow(path):
    entries = []
    for where, fields in data_lines(path):
        fields = [field.strip() for field in fields]
        if len(fields) != 5 or not all(fields):
            raise DataError(f"{where}: want regex<TAB>min<TAB>max<TAB>variants<TAB>reason, none of them empty")
        regex, low, high, variants, reason = fields
        if not re.fullmatch(r"[0-9]+", low) or not re.fullmatch(r"[0-9]+", high) or int(low) > int(high):
            raise DataError(f"{where}: min and max must be numbers, min <= max")
        if not re.fullmatch(r"\*|[a-z0-9_]+(,[a-z0-9_]+)*", variants):
            raise DataError(f"{where}: variants must be names joined by commas, or *")
        compiled = compile_at(where, regex)
        if compiled.search(""):
            raise DataError(f"{where}: '{regex}' allows everything")
        entries.append(Allowed(where, compiled, int(low), int(high), variants.split(","), reason))
    return entries


def find(text, patterns):
    """All reports in the text of a console log."""
    reports = []
    report = None       # the one that lines belong to now
    cut = False         # ... and it began with "cut here"
    begun = 0           # ... at this line
    located = False     # ... and the line that says where has been seen

    for number, raw in enumerate(lines_of(text), 1):
        line = STAMP.sub("", raw)
        if report and number - begun > MAX_BLOCK:
            report, cut = None, False
        if CUT in line:
            # A block stays anonymous until a line of it matches; see below for one that never does.
            report = Report("cut-here", number)
            reports.append(report)
            cut, begun, located = True, number, False
            continue
        if END in line:
            report, cut = None, False
            continue
        if line.startswith("====") and report and not cut and number - begun > 2:
            report = None
            continue
        name = None
        if not NOT_A_HEADER.search(line):
            name = next((n for n, regex in patterns if regex.search(line)), None)
        if name is None:
            if report and len(report.text) < SHOWN:
                report.text.append(line)
            continue
        if report and (number - begun <= CONTINUES.get(name, 0) or cut and not located):
            if name not in CONTINUES:
                report.headers.append(line)
                if report.name in ("cut-here", "warning", "bug"):
                    report.name = name
            elif not report.headers and name != "trace":
                report.headers.append(line)
                report.name = name
            located = located or bool(WHERE.search(line))
            if len(report.text) < SHOWN:
                report.text.append(line)
            continue
        report = Report(name, number)
        report.headers.append(line)
        report.text.append(line)
        reports.append(report)
        # Inside a block that has its header this is a report of its own (another CPU's, say).
        cut, begun, located = False, number, True
    for one in reports:
        if not one.headers:
            one.headers = one.text[:1] or ["cut here, and nothing behind it"]
    return reports


def judge(reports, entries, variant, enforce_min=True):
    """(reports that nothing allows, complaints about the counts of allowed ones)."""
    entries = [entry for entry in entries if entry.applies(variant)]
    for entry in entries:
        entry.reports = []
    left = []
    for report in reports:
        for entry in entries:
            if any(entry.regex.search(header) for header in report.headers):
                entry.reports.append(report)
                break
        else:
            left.append(report)
    complaints = []
    for entry in entries:
        seen = len(entry.reports)
        if seen > entry.high:
            complaints.append((entry, f"seen {seen} times, at most {entry.high} allowed: {entry.regex.pattern}"))
        elif enforce_min and seen < entry.low:
            complaints.append((entry, f"seen {seen} times, at least {entry.low} expected: {entry.regex.pattern}"))
    return left, complaints


def main(argv=None):
    parser = argparse.ArgumentParser(description="Find reports in a kernel console log.")
    parser.add_argument("--patterns", default=os.path.join(DATA, "patterns"))
    parser.add_argument("--allow", default=os.path.join(DATA, "allow"))
    parser.add_argument("--variant", default="normal")
    parser.add_argument("--no-min", action="store_true", help="do not insist on the reports that are expected")
    parser.add_argument("console", nargs="+")
    args = parser.parse_args(argv)
    bad = False
    try:
        patterns = load_patterns(args.patterns)
        entries = load_allow(args.allow)
        for path in args.console:
            try:
                text = read_text(path)
            except OSError as err:
                raise DataError(f"{path}: {err.strerror}") from err
            left, complaints = judge(find(text, patterns), entries, args.variant, not args.no_min)
            for report in left:
                print(f"{path}:{report.line_no}: {report.name}: {report.title}")
                for line in report.text:
                    print(f"    {line}")
            for entry, message in complaints:
                print(f"{path}: {message} ({entry.where}: {entry.reason})")
            bad = bad or bool(left) or bool(complaints)
    except DataError as err:
        print(f"splats: {err}", file=sys.stderr)
        return 2
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
