#!/usr/bin/env python3
"""Read the log of run_vmtests.sh (KTAP, one or more categories) and judge a test run by it.

usage: ktap.py verdict --log KTAP --console CONSOLE ... (see --help)
       ktap.py tests KTAP

The output of run_vmtests.sh is a TAP stream with a point per program; the lines before a point, with
"# " in front, are what that program printed, which may be TAP too. A test's name is "program" for a
point of the outer stream and "program:test" for one of the inner stream, blanks replaced by "_".

The job in the guest may announce a stream with "# ci: category NAME [UPTIME]" and close it with
"# ci: status NAME EXITSTATUS [UPTIME]".
"""

import argparse
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import splats  # noqa: E402  (it lies beside this file)

HERE = os.path.dirname(os.path.abspath(__file__))
CI = os.path.dirname(HERE)

VERSION = re.compile(r"^K?TAP version \d+\s*$")
PLAN = re.compile(r"^1\.\.(\d+)\s*(?:#\s*(.*))?$")
POINT = re.compile(r"^(not )?ok\s+(\d+)(?:\s+(.*))?$")
DIRECTIVE = re.compile(r"^(.*?)(?:^|\s+)#(?:\s+|\s*$|(?=(?:SKIP|TODO|XFAIL|XPASS|exit=)))(.*)$")
CATEGORY = re.compile(r"^# ci: category (\S+)(?: ([\d.]+))?\s*$")
STATUS = re.compile(r"^# ci: status (\S+) (-?\d+)(?: ([\d.]+))?\s*$")
SUMMARY = re.compile(r"^SUMMARY: PASS=(\d+) SKIP=(\d+) FAIL=(\d+)\s*$")
SKIP_STATUS = 4
DIAG = 12               # diagnostic lines kept per test
UPDATE = "ci/run test --update-expected"


class DataError(Exception):
    """A mistake in a data file of the harness."""


class Test:
    """One point."""

    def __init__(self, number, good, description, line_no):
        self.number = number
        self.line_no = line_no
        self.good = good
        self.diag = []
        match = DIRECTIVE.match(description)
        self.directive = ""
        self.reason = ""
        if match:
            description = match.group(1)
            word, _, rest = match.group(2).partition(" ")
            if word.upper() in ("SKIP", "XFAIL", "XPASS", "TODO") or word == "error" and not description:
                self.directive = word.upper()
                self.reason = rest.strip()
            else:
                self.reason = match.group(2).strip()
        if description.startswith("- "):
            description = description[2:]
        # ksft_test_result_skip() and its like put the name behind the directive.
        self.label = plain(description) or plain(self.reason) or f"point-{number}"
        self.name = self.label

    @property
    def skipped(self):
        # An expected failure is as good a reason to look as a skip is.
        return self.good and self.directive in ("SKIP", "XFAIL", "TODO")

    @property
    def status(self):
        if not self.good:
            return "failed"
        return "skipped" if self.skipped else "passed"


class Nested:
    """A TAP stream that a program printed."""

    def __init__(self, header):
        self.header = header
        self.plans = []
        self.plan_skip = None
        self.tests = []


class Program:
    """A point of the outer stream with what was printed before it."""

    def __init__(self, name, test, lines):
        self.name = name
        self.test = test            # None: it began and never ended
        self.streams = []
        self.bail = []
        self.diag = []
        self.read(lines)

    def read(self, lines):
        stream, diag = None, []
        for number, line in lines:
            point = POINT.match(line)
            plan = PLAN.match(line)
            if VERSION.match(line):
                stream = Nested(True)
                self.streams.append(stream)
            elif point or plan:
                if stream is None:
                    stream = Nested(False)
                    self.streams.append(stream)
                if plan:
                    stream.plans.append(int(plan.group(1)))
                    if plan.group(2) and plan.group(2).upper().startswith("SKIP"):
                        stream.plan_skip = plan.group(2)[4:].strip()
                    continue
                test = Test(int(point.group(2)), not point.group(1), point.group(3) or "", number)
                test.diag, diag = diag[-DIAG:], []
                stream.tests.append(test)
            else:
                if line.startswith("Bail out!"):
                    self.bail.append(line)
                text = line[2:] if line.startswith("# ") else line
                if text.strip() and not re.fullmatch(r"-+|\[(PASS|FAIL|SKIP)\]", text.strip()):
                    diag.append(text)
        self.diag = diag[-DIAG:]

    @property
    def skipped(self):
        return self.test is not None and self.test.skipped

    def tests(self):
        for stream in self.streams:
            yield from stream.tests


class Stream:
    """An outer TAP stream: one run of run_vmtests.sh."""

    def __init__(self, category, uptime=None):
        self.category = category
        self.announced = category is not None
        self.begun = uptime
        self.ended = None
        self.status = None
        self.header = False
        self.plans = []
        self.programs = []
        self.summaries = []
        self.bail = []
        self.junk = []

    @property
    def empty(self):
        return not (self.header or self.plans or self.programs or self.junk)

    @property
    def duration(self):
        if self.begun is None or self.ended is None:
            return None
        return self.ended - self.begun


def plain(text):
    """A name without blanks, control characters and addresses, which change from run to run."""
    text = re.sub(r"\s+", "_", text.strip())
    text = re.sub(r"0x[0-9a-fA-F]{5,}", "0x*", text)
    return re.sub(r"[^\x21-\x7e]", "?", text)


def program_name(text):
    return plain(re.sub(r"^(?:bash )?\./", "", text.strip()))


def unfinished(lines):
    """The name of the program that the buffered lines announce, if any."""
    name = None
    for _, line in lines:
        match = re.match(r"^running (\S.*)$", line)
        if match:
            name = program_name(match.group(1))
    return name


def parse(text):
    """The outer streams of a log."""
    streams, lines = [], []
    stream = None

    def current():
        nonlocal stream
        if stream is None:
            stream = Stream(None)
            streams.append(stream)
        return stream

    def flush():
        """What is left without a point of its own."""
        nonlocal lines
        if not lines:
            return
        name = unfinished(lines)
        left, lines = lines, []
        inner = Program(name or "?", None, left)
        if name is None and not inner.streams:
            return
        current().programs.append(inner)

    for number, line in enumerate(splats.lines_of(text), 1):
        category, status = CATEGORY.match(line), STATUS.match(line)
        point, plan = POINT.match(line), PLAN.match(line)
        if category:
            flush()
            stream = Stream(category.group(1), float(category.group(2)) if category.group(2) else None)
            streams.append(stream)
        elif status:
            flush()
            same = [s for s in streams if s.category == status.group(1) and s.status is None]
            if not same:
                same = [Stream(status.group(1))]
                streams.extend(same)
            same[-1].status = int(status.group(2))
            same[-1].ended = float(status.group(3)) if status.group(3) else None
            stream = None
        elif VERSION.match(line):
            flush()
            if stream is None or not stream.empty:
                stream = Stream(None)
                streams.append(stream)
            stream.header = True
        elif point:
            test = Test(int(point.group(2)), not point.group(1), point.group(3) or "", number)
            test.name = test.label = program_name(test.label)
            program = Program(test.name, test, lines)
            lines = []
            test.diag = program.diag
            current().programs.append(program)
        elif plan:
            flush()
            current().plans.append(int(plan.group(1)))
        elif line.startswith("Bail out!"):
            current().bail.append(line)
        elif line.startswith("#"):
            inner = line[2:] if line.startswith("# ") else line[1:]
            summary = SUMMARY.match(inner)
            if summary:
                current().summaries.append(tuple(int(n) for n in summary.groups()))
            else:
                lines.append((number, inner))
        elif line.strip():
            lines.append((number, line))
    flush()
    number = 0
    for one in streams:
        number += 1
        if one.category is None:
            one.category = f"stream-{number}"
    name_all(streams)
    return streams


def name_all(streams):
    """Full names; a repeated one gets a number, for names have to tell tests apart."""
    seen = {}

    def unique(name):
        seen[name] = seen.get(name, 0) + 1
        return name if seen[name] == 1 else f"{name}~{seen[name]}"

    for stream in streams:
        for program in stream.programs:
            program.name = unique(program.name)
            if program.test:
                program.test.name = program.name
            for test in program.tests():
                test.name = unique(f"{program.name}:{test.label}")


def all_tests(streams):
    for stream in streams:
        for program in stream.programs:
            yield from program.tests()
            if program.test:
                yield program.test


def number_complaint(numbers):
    """What is wrong with the numbers of points, or None."""
    if numbers == list(range(1, len(numbers) + 1)):
        return None
    twice = sorted({n for n in numbers if numbers.count(n) > 1})
    if twice:
        return "point " + ", ".join(str(n) for n in twice) + " more than once"
    missing = sorted(set(range(1, max(numbers) + 1)) - set(numbers))
    if missing:
        return "point " + ", ".join(str(n) for n in missing[:10]) + " missing"
    return "points out of order"


def stream_complaints(stream):
    """What is wrong with the form of an outer stream."""
    points = [p.test for p in stream.programs if p.test]
    found = []
    if not stream.header:
        found.append("no line 'TAP version 13': nothing was run, or its beginning is lost")
    if not stream.plans:
        found.append("no plan: the output is truncated")
    elif len(stream.plans) > 1:
        found.append("more than one plan")
    elif stream.plans[0] != len(points):
        found.append(f"planned {stream.plans[0]}, found {len(points)}")
    if not points:
        found.append("no test in it")
    else:
        wrong = number_complaint([t.number for t in points])
        if wrong:
            found.append(wrong)
    for program in stream.programs:
        if program.test is None:
            found.append(f"{program.name} began and never reported a result"
                         if program.name.split("~")[0] != "?" else "output of an unknown program without a result")
    for summary in stream.summaries:
        count = tuple(sum(t.status == s for t in points) for s in ("passed", "skipped", "failed"))
        if summary != count:
            found.append("the summary says PASS=%d SKIP=%d FAIL=%d, " % summary +
                         "the points say PASS=%d SKIP=%d FAIL=%d" % count)
    found.extend(stream.bail)
    return found


def nested_complaints(program, partial=False):
    """What is wrong with the form of a program's own TAP."""
    found = []
    for stream in program.streams:
        count = len(stream.tests)
        if not stream.plans:
            if program.skipped and not stream.tests:
                continue
            found.append("no plan in its output: truncated")
        elif len(stream.plans) > 1:
            found.append("more than one plan in its output")
        elif stream.plans[0] != count and not (program.skipped and count < stream.plans[0]):
            found.append(f"planned {stream.plans[0]} tests, reported {count}")
        if stream.tests:
            wrong = number_complaint([t.number for t in stream.tests])
            if wrong:
                found.append(wrong)
    if program.test is not None and program.test.status == "passed":
        found.extend(program.bail)
        for stream in program.streams:
            if stream.plans == [0] and not partial:
                found.append("passed although it planned no test")
    return found


def load_expected(path):
    try:
        text = splats.read_text(path)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise DataError(f"{path}: {err.strerror}") from err
    names = [line.strip() for line in splats.lines_of(text)]
    names = [name for name in names if name and not name.startswith("#")]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path}: twice in it: {' '.join(sorted(twice))}")
    return names


def load_skips(path):
    """(regex, reason) of each excused skip."""
    skips = []
    if not path or not os.path.exists(path):
        return skips
    for where, fields in splats.data_lines(path):
        fields = [field.strip() for field in fields]
        if len(fields) != 2 or not all(fields):
            raise DataError(f"{where}: want regex<TAB>reason, neither of them empty")
        skips.append((splats.compile_at(where, fields[0]), fields[1]))
    return skips


class Tap:
    """The flat result: a point for each test and each check."""

    def __init__(self):
        self.points = []        # (good, name, skip reason, message lines)
        self.failures = []

    def add(self, good, name, message=(), skip=""):
        message = [message] if isinstance(message, str) else list(message)
        self.points.append((good, name, skip, message))
        if not good:
            self.failures.append((name, message))

    def check(self, name, complaints):
        """One point when all is well, else one for each complaint."""
        if not complaints:
            self.add(True, name)
        for complaint in complaints:
            self.add(False, name, complaint)

    def write(self, path):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("TAP version 13\n")
            for number, (good, name, skip, message) in enumerate(self.points, 1):
                head = f"{'ok' if good else 'not ok'} {number} - {name.replace('#', '%23')}"
                stream.write(head + (f" # SKIP {skip}" if skip else "") + "\n")
                for line in message:
                    stream.write(f"# {line}\n")
            stream.write(f"1..{len(self.points)}\n")


def judge_tests(tap, streams, skips, skips_name):
    """A point per test."""
    for test in all_tests(streams):
        if test.status == "failed":
            message = test.diag + ([f"({test.reason})"] if test.reason else [])
            tap.add(False, test.name, message or ["not ok, without a word about why"])
        elif test.status == "passed":
            tap.add(True, test.name)
        else:
            excuse = next((reason for regex, reason in skips if regex.fullmatch(test.name)), None)
            if excuse is not None:
                tap.add(True, test.name, skip=excuse)
            else:
                tap.add(False, test.name, test.diag[-3:] +
                        [f"{test.directive} without an excuse in {skips_name}: {test.reason or 'no reason given'}"])


def judge_form(tap, streams, partial):
    if not streams:
        tap.add(False, "ci.stream", "the log has no test in it")
    for stream in streams:
        tap.check(f"ci.stream:{stream.category}", stream_complaints(stream))
        skipped = any(program.skipped for program in stream.programs)
        if stream.announced and stream.status is None:
            tap.add(False, f"ci.status:{stream.category}", "it began and never reported an exit status")
        elif stream.status is not None:
            good = stream.status == 0 or stream.status == SKIP_STATUS and skipped
            tap.add(good, f"ci.status:{stream.category}",
                    () if good else f"exit status {stream.status}")
        for program in stream.programs:
            if program.streams:
                tap.check(f"ci.plan:{program.name}", nested_complaints(program, partial))
            tests = list(program.tests())
            if program.test and not program.test.good and tests and all(t.good for t in tests):
                tap.add(False, f"ci.exit:{program.name}",
                        f"the program failed ({program.test.reason or 'no status'}) though each test in it passed")
            elif program.test and program.test.good and any(not t.good for t in tests):
                tap.add(False, f"ci.exit:{program.name}", "the program succeeded though a test in it failed")


def judge_expected(tap, streams, expected, only, path):
    names = [test.name for test in all_tests(streams)]
    if expected is None:
        tap.add(False, "ci.expected", f"there is no {path}; to make it: {UPDATE}")
        return
    vanished = [name for name in expected if name not in names and (only is None or only.search(name))]
    extra = [name for name in names if name not in expected]
    for name in vanished:
        tap.add(False, f"ci.vanished:{name}", f"in {os.path.basename(path)}, but did not run")
    for name in extra:
        tap.add(False, f"ci.unexpected:{name}",
                f"ran, but is not in {os.path.basename(path)}; if it is meant to: {UPDATE}")
    if not vanished and not extra:
        tap.add(True, "ci.expected")


def judge_console(tap, args, enforce_min):
    """Kernel reports, and whether the console can be trusted to show them."""
    try:
        text = splats.read_text(args.console)
    except OSError as err:
        tap.add(False, "ci.console", f"no console log: {err.strerror}")
        return
    # The banner has level "notice"; where it does not show, a warning may not either.
    shows = "Linux version " in text
    tap.add(shows, "ci.console", () if shows else
            "no kernel banner on the console: its reports would go unseen")
    entries = splats.load_allow(args.allow)
    reports = splats.find(text, splats.load_patterns(args.patterns))
    left, complaints = splats.judge(reports, entries, args.variant, enforce_min)
    for report in left:
        tap.add(False, f"ci.splat:{report.name}", [f"console line {report.line_no}: {report.title}"] + report.text[:25])
    for entry, message in complaints:
        tap.add(False, "ci.splat-count", f"{message} ({entry.where}: {entry.reason})")
    if not left and not complaints:
        tap.add(True, "ci.splats")


def update_expected(args, streams, only, tap):
    """Write the names that ran, if the run was complete."""
    broken = [name for name, _ in tap.failures
              if name.split(":")[0] in ("ci.stream", "ci.plan", "ci.token", "ci.timeout", "ci.status", "ci.runner")]
    if broken:
        print(f"{args.expected} is left as it is, the run was not complete: {', '.join(broken)}", file=sys.stderr)
        return False
    names = [test.name for test in all_tests(streams)]
    if only is not None:
        kept = [name for name in load_expected(args.expected) or [] if not only.search(name)]
        names = kept + [name for name in names if name not in kept]
    os.makedirs(os.path.dirname(os.path.abspath(args.expected)), exist_ok=True)
    with open(args.expected, "w", encoding="utf-8") as stream:
        stream.write("".join(f"{name}\n" for name in names))
    print(f"{args.expected}: {len(names)} tests", file=sys.stderr)
    return True


def table(streams):
    rows = []
    total = [0, 0, 0]
    for stream in streams:
        for program in stream.programs:
            tests = list(program.tests()) or ([program.test] if program.test else [])
            count = [sum(t.status == s for t in tests) for s in ("passed", "failed", "skipped")]
            total = [a + b for a, b in zip(total, count)]
            state = program.test.status if program.test else "NO RESULT"
            rows.append((program.name, *count, "FAILED" if state == "failed" else state))
    width = max([len(row[0]) for row in rows] + [7])
    print(f"{'program':<{width}}  passed  failed  skipped  result")
    for name, good, bad, skipped, state in rows:
        print(f"{name:<{width}}  {good:6}  {bad:6}  {skipped:7}  {state}")
    print(f"{'all':<{width}}  {total[0]:6}  {total[1]:6}  {total[2]:7}")
    times = [f"{s.category} {s.duration:.1f} s" for s in streams if s.duration is not None]
    if times:
        print("time: " + ", ".join(times))


def verdict(args):
    only = splats.compile_at("--only", args.only) if args.only else None
    if not (args.status == "none" or re.fullmatch(r"-?\d+", args.status)):
        raise DataError(f"--status wants a number or none, not '{args.status}'")
    skips = load_skips(args.skips)
    # Mistakes in data files show before, and whatever, the log has.
    splats.load_patterns(args.patterns)
    splats.load_allow(args.allow)
    no_list = args.expected == "none"
    expected = None if no_list else load_expected(args.expected)

    tap = Tap()
    try:
        streams = parse(splats.read_text(args.log))
    except OSError as err:
        streams = []
        tap.add(False, "ci.log", f"no test log {args.log}: {err.strerror}")
    judge_tests(tap, streams, skips, os.path.basename(args.skips) if args.skips else "a skips file")
    judge_form(tap, streams, only is not None)
    tap.check("ci.timeout", ["the guest was killed by its time limit"] if args.timeout == "yes" else [])
    token = {"ok": [], "missing": ["the guest never said that the tests had come to their end"],
             "wrong": ["the guest's token is not the one of this run"]}[args.token]
    tap.check("ci.token", token)
    if args.status == "none":
        tap.add(False, "ci.runner", "the runner never reported an exit status")
    else:
        skipped = any(program.skipped for stream in streams for program in stream.programs)
        good = args.status == "0" or args.status == str(SKIP_STATUS) and skipped
        tap.add(good, "ci.runner", () if good else f"the runner's exit status is {args.status}")
    judge_console(tap, args, enforce_min=not (args.only or no_list))
    if args.update_expected:
        if no_list:
            raise DataError("--update-expected needs a file in --expected")
        if not update_expected(args, streams, only, tap):
            tap.add(False, "ci.expected", "the list could not be updated from this run")
    elif not no_list:
        judge_expected(tap, streams, expected, only, args.expected)

    if args.tap:
        tap.write(args.tap)
    if args.table:
        table(streams)
    for name, message in tap.failures:
        print(f"not ok: {name}")
        for line in message:
            print(f"    {line}")
    what = f"{args.arch} {args.variant}"
    if tap.failures:
        print(f"{what}: {len(tap.failures)} of {len(tap.points)} points failed")
        return 1
    print(f"{what}: all {len(tap.points)} points passed")
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(description="Judge a test run by its KTAP log.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("verdict", help="judge a run, print a table and the failures, write flat TAP")
    one.add_argument("--log", required=True, help="what run_vmtests.sh printed")
    one.add_argument("--console", required=True, help="what the kernel printed")
    one.add_argument("--expected", required=True, help="names of the tests that have to run; 'none': no such list")
    one.add_argument("--skips", help="regex<TAB>reason of each test that may be skipped; the whole name has to match")
    one.add_argument("--arch", required=True)
    one.add_argument("--variant", required=True)
    one.add_argument("--status", required=True, help="exit status of the runner in the guest, or none")
    one.add_argument("--token", required=True, choices=("ok", "missing", "wrong"))
    one.add_argument("--timeout", required=True, choices=("yes", "no"))
    one.add_argument("--patterns", default=os.path.join(CI, "splats", "patterns"))
    one.add_argument("--allow", default=os.path.join(CI, "splats", "allow"))
    one.add_argument("--tap", help="where to write the flat TAP")
    one.add_argument("--table", action="store_true", help="print a line per program")
    one.add_argument("--update-expected", action="store_true", help="write the list instead of comparing with it")
    one.add_argument("--only", metavar="REGEX", help="of the list, insist only on tests that match (anywhere in the name)")
    two = commands.add_parser("tests", help="print the names of the tests in a log")
    two.add_argument("log")
    args = parser.parse_args(argv)
    try:
        if args.command == "verdict":
            return verdict(args)
        for test in all_tests(parse(splats.read_text(args.log))):
            print(test.name)
        return 0
    except (DataError, splats.DataError) as err:
        print(f"ktap: {err}", file=sys.stderr)
        return 2
    except OSError as err:
        print(f"ktap: {err.filename}: {err.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
