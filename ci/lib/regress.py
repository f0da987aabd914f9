#!/usr/bin/env python3
"""Compare what mainline's own selftests, run_vmtests.sh, come to on the base and on the series.

usage: regress.py categories --list LIST --script RUN_VMTESTS ... (see --help)
       regress.py split --ktap LOG --console LOG --out DIR ...
       regress.py judge --results DIR --base FILE ...
       regress.py record --results DIR --base FILE ...

A directory of results has, per category, what its programs printed (.ktap), what the kernel printed
meanwhile (.console), and .done, which is written last: "ended SECONDS" or "died REASON".

A point is "program" or "program:test", see ktap.py; what a point has come to is pass, fail or skip.
The base's file has them line by line, result<TAB>category<TAB>name, and as results "report", for a
kernel report, whose name is its first line without what changes from boot to boot, and "died", where
the guest did not come to the end of the category.
"""

import argparse
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import ktap  # noqa: E402  (they lie beside this file)
import splats  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
CI = os.path.dirname(HERE)

RUN_TEST = re.compile(r'\bCATEGORY="([^"]+)" run_test\b')
NAME = re.compile(r"[a-z0-9_-]+")
MARK = re.compile(r"^ci: category (\S+)$")
RESULTS = ("pass", "fail", "skip", "report", "died")
WORD = {"passed": "pass", "failed": "fail", "skipped": "skip"}
RENEW = "ci/run regress --base --update-expected"


def read(path):
    try:
        return splats.read_text(path)
    except OSError as err:
        raise ktap.DataError(f"{path}: {err.strerror}") from err


# The list of categories


def load_list(path):
    """{category: (part, reason)}, in the order of the file."""
    found = {}
    for number, line in enumerate(splats.lines_of(read(path)), 1):
        if not line.strip() or line.startswith("#"):
            continue
        category, part, reason = (line.split(None, 2) + ["", ""])[:3]
        if part not in ("check", "all", "out") or not NAME.fullmatch(category) or (part == "out") != bool(reason):
            raise ktap.DataError(f"{path}:{number}: want 'category check', 'category all' or 'category out REASON'")
        if category in found:
            raise ktap.DataError(f"{path}:{number}: {category} is there twice")
        found[category] = (part, reason)
    return found


def categories(args):
    listed = load_list(args.list)
    script = sorted({*RUN_TEST.findall(read(args.script)), *args.also.split()})
    unlisted = [name for name in script if name not in listed]
    unknown = [] if args.base else [name for name in listed if name not in script]
    for name in unlisted:
        print(f"run_vmtests.sh has a category {name} that {args.list} does not name")
    for name in unknown:
        print(f"{args.list} names a category {name} that run_vmtests.sh does not have")
    if unlisted or unknown or not script:
        return 1
    wanted = args.categories.split()
    for name in wanted:
        if name not in listed:
            raise ktap.DataError(f"no category {name} in {args.list}")
        if listed[name][0] == "out":
            raise ktap.DataError(f"{name} is left out: {listed[name][1]}")
    for name, (part, reason) in listed.items():
        if wanted and name not in wanted or name not in script:
            continue
        if part == "out":
            print(f"out {name} {reason}")
        elif part == "check" or args.part == "all" or wanted:
            print(f"run {name}")
    return 0


# Logs


def cut(text, mark):
    """{category: its part of the text}; what precedes the first mark is nobody's."""
    parts, current = {}, None
    for line in splats.lines_of(text):
        match = mark.match(splats.STAMP.sub("", line))
        if match:
            current = parts.setdefault(match.group(1), [])
        elif current is None:
            continue
        current.append(line)
    return {name: "\n".join(lines) + "\n" for name, lines in parts.items()}


def write(path, text):
    with open(path + ".new", "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(path + ".new", path)


def split(args):
    """From the logs of one guest to results per category; prints which."""
    output, console = cut(read(args.ktap), ktap.CATEGORY), cut(read(args.console), MARK)
    # The last lines of either may be lost when a kernel dies.
    names = list(dict.fromkeys([*output, *console]))
    os.makedirs(args.out, exist_ok=True)
    for number, name in enumerate(names, 1):
        streams = [s for s in ktap.parse(output.get(name, "")) if s.category == name]
        stream = streams[0] if streams else ktap.Stream(name)
        if args.interrupted and (number == len(names) or stream.status in (None, 124, 137)):
            continue
        if not args.interrupted and args.token != "ok" and number == len(names):
            done = "died " + ("at the time limit of the guest" if args.timeout == "yes" else
                              "with the guest, which did not come to its end")
        elif stream.status is None:
            done = "died with the job in the guest"
        elif stream.status in (124, 137):
            done = "died at the time limit of a category"
        else:
            done = f"ended {stream.duration or 0:.0f}"
        write(os.path.join(args.out, f"{name}.ktap"), output.get(name, ""))
        write(os.path.join(args.out, f"{name}.console"), console.get(name, ""))
        write(os.path.join(args.out, f"{name}.done"), done + "\n")
        print(f"{name}: {done}")
    return 0


def report_name(report):
    """What a report is about, without what is different in another kernel or the next boot."""
    text = re.sub(r", CPU#.*|\b(CPU|PID|UID): ?\d+|\bComm: .*", "", report.title)
    text = re.sub(r"\+0x[0-9a-f]+/0x[0-9a-f]+", "", text)
    text = re.sub(r"(\.[chS]):\d+", r"\1", text)
    text = re.sub(r"\b(0x)?(?=[0-9a-f]*\d)[0-9a-f]{2,}\b|\b\d+\b", "N", text)
    return ktap.plain(f"{report.name}: {text}")


class Category:
    """What one category has come to."""

    def __init__(self, name):
        self.name = name
        self.points = {}        # name: pass, fail, skip
        self.tests = {}         # name: ktap.Test
        self.reports = {}       # name: splats.Report
        self.died = ""
        self.seconds = None
        self.last = ""


def load_category(directory, name, patterns):
    found = Category(name)
    done, _, rest = read(os.path.join(directory, f"{name}.done")).strip().partition(" ")
    if done == "ended":
        found.seconds = float(rest)
    else:
        found.died = rest or "without a word"
    output = read(os.path.join(directory, f"{name}.ktap"))
    for test in ktap.all_tests(ktap.parse(output)):
        found.points[test.name] = WORD[test.status]
        found.tests[test.name] = test
    if found.died:
        lines = [line for line in splats.lines_of(output) if line.strip()]
        found.last = lines[-1] if lines else "no output"
    for report in splats.find(read(os.path.join(directory, f"{name}.console")), patterns):
        found.reports.setdefault(report_name(report), report)
    return found


# The base's file


def load_base(path):
    """(header, {category: Category})"""
    header, found = {}, {}
    for number, line in enumerate(splats.lines_of(read(path)), 1):
        match = re.match(r"# ([a-z-]+): (\S+)$", line)
        if match:
            header[match.group(1)] = match.group(2)
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 3 or fields[0] not in RESULTS or not fields[1] or not fields[2]:
            raise ktap.DataError(f"{path}:{number}: want result<TAB>category<TAB>name")
        result, name, point = fields
        category = found.setdefault(name, Category(name))
        if result == "report":
            category.reports[point] = None
        elif result == "died":
            category.died = point
        elif point in category.points:
            raise ktap.DataError(f"{path}:{number}: {name} {point} is there twice")
        else:
            category.points[point] = result
    return header, found


def record(args):
    """Replace the categories that have been run, and the header."""
    patterns = splats.load_patterns(args.patterns)
    kept = load_base(args.base)[1] if os.path.exists(args.base) else {}
    header = [f"# base-commit: {args.base_commit}", f"# config: {args.config}"]
    if kept and header != [line for line in splats.lines_of(read(args.base)) if line in header]:
        kept = {}               # of another base
    for name in args.categories.split():
        kept[name] = load_category(args.results, name, patterns)
    lines = ["# What each point of the selftests comes to on the base. Not edited by hand, but made by:",
             f"# {RENEW}", *header]
    for name in load_list(args.list):
        if name not in kept:
            continue
        category = kept[name]
        lines += [f"{result}\t{name}\t{point}" for point, result in category.points.items()]
        lines += [f"report\t{name}\t{report}" for report in sorted(category.reports)]
        if category.died:
            lines.append(f"died\t{name}\t{category.died}")
    write(args.base, "\n".join(lines) + "\n")
    print(f"{args.base}: {sum(len(c.points) for c in kept.values())} points in {len(kept)} categories")
    return 0


# The verdict


def load_flaky(path):
    """{category: [(regex, reason)]}"""
    found = {}
    for where, fields in splats.data_lines(path):
        fields = [field.strip() for field in fields]
        if len(fields) != 3 or not all(fields):
            raise ktap.DataError(f"{where}: want category<TAB>regex<TAB>reason, none of them empty")
        found.setdefault(fields[0], []).append((splats.compile_at(where, fields[1]), fields[2]))
    return found


def said(test):
    if test is None:
        return []
    return test.diag[-6:] + ([f"({test.reason})"] if test.reason else [])


def compare(tap, base, now, flaky, exact):
    """Points for one category; returns how many (are as on the base, are not, are not compared)."""
    count = [0, 0, 0]
    why = {}

    def add(good, name, message=(), skip=""):
        tap.add(good, f"{now.name}/{name}", message, skip)
        count[2 if skip else 0 if good else 1] += 1

    def excuse(name):
        return next((reason for regex, reason in flaky if regex.fullmatch(name)), None)

    # Where the base has died, too, what is left is compared.
    dead = now.died and not base.died
    if dead:
        report = next(iter(now.reports.values()), None)
        add(False, "ci.died", [f"died {now.died}", f"last output: {now.last}"] +
            ([f"console: {report.title}", *report.text[1:20]] if report else ["no report on the console"]))
    for name in dict.fromkeys([*base.points, *now.points]):
        was, got = base.points.get(name), now.points.get(name)
        reason = excuse(name)
        if reason is not None:
            add(True, name, skip=f"varies on the base, too: {reason}")
        elif dead and was == "pass":
            add(False, name, ["the guest has died in this category"])
        elif was == got:
            if was == "pass":
                add(True, name)
            else:
                why[was] = why.get(was, 0) + 1
        elif exact:
            add(False, name, [f"recorded: {was or 'not there'}, now: {got or 'not there'}", *said(now.tests.get(name))])
        elif was is None:
            add(got == "pass", name, () if got == "pass" else [f"not on the base, and has to pass: {got}", *said(now.tests[name])])
        elif was == "pass":
            what = {"fail": "fails", "skip": "is skipped", None: "did not run"}[got]
            add(False, name, [f"passes on the base, {what} here", *said(now.tests.get(name))])
        elif was == "skip" and got == "fail":
            add(False, name, ["is skipped on the base, fails here", *said(now.tests[name])])
        elif got == "pass":
            add(True, name)
        else:
            why[was] = why.get(was, 0) + 1
    for name in now.reports:
        if name not in base.reports and excuse(f"report:{name}") is None:
            report = now.reports[name]
            add(False, f"report:{name}", [f"{report.title}", *report.text[1:25]])
    if exact and base.died and not now.died:
        add(False, "ci.died", [f"recorded: died {base.died}, now: not"])
    for name in base.reports if exact else ():
        if name not in now.reports and excuse(f"report:{name}") is None:
            add(False, f"report:{name}", ["recorded, and not seen now"])
    if why:
        add(True, "not compared", skip=", ".join(
            f"{n} points {'fail' if was == 'fail' else 'are skipped'} on the base" for was, n in sorted(why.items())))
        count[2] += sum(why.values()) - 1
    return count


def judge(args):
    patterns = splats.load_patterns(args.patterns)
    flaky = load_flaky(args.flaky)
    listed = load_list(args.list)
    tap = ktap.Tap()
    rows, stale = [], []
    if not os.path.exists(args.base):
        header, base, stale = {}, {}, [f"there is no {args.base}"]
    else:
        header, base = load_base(args.base)
        if header.get("base-commit") != args.base_commit:
            stale = [f"{os.path.basename(args.base)} is of base {header.get('base-commit', 'unknown')}, "
                     f"the series of {args.base_commit}"]
    tap.add(not stale, "ci.base", [*stale, f"to renew it: {RENEW}"] if stale else ())
    if not stale:
        if header.get("config") != args.config:
            tap.add(True, "ci.config", skip=f"the configuration has changed since the base was recorded; {RENEW}")
        for name in args.categories.split():
            now = load_category(args.results, name, patterns)
            if name not in base:
                tap.add(False, f"{name}/ci.base", [f"nothing of it in {os.path.basename(args.base)}; to renew it: {RENEW}"])
                continue
            rows.append((now, compare(tap, base[name], now, flaky.get(name, []), args.exact)))
    for name, (part, reason) in listed.items():
        if part == "out" and not args.only and not args.exact:
            tap.add(True, f"{name}/left out", skip=reason)
    tap.write(args.tap)
    width = max([len(now.name) for now, _ in rows] + [8])
    print(f"{'category':<{width}}  seconds  as before  not  not compared")
    for now, (good, bad, left) in rows:
        seconds = "died" if now.died else f"{now.seconds:.0f}"
        print(f"{now.name:<{width}}  {seconds:>7}  {good:9}  {bad:3}  {left:12}")
    print(f"{'all':<{width}}  {sum(now.seconds or 0 for now, _ in rows):7.0f}  " +
          "  ".join(f"{sum(c[i] for _, c in rows):{w}}" for i, w in enumerate((9, 3, 12))))
    dead = 0
    for name, message in tap.failures:
        if message == ["the guest has died in this category"]:
            dead += 1
            continue
        print(f"not ok: {name}")
        for line in message:
            print(f"    {line}")
    if dead:
        print(f"not ok: {dead} points that the base has, in categories that the guest has died in")
    print(f"regress: {len(tap.failures)} of {len(tap.points)} points failed" if tap.failures else
          f"regress: all {len(tap.points)} points passed")
    return 1 if tap.failures else 0


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compare selftests on the base and on the series.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("categories", help="'run CATEGORY' and 'out CATEGORY REASON' lines")
    one.add_argument("--script", required=True, help="run_vmtests.sh")
    one.add_argument("--part", choices=("check", "all"), default="all")
    two = commands.add_parser("split", help="from the logs of one guest to a directory of results")
    two.add_argument("--ktap", required=True)
    two.add_argument("--console", required=True)
    two.add_argument("--out", required=True)
    two.add_argument("--token", default="missing", choices=("ok", "missing", "wrong"))
    two.add_argument("--timeout", default="no", choices=("yes", "no"))
    two.add_argument("--interrupted", action="store_true", help="just those that have ended")
    three = commands.add_parser("judge", help="print a table and the failures, write flat TAP")
    three.add_argument("--flaky", required=True, help="category<TAB>regex<TAB>reason of what varies")
    three.add_argument("--tap", required=True)
    three.add_argument("--exact", action="store_true", help="each difference counts: the base against its record")
    three.add_argument("--only", action="store_true", help="some categories: no word of those that are left out")
    four = commands.add_parser("record", help="write the base's file")
    for command in (three, four):
        command.add_argument("--results", required=True)
        command.add_argument("--base", required=True)
        command.add_argument("--base-commit", required=True)
        command.add_argument("--config", required=True)
        command.add_argument("--patterns", default=os.path.join(CI, "splats", "patterns"))
    one.add_argument("--also", default="", help="categories that the script does not have, but the job")
    one.add_argument("--base", action="store_true", help="the script is the base's, which has fewer categories")
    for command in (one, three, four):
        command.add_argument("--list", default=os.path.join(CI, "expected", "regress"))
        command.add_argument("--categories", default="")
    args = parser.parse_args(argv)
    try:
        return {"categories": categories, "split": split, "judge": judge, "record": record}[args.command](args)
    except (ktap.DataError, splats.DataError) as err:
        print(f"regress: {err}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
