# ka: TCP keepalive that works. `make help` lists the targets.

CARGO ?= cargo
# The examples and the tests expect the build results here.
export CARGO_TARGET_DIR := $(CURDIR)/target
unexport CARGO_BUILD_TARGET
# An ordinary user's PATH lacks the folders of administration tools.
export PATH := $(PATH):/usr/sbin:/sbin
# Tools that make and watch the networks of the lab.
LAB_TOOLS := ip nft tcpdump tshark unshare python3
# Tools of the tests: compilers, monitors of networks, system calls and files, programs to run under the shim, and tools
# that install, use and check packages.
TEST_TOOLS := rust cc g++ clang clang++ clang-rt musl-gcc $(LAB_TOOLS) ss nstat nsenter prlimit strace nm readelf valgrind \
	nginx curl redis-server redis-cli redis-benchmark postgres psql ssh sshd ssh-keygen node \
	faketime perl runc torsocks proxychains4 mptcpize jemalloc \
	go bash bash-completion fish zsh script tmux setpriv setcap sudo sysctl systemd-analyze mandoc jsonschema promtool \
	abidiff asio cmake dh dpkg-buildpackage libuv lintian pkg-config \
	mypy $(addprefix python3-,pip pytest requests setuptools wheel)

# The folders of `make install`. The names are those of the GNU Coding Standards.
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/ka
# The shim is not a library for -l, so it does not belong in LIBDIR itself.
SHIMDIR ?= $(LIBDIR)/ka
# The folder with the files for `make install`.
RELEASE := target/release
BUILT := $(RELEASE)/.built
# Makes the link with the SONAME, which a program loads when it starts.
NAME_LIBKA := cd $(RELEASE) && ln -sf libka.so "$$(readelf -d libka.so | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')"
INSTALL_WHERE = RELEASE='$(RELEASE)' DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' BINDIR='$(BINDIR)' LIBDIR='$(LIBDIR)' \
	INCLUDEDIR='$(INCLUDEDIR)' DATADIR='$(DATADIR)' MANDIR='$(MANDIR)' DOCDIR='$(DOCDIR)' SHIMDIR='$(SHIMDIR)'
SOURCES := Cargo.toml Cargo.lock build.rs src scripts/ld \
	$(filter-out crates/ka-test/%,$(wildcard crates/*/Cargo.toml crates/*/build.rs crates/*/src))

all: ## release build: libka.so, libka.a, libka_preload.so, ka, ka-top and ka-metrics, in target/release
	@scripts/need rust cc
	$(CARGO) build --locked --release --workspace --exclude ka-test
	@$(NAME_LIBKA)
	@touch $(BUILT)

libka: ## build only libka.so and libka.a; the examples need no more
	@scripts/need rust cc
	$(CARGO) build --locked --release --package ka
	@$(NAME_LIBKA)

# `install` does not depend on `all`. root may have no Cargo, and should write no files into target/.
$(BUILT): $(shell find $(SOURCES) -type f)
	$(MAKE) all

install: $(BUILT) ## install; PREFIX (/usr/local), DESTDIR, LIBDIR and others choose the folders
	@$(INSTALL_WHERE) scripts/install put

uninstall: ## remove the files that `make install` put there
	@$(INSTALL_WHERE) scripts/install remove

# The newest version that builds with the rust-version of Cargo.toml.
CARGO_C := 0.10.16+cargo-0.91.0

deb: all ## build the Debian packages libka0, libka-dev and ka in target/deb
	@scripts/need dh dpkg-buildpackage
	@scripts/deb

cargo-c: ## check that `cargo cinstall` installs the same files as `make install`; builds cargo-c first (minutes)
	@scripts/need rust cc libcrypto pkg-config
	[ -e target/cargo-c/bin/cargo-cinstall ] || CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=false \
		$(CARGO) install --locked --root target/cargo-c --target-dir target/cargo-c/build cargo-c@$(CARGO_C)
	PATH="$(CURDIR)/target/cargo-c/bin:$$PATH" $(CARGO) test --locked --test install cargo_c -- --ignored

# These tools take minutes to build, so only their targets build them. The versions are the newest that build with the
# rust-version of Cargo.toml.
VERSION_deny := 0.20.2
VERSION_cyclonedx := 0.5.9
VERSION_mutants := 27.1.0
TOOLS := target/tools/bin

$(TOOLS)/cargo-%:
	@scripts/need rust cc
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=false \
		$(CARGO) install --locked --root target/tools --target-dir target/tools/build cargo-$*@$(VERSION_$*)

deny: $(TOOLS)/cargo-deny ## check the dependencies against deny.toml; CHECKS=advisories asks RustSec's database; builds cargo-deny first (minutes)
	$< --locked --workspace check $(CHECKS)
	$< --locked --workspace --manifest-path fuzz/Cargo.toml --config deny.toml check $(CHECKS)

deny: CHECKS ?= licenses bans sources

sbom: $(TOOLS)/cargo-cyclonedx all ## write a bill of materials (CycloneDX) for each binary to target/sbom; builds cargo-cyclonedx first (minutes)
	@scripts/need git
	@scripts/sbom $(CURDIR)/$<
	$(CARGO) test --locked --quiet --test sbom -- --ignored

# CARGO_TARGET_DIR is unset, because cargo-mutants builds and tests each mutant in its own folder.
mutants: $(TOOLS)/cargo-mutants ## change the rules and the shim one place at a time, and check that a test fails each time (an hour)
	env -u CARGO_TARGET_DIR PATH="$(CURDIR)/$(TOOLS):$$PATH" cargo mutants --output target \
		$(addprefix --package ,ka-core ka-policy ka-liveness ka-preload) $(MUTANTS)

# Only tests that need no root, no network namespace and no other programs. The filter `sources` selects the tests that
# compare include/ka.h and tests/abi with the sources. The tests of the command compare its manual pages.
check: ## fast checks without root: format, clippy, unit tests, the contract of libka, generated files; installs nothing
	@scripts/need -n rust rustfmt cargo-clippy cc strace mandoc
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --quiet --workspace --all-targets -- -D warnings
	$(CARGO) test --locked --quiet --package ka-core --package ka-policy --package ka-liveness
	$(CARGO) test --locked --quiet --package ka-reach --package ka-preload --package ka-cli --package ka-top --package ka-metrics --lib --bins
	$(CARGO) test --locked --quiet $(addprefix --test ,arguments descriptors explain lenient manual reaper security)
	$(CARGO) test --locked --quiet --test header --test abi sources

test: ## run all tests (about 10 minutes on 2 cores); as root on Debian, install missing tools first, otherwise list them
	@echo "make test: runs all tests, about 10 minutes on 2 cores. make check: the fast ones, without installing anything."
	@echo "These tools must be there; as root on Debian, missing ones are installed first: $(TEST_TOOLS)" | fold -s -w 100
	@scripts/need $(TEST_TOOLS)
	$(CARGO) test --locked --workspace --no-run
	@$(MAKE) --no-print-directory --jobs=2 test-libka test-others

# The tests of timers mostly wait, so the two halves of the tests run at the same time. cargo must not look for make's job
# server, which recipes do not inherit.
test-libka:
	MAKEFLAGS= $(CARGO) test --locked --package ka

test-others:
	MAKEFLAGS= $(CARGO) test --locked --workspace --exclude ka

faults: ## make each system call of the library, the shim and the command fail with each possible errno (minutes); `make test` tries some
	@scripts/need rust cc ip unshare prlimit setpriv
	KA_FAULTS=all $(CARGO) test --locked --test faults
	KA_FAULTS=all $(CARGO) test --locked --package ka-cli --test faults

sanitize: ## run under sanitizers and valgrind, with a libka that is built with sanitizers too (minutes)
	@scripts/need rust cc clang clang-rt valgrind
	@scripts/sanitize

header: ## write include/ka.h from src/, and tests/abi/VERSION, with which later releases must stay compatible
	KA_HEADER=write $(CARGO) test --locked --quiet --test header header_equals_the_sources
	KA_HEADER=write $(CARGO) test --locked --quiet --test abi baseline_equals_the_sources

man: ## write the command's pages in man/ from crates/ka-cli/src/args.rs
	KA_MAN=write $(CARGO) test --locked --quiet --package ka-cli --lib the_manual_pages_match_the_definition

copyright: ## write pkg/debian/copyright: the copyright holders and licences of the linked crates
	KA_COPYRIGHT=write $(CARGO) test --locked --quiet --test copyright

unsafe: ## write SECURITY.md's table of `unsafe` code
	KA_UNSAFE=write $(CARGO) test --locked --quiet --test security the_table_lists_all_unsafe_code

lab: ## test keepalive in networks of namespaces; print a table, and write target/lab/report.md with pictures
	@scripts/need rust cc $(LAB_TOOLS)
	KA_LAB_REPORT=$(CURDIR)/target/lab $(CARGO) test --locked --quiet --test lab

matrix: ## test programs of Debian with each of ka's ways, and write docs/matrix.md; ONLY=nginx tests one
	@scripts/need rust cc ip ss unshare
	KA_MATRIX_ALL=1 $(if $(ONLY),,KA_MATRIX_REPORT=$(CURDIR)/docs/matrix.md) \
		$(CARGO) test --locked --quiet --test matrix -- $(if $(ONLY),--exact $(ONLY))

# The duration of the soak, and the folder for its report.
MINUTES ?= 20
SOAK ?= docs
soak: ## run a server with 5,000 connections under the shim, with faults, for MINUTES (20); write docs/soak.md, or to the folder SOAK
	@scripts/need rust cc $(LAB_TOOLS) ss
	@mkdir -p $(SOAK)
	KA_SOAK_MINUTES=$(MINUTES) KA_SOAK_REPORT=$(abspath $(SOAK)) $(CARGO) test --locked --quiet --test lab

aarch64: ## build for aarch64 here, and run the tests that qemu-user can emulate
	@scripts/aarch64

kernels: ## test ka's ways on other kernels of Debian, in virtual machines, and print a table
	@scripts/kernels

bench: all ## measure ka and its alternatives
	@scripts/need rust cc ip ss sysctl unshare python3 valgrind strace libkeepalive0 libevent libcrypto
	@bench/run

# The time for each target in fuzz/fuzz_targets.
SECONDS ?= 60

fuzz: ## fuzz the parsers of untrusted input, SECONDS (60) for each target
	@scripts/need rust c++ clang-rt
	@scripts/fuzz -s '$(SECONDS)'

clean: ## remove build results
	$(CARGO) clean
	$(MAKE) -C c-examples clean
	$(MAKE) -C bindings/cpp clean

help: ## print this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@printf 'make -C %-26s%s\n' \
		'c-examples' 'build the examples in C' \
		'c-examples demo' 'find a dead peer on a real connection' \
		'c-examples capture' 'show probes on the wire, live, with tcpdump and tshark' \
		'c-examples pool-demo' 'find a silently dropped connection in a connection pool' \
		'c-examples heartbeat-demo' 'find silent, frozen and forged peers with the heartbeat' \
		'bindings/cpp' 'build the examples in C++, with Asio and libuv'

.PHONY: all install uninstall deb cargo-c check test test-libka test-others header man lab matrix soak aarch64 kernels bench clean help libka copyright deny sbom unsafe mutants fuzz faults sanitize
