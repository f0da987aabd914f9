#!/usr/bin/env python3
"""Put the patches of ci/tests/mutations into as few copies of source files as possible.

usage: mutants.py SOURCE MUTATIONS OUT

A patch changes regions of the files in SOURCE. Patches with regions of their own form a group: OUT/GROUP/FILE is FILE
with the changes of all of them, behind the definition of mutant() and the numbers of those in it. "Build: alone" makes
a group of one. Prints a row for each line "Tests:" of a patch, with tabs: topic, name, group (or -, if the patch does
not apply), whether it is alone, number, what is wrong, tests.
"""
import glob
import os
import re
import sys
import zlib


class PatchError(Exception):
    pass


def locate(lines, old, at):
    """Where the lines of a hunk are, the nearest to where it says."""
    for start in sorted(range(len(lines) - len(old) + 1), key=lambda i: abs(i - at)):
        if lines[start:start + len(old)] == old:
            return start
    raise PatchError(f"a hunk at line {at + 1} is not in the source")


def regions(source, body):
    """{file: [(start, end, new lines)]} of a patch"""
    found, path = {}, None
    rows = iter(body.splitlines())
    for row in rows:
        if row.startswith("+++ b/"):
            path = row[6:]
            with open(os.path.join(source, path), encoding="utf-8") as stream:
                lines = stream.read().split("\n")
        head = re.match(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", row)
        if not head:
            continue
        left, right = (int(n) if n else 1 for n in head.groups()[1:])
        hunk = []
        while left > 0 or right > 0:
            row = next(rows, " ") or " "
            hunk.append(row)
            left -= row[0] in " -"
            right -= row[0] in " +"
        at = locate(lines, [r[1:] for r in hunk if r[0] in " -"], int(head[1]) - 1)
        change = None
        for row in hunk:
            if row[0] == " ":
                change = None
                at += 1
                continue
            if not change:
                change = [at, at, []]
                found.setdefault(path, []).append(change)
            if row[0] == "-":
                at += 1
                change[1] = at
            elif row[0] == "+":
                change[2].append(row[1:])
    if not found:
        raise PatchError("no change")
    return found


def clash(one, two):
    if one[0] == one[1] and two[0] == two[1]:
        return one[0] == two[0]
    return one[0] < two[1] and two[0] < one[1]


def fits(group, change):
    return not any(clash(a, b) for path in change for a in change[path] for b in group.get(path, []))


def number(name):
    """It does not change when other mutants come or go."""
    return zlib.crc32(name.encode())


def write(source, path, changes, out):
    with open(os.path.join(source, path), encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    # An insertion comes before what begins in the same place.
    for start, end, new in sorted(changes, key=lambda c: c[:2], reverse=True):
        lines[start:end] = new
    text = "\n".join(lines)
    head = ["extern unsigned int mutant_nr;", "#define mutant(name) __builtin_expect(mutant_nr == MUTANT_##name, 0)"]
    head += [f"#define MUTANT_{name} {number(name)}U" for name in sorted(set(re.findall(r"\bmutant\((\w+)\)", text)))]
    path = os.path.join(out, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write("\n".join([*head, "#line 1", text]))


def main(source, mutations, out):
    groups, single, seen = [], [], set()
    for patch in sorted(glob.glob(os.path.join(mutations, "*", "*.patch"))):
        topic, name = patch.split("/")[-2:]
        name = name.removesuffix(".patch")
        word = name.replace("-", "_")
        with open(patch, encoding="utf-8") as stream:
            head, _, body = stream.read().partition("\n---\n")
        tests = re.findall(r"^Tests: (.+)$", head, re.M)
        if not tests or name in seen:
            sys.exit(f"mutants: {patch}: " + ("there are two of this name" if tests else "no line 'Tests: REGEX'"))
        seen.add(name)
        alone = "\nBuild: alone" in head
        index, why = "-", ""
        try:
            change = regions(source, body)
            if not alone and f"mutant({word})" not in body:
                raise PatchError(f"no mutant({word}), nor 'Build: alone'")
            index = len(groups)
            if not alone:
                index = next((i for i, g in enumerate(groups) if not single[i] and fits(g, change)), index)
            if index == len(groups):
                groups.append({})
                single.append(alone)
            for path in change:
                groups[index].setdefault(path, []).extend(change[path])
        except (PatchError, OSError) as err:
            why = str(err)
        for line in tests:
            print(topic, name, index, int(alone), number(word), why or "-", line, sep="\t")
    for i, group in enumerate(groups):
        for path in group:
            write(source, path, group[path], os.path.join(out, str(i)))


if __name__ == "__main__":
    main(*sys.argv[1:])
