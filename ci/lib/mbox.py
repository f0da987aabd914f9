#!/usr/bin/env python3
"""One topic of the series as an mbox: cover letter as 0/N, threaded, Message-IDs from the contents."""
import argparse
import email
import email.header
import email.policy
import email.utils
import hashlib
import pathlib
import re
import sys


def split(raw):
    head, _, body = raw.partition("\n\n")
    lines = re.sub(r"\n[ \t]+", lambda m: "\x00" + m.group(0)[1:], head).split("\n")
    fields = []
    for line in lines[1:] if lines[0].startswith("From ") else lines:
        name, _, value = line.partition(":")
        fields.append([name, value.strip(" ").replace("\x00", "\n")])
    return fields, body


def get(fields, name):
    return next((v for n, v in fields if n.lower() == name.lower()), "")


def join(fields, body):
    head = "".join(f"{n}: {v}\n" for n, v in fields)
    return f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n{head}\n{body.rstrip()}\n\n"


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--topic", required=True)
    ap.add_argument("--base", required=True)
    ap.add_argument("--cover", type=pathlib.Path)
    ap.add_argument("--tail", type=pathlib.Path, help="shortlog and diffstat for the cover letter")
    ap.add_argument("--reroll", type=int, default=1)
    ap.add_argument("--out", type=pathlib.Path, required=True)
    ap.add_argument("patches", type=pathlib.Path, nargs="+")
    args = ap.parse_args()

    mails = [split(p.read_text(encoding="utf-8")) for p in args.patches]
    for fields, _ in mails:
        for field in fields:
            if field[0].lower() in ("from", "subject"):
                # b4 0.12 dies of folded ones.
                field[1] = " ".join(field[1].split())
    total = len(mails)
    version = f" v{args.reroll}" if args.reroll > 1 else ""
    width = len(str(total))
    sender = get(mails[0][0], "From")
    domain = email.utils.parseaddr(sender)[1].rpartition("@")[2] or "localhost"

    def message_id(number, text):
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"<{args.topic}-v{args.reroll}-{number}-{digest}@{domain}>"

    out = []
    parent = None
    if args.cover and args.cover.is_file():
        subject, _, body = args.cover.read_text(encoding="utf-8").partition("\n")
        subject = re.sub(r"^Subject:\s*", "", subject.strip())
        if not subject:
            sys.exit(f"{args.cover}: the first line, the subject, is empty")
        tail = args.tail.read_text(encoding="utf-8") if args.tail else ""
        body = body.strip("\n") + "\n\n" + tail.strip("\n") + f"\n\nbase-commit: {args.base}\n"
        body = re.sub(r"(?m)^(>*From )", r">\1", body)
        plain = f"[PATCH{version} {'0' * width}/{total}] {subject}"
        if not plain.isascii():
            plain = email.header.Header(plain, "utf-8").encode()
        parent = message_id(0, sender + plain + body)
        out.append(join([
            ["From", sender], ["Date", get(mails[-1][0], "Date")], ["Subject", plain],
            ["Message-Id", parent], ["MIME-Version", "1.0"],
            ["Content-Type", "text/plain; charset=UTF-8"], ["Content-Transfer-Encoding", "8bit"],
        ], body))

    first = parent
    for number, (fields, body) in enumerate(mails, 1):
        count = f" {number:0{width}d}/{total}" if total > 1 or parent else ""
        subject = re.sub(r"^\[PATCH[^]]*\]\s*", "", get(fields, "Subject"))
        fields = [f for f in fields if f[0].lower() not in ("message-id", "in-reply-to", "references")]
        for field in fields:
            if field[0].lower() == "subject":
                field[1] = f"[PATCH{version}{count}] {subject}"
        ident = message_id(number, join(fields, body))
        fields.append(["Message-Id", ident])
        if parent:
            fields += [["In-Reply-To", parent], ["References", parent]]
        else:
            parent = ident
        first = first or ident
        out.append(join(fields, body))

    args.out.write_text("".join(out), encoding="utf-8")
    print(first.strip("<>"))


if __name__ == "__main__":
    main()
