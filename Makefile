# The harness is ci/run; these are its usual runs. LINUX=DIR takes the kernel from your git tree.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
ALL_ARGS := $(if $(LINUX),--linux $(LINUX)) $(if $(ONTO),--onto $(ONTO))

.PHONY: help run check check-all bench mbox clean distclean
help:
	@echo 'make run        get the kernel, apply the series, build, boot, run the selftests of the series'
	@echo 'make check      tests of the harness, checks of the patches, and make run on x86_64 and on arm without LPAE;'
	@echo '                the quick ones of mainline'\''s own tests of mm, compared with the base; some planted bugs'
	@echo 'make check-all  make check with variant debug, all of mainline'\''s tests, coccicheck, the other architectures'
	@echo '                (ci/configs/arch/), checks and a build after each patch, planted bugs, and the benchmarks'
	@echo 'make bench      the benchmarks'
	@echo 'make mbox       out/mbox: the series as mail'
	@echo 'make clean      remove what was built; make distclean: and the kernel tree'
	@echo 'LINUX=DIR       the kernel from your git tree DIR, through git worktree'
	@echo 'ONTO=newest     on the newest kernel that Debian has'
	@echo 'ci/run --help   the stages, one by one'

run:
	@ci/run all --no-check $(ALL_ARGS)

check:
	@ci/run all --full $(ALL_ARGS)

check-all:
	@ci/run all --full --each --arches $(ALL_ARGS)
	@ci/run bench
	@ci/run bench --compare

bench:
	@ci/run all --no-check $(ALL_ARGS)
	@ci/run bench
	@ci/run bench --compare

mbox:
	@ci/run mbox

clean:
	rm -rf out/build out/check out/log out/mbox out/mutate out/range-diff out/regress out/results out/summary out/test

distclean: clean
	@ci/run tree --remove
	rm -rf out
