#!/usr/bin/env python3
"""Are lines that a diff adds to a sorted list at their place? Reads a unified diff (-U0) of the lists on
stdin; the new files are below the directory given. Only added lines are judged, and only where their
neighbours are in order."""
import pathlib
import re
import sys

LISTS = {
    "Makefile": re.compile(r"^(TEST_\w+|obj-\S+)\s*\+?=\s*(\S+)\s*$"),
    ".gitignore": re.compile(r"^()([^#!\s]\S*)\s*$"),
    "config": re.compile(r"^()(CONFIG_\w+)=\S+\s*$"),
}


def added_lines(diff):
    path, line, out = None, 0, {}
    for text in diff:
        if text.startswith("+++ "):
            path = text[6:].rstrip("\n") if text.startswith("+++ b/") else None
        elif m := re.match(r"@@ -\S+ \+(\d+)", text):
            line = int(m.group(1))
        elif text.startswith("+") and path:
            out.setdefault(path, set()).add(line)
            line += 1
    return out


def judge(path, lines, added, pattern):
    group, bad = [], []

    def close():
        old = [value for number, value in group if number not in added]
        ordered = old == sorted(old)
        for i, (number, value) in enumerate(group):
            if number not in added:
                continue
            before = next((v for n, v in reversed(group[:i]) if n not in added), None)
            after = next((v for n, v in group[i + 1:] if n not in added), None)
            if not ordered and (before is None or after is None or before > after):
                continue
            left = group[i - 1][1] if i else None
            right = group[i + 1][1] if i + 1 < len(group) else None
            if (left is not None and left > value) or (right is not None and value > right):
                bad.append(f"{path}:{number}: {value} is not at its place between {left} and {right}")

    key = None
    for number, text in enumerate(lines, 1):
        m = pattern.match(text)
        if not m or m.group(1) != key:
            close()
            group = []
        key = m.group(1) if m else None
        if m:
            group.append((number, m.group(2)))
    close()
    return bad


def main():
    root = pathlib.Path(sys.argv[1])
    bad = []
    for path, added in added_lines(sys.stdin).items():
        pattern = LISTS.get(pathlib.Path(path).name)
        if pattern and (root / path).is_file():
            lines = (root / path).read_text(encoding="utf-8").splitlines()
            bad += judge(path, lines, added, pattern)
    print("\n".join(bad), end="\n" if bad else "")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
