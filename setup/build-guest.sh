#!/bin/sh
# Builds the guest: first its shell, a program for level 3, then the kernel around it. The result is
# build/kernel.elf, which the launcher takes into itself.
set -eu
project=$(cd "$(dirname "$0")/.." && pwd)
. "$project/setup/guest-toolchain.sh"
if [ -z "$guest_cargo" ]; then
    echo 'build-guest: no source of the standard library; run setup/setup.sh first' >&2
    exit 1
fi

built="${CARGO_TARGET_DIR:-$project/kernel/target}/i686-lguest/release"
case $built in /*) ;; *) built="$PWD/$built" ;; esac
export CARGO_TARGET_DIR="${built%/i686-lguest/release}"

# Copies a program without its debugging information, and only when it changed, so that what
# depends on it isn't built again.
publish() {
    mkdir -p "$project/build"
    strip --strip-debug -o "$2.new" "$1"
    if cmp -s "$2.new" "$2"; then rm "$2.new"; else mv "$2.new" "$2"; fi
}

# shellcheck disable=SC2086 # the options are words
cargo_for_guest build --quiet --release --package lguest-shell $guest_target
publish "$built/lguest-shell" "$project/build/shell.elf"
# shellcheck disable=SC2086
cargo_for_guest build --quiet --release --package lguest-kernel $guest_target
publish "$built/lguest-kernel" "$project/build/kernel.elf"
