# What people type. Each target does whatever it needs first, so that any of them works in a fresh clone.
#
#   make            builds everything: the guest's kernel and, around it, target/release/lguest
#   make run        boots the bundled guest to a prompt, with BusyBox in its initrd
#   make test       runs every test, examples in the documentation included
#   make test-long  holds translator and processor against other processors, each time from a new seed (LONG_SECONDS each)
#   make test-linux boots the Linux kernels that LGUEST_LINUX_KERNELS names, and tries everything on them: CONTRIBUTING.md
#   make bench      prints how fast it is, beside the same thing done natively
#   make bench-linux
#                   the same for Linux guests, beside QEMU's emulation: LGUEST_LINUX_KERNELS names the kernels
#   make docs       the API documentation, and the book where mdbook is installed
#   make fuzz       throws random input at what reads a guest's or a user's bytes (FUZZ_SECONDS each);
#                   fuzz/README.md tells how a fuzzer does that
#   make check      formatting and lints, as CI runs them
#   make clean      forgets everything that was built

CARGO        ?= cargo
MEMORY       ?= 64M
FUZZ_SECONDS ?= 60
# Cargo's own variable moves the command; recipes follow it.
TARGET       := $(or $(CARGO_TARGET_DIR),target)

LGUEST := $(TARGET)/release/lguest
INITRD := build/initrd.cpio

.PHONY: all run test test-long test-linux bench bench-linux docs fuzz check setup test-setup guest initrd command clean

all: command

# Installs what is missing, or says what to install. Quick when there is nothing to do.
setup:
	@setup/setup.sh </dev/null

# As setup, and what only tests need.
test-setup:
	@setup/setup.sh tests </dev/null

# The guest's kernel, build/kernel.elf: compiled for another processor, in a workspace of its own.
guest: setup
	@setup/build-guest.sh </dev/null

# The guest's files, $(INITRD): a cpio archive with a static 32-bit BusyBox.
initrd: setup
	@setup/build-initrd.sh </dev/null

command: guest
	@$(CARGO) build --release --package lguest --bin lguest

run: command initrd
	@$(LGUEST) run --memory $(MEMORY) --initrd $(INITRD)

test: guest initrd test-setup
	LGUEST_LINUX_KERNELS= $(CARGO) test --workspace
	cd kernel && $(CARGO) test --package lguest-kernel-logic --package lguest-system-calls

# A failure prints the seed that repeats it.
test-long: test-setup
	LGUEST_ORACLE_SECONDS=$(or $(LONG_SECONDS),600) $(CARGO) test --package lguest-oracle --package lguest-system-oracle \
		--no-fail-fast

# Without kernels, it only says how to give some. WORDS chooses checks by their names.
test-linux: guest
	@$(CARGO) test --release --package lguest --test linux -- $(WORDS)

bench: guest initrd
	@$(CARGO) bench --package lguest --bench first_light

bench-linux: guest setup
	@$(CARGO) bench --package lguest --bench linux

docs: guest test-setup
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items
	@if command -v mdbook >/dev/null; then mdbook build docs; \
	else echo "The book was left out: mdbook isn't installed (cargo install mdbook)."; fi

fuzz: guest
	LGUEST_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --package lguest --package lguest-fuzz-cases -- --nocapture fuzz

check: guest test-setup
	$(CARGO) fmt --all --check
	cd kernel && $(CARGO) fmt --all --check
	cd fuzz && $(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	.ci/check-guest

clean:
	rm -rf build docs/book kernel/target
	$(CARGO) clean
