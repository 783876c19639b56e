# ka: TCP keepalive that works. `make help` lists what there is to make.

CARGO ?= cargo
# Where the examples and the tests look.
export CARGO_TARGET_DIR := $(CURDIR)/target
unexport CARGO_BUILD_TARGET
# What administrators have is not on an ordinary user's path.
export PATH := $(PATH):/usr/sbin:/sbin
# What the lab's networks are made of, and what watches them.
LAB_TOOLS := ip nft tcpdump tshark unshare python3
# What the tests use: compilers, what watches networks, system calls and files, programs to run under the shim, and
# what installs, builds against and looks at what is installed.
TEST_TOOLS := rust cc g++ clang clang++ clang-rt musl-gcc $(LAB_TOOLS) ss nsenter prlimit strace nm readelf valgrind \
	nginx curl redis-server redis-cli redis-benchmark postgres psql ssh sshd ssh-keygen node \
	faketime perl runc torsocks proxychains4 mptcpize jemalloc \
	go bash bash-completion fish zsh script setpriv setcap sudo sysctl systemd-analyze mandoc jsonschema \
	abidiff asio cmake dh dpkg-buildpackage libuv lintian pkg-config \
	mypy $(addprefix python3-,pip pytest requests setuptools wheel)

# Where `make install` puts what: the GNU Coding Standards' names.
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/ka
# Not for -l, and not for everybody's library path.
SHIMDIR ?= $(LIBDIR)/ka
# What `make install` takes.
RELEASE := target/release
BUILT := $(RELEASE)/.built
# As a program asks for it when it starts.
NAME_LIBKA := cd $(RELEASE) && ln -sf libka.so "$$(readelf -d libka.so | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')"
INSTALL_WHERE = RELEASE='$(RELEASE)' DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' BINDIR='$(BINDIR)' LIBDIR='$(LIBDIR)' \
	INCLUDEDIR='$(INCLUDEDIR)' DATADIR='$(DATADIR)' MANDIR='$(MANDIR)' DOCDIR='$(DOCDIR)' SHIMDIR='$(SHIMDIR)'
SOURCES := Cargo.toml Cargo.lock build.rs src scripts/ld $(wildcard crates/*/Cargo.toml crates/*/build.rs crates/*/src)

all: ## release build: target/release/libka.so, libka.a, libka_preload.so and ka
	@scripts/need rust cc
	$(CARGO) build --locked --release --workspace
	@$(NAME_LIBKA)
	@touch $(BUILT)

libka: ## libka.so and libka.a alone, which is all that the examples need
	@scripts/need rust cc
	$(CARGO) build --locked --release --package ka
	@$(NAME_LIBKA)

# Not `all`: whoever installs is root, who may have no Cargo, and should leave nothing of root's in target/.
$(BUILT): $(shell find $(SOURCES) -type f)
	$(MAKE) all

install: $(BUILT) ## installs it; PREFIX (/usr/local), DESTDIR, LIBDIR, ... say where
	@$(INSTALL_WHERE) scripts/install put

uninstall: ## removes what `make install` put there
	@$(INSTALL_WHERE) scripts/install remove

# The newest that the oldest Rust which Cargo.toml allows can build.
CARGO_C := 0.10.16+cargo-0.91.0

deb: all ## Debian packages of it, in target/deb: libka0.N, libka-dev, ka
	@scripts/need dh dpkg-buildpackage
	@scripts/deb

cargo-c: ## sees that `cargo cinstall` installs what `make install` does; builds cargo-c first, which takes minutes
	@scripts/need rust cc libcrypto pkg-config
	[ -e target/cargo-c/bin/cargo-cinstall ] || CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=false \
		$(CARGO) install --locked --root target/cargo-c --target-dir target/cargo-c/build cargo-c@$(CARGO_C)
	PATH="$(CURDIR)/target/cargo-c/bin:$$PATH" $(CARGO) test --locked --test install cargo_c -- --ignored

# What takes minutes to build is built for whoever asks for it: the newest that the oldest Rust can build.
VERSION_deny := 0.20.2
VERSION_cyclonedx := 0.5.9
VERSION_mutants := 27.1.0
TOOLS := target/tools/bin

$(TOOLS)/cargo-%:
	@scripts/need rust cc
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=false \
		$(CARGO) install --locked --root target/tools --target-dir target/tools/build cargo-$*@$(VERSION_$*)

deny: $(TOOLS)/cargo-deny ## holds what ka is made of to deny.toml; CHECKS=advisories asks RustSec's database; builds cargo-deny first
	$< --locked --workspace check $(CHECKS)
	$< --locked --workspace --manifest-path fuzz/Cargo.toml --config deny.toml check $(CHECKS)

deny: CHECKS ?= licenses bans sources

sbom: $(TOOLS)/cargo-cyclonedx all ## bills of materials (CycloneDX) of what is shipped, in target/sbom; builds cargo-cyclonedx first
	@scripts/need git
	@scripts/sbom $(CURDIR)/$<
	$(CARGO) test --locked --quiet --test sbom -- --ignored

# Not in target/: each mutant is built there, and tried.
mutants: $(TOOLS)/cargo-mutants ## changes the rules and the shim's decisions one by one, and sees that a test notices; an hour
	env -u CARGO_TARGET_DIR PATH="$(CURDIR)/$(TOOLS):$$PATH" cargo mutants --output target \
		$(addprefix --package ,ka-core ka-liveness ka-preload) $(MUTANTS)

test: ## all tests, on a fresh machine too: installs what is missing, builds, runs
	@scripts/need $(TEST_TOOLS)
	$(CARGO) test --locked --workspace

faults: ## each system call of the library, the shim and the command fails with each errno that it can have: minutes
	@scripts/need rust cc ip unshare prlimit setpriv
	KA_FAULTS=all $(CARGO) test --locked --test faults
	KA_FAULTS=all $(CARGO) test --locked --package ka-cli --test faults

sanitize: ## under the sanitizers and valgrind, with a libka that is built with them too: minutes
	@scripts/need rust cc clang clang-rt valgrind
	@scripts/sanitize

header: ## writes include/ka.h from src/, and tests/abi/VERSION, what later releases must not break
	KA_HEADER=write $(CARGO) test --locked --quiet --test header the_header_is_what_the_sources_say
	KA_HEADER=write $(CARGO) test --locked --quiet --test abi the_baseline_is_what_the_sources_say

man: ## writes the command's pages in man/ from crates/ka-cli/src/args.rs
	KA_MAN=write $(CARGO) test --locked --quiet --package ka-cli --bin ka the_pages_are_what_the_definition_says

copyright: ## writes pkg/debian/copyright from what Cargo.lock names: whose code is shipped, under which licences
	KA_COPYRIGHT=write $(CARGO) test --locked --quiet --test copyright

unsafe: ## writes the table of SECURITY.md that says where `unsafe` is
	KA_UNSAFE=write $(CARGO) test --locked --quiet --test security all_unsafe_is_in_the_table

lab: ## keepalive in networks of its own, on the wire: a table, and target/lab/report.md with pictures
	@scripts/need rust cc $(LAB_TOOLS)
	KA_LAB_REPORT=$(CURDIR)/target/lab $(CARGO) test --locked --quiet --test lab

matrix: ## programs of Debian's in each way that ka has, as a table: docs/matrix.md, or one of them alone (ONLY=nginx)
	@scripts/need rust cc ip ss unshare
	KA_MATRIX_ALL=1 $(if $(ONLY),,KA_MATRIX_REPORT=$(CURDIR)/docs/matrix.md) \
		$(CARGO) test --locked --quiet --test matrix -- $(if $(ONLY),--exact $(ONLY))

# How long, and where what was seen is written.
MINUTES ?= 20
SOAK ?= docs
soak: ## a server with 5,000 connections under the shim, with faults, for MINUTES (20): docs/soak.md and its picture
	@scripts/need rust cc $(LAB_TOOLS) ss
	@mkdir -p $(SOAK)
	KA_SOAK_MINUTES=$(MINUTES) KA_SOAK_REPORT=$(abspath $(SOAK)) $(CARGO) test --locked --quiet --test lab

aarch64: ## builds for aarch64 here, and runs tests of it under qemu-user
	@scripts/aarch64

kernels: ## ka's ways on other kernels than this machine's, in virtual machines: a table
	@scripts/kernels

bench: all ## side by side with what a C program would do instead
	@scripts/need rust cc ip ss unshare valgrind strace libkeepalive0 libevent libcrypto
	@bench/run

# Each of fuzz/fuzz_targets.
SECONDS ?= 60

fuzz: ## fuzzes whatever reads what others wrote, SECONDS (60) for each of its targets
	@scripts/need rust c++ clang-rt
	@scripts/fuzz -s '$(SECONDS)'

clean: ## removes what was built
	$(CARGO) clean
	$(MAKE) -C c-examples clean
	$(MAKE) -C bindings/cpp clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@printf 'make -C c-examples\n\t\tthe examples in C\nmake -C c-examples demo\n\t\tthe main job, on a real connection\nmake -C c-examples capture\n\t\tprobes on the wire, live, by tcpdump and tshark\nmake -C c-examples heartbeat-demo\n\t\twho only seems to be alive\nmake -C bindings/cpp\n\t\tthe examples in C++, with Asio and libuv\n' | expand -t 8

.PHONY: all install uninstall deb cargo-c test header man lab matrix soak aarch64 kernels bench clean help libka copyright deny sbom unsafe mutants fuzz faults sanitize
