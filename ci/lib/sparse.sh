#!/bin/bash
# kbuild's $(CHECK): sparse, with a mark on its lines, which come among those of the compiler.
set -o pipefail
sparse "$@" 2>&1 | sed 's/^/sparse: /' >&2
