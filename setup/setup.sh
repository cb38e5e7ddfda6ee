#!/bin/sh
# Makes sure of what a fresh Debian machine with Rust, make and gcc still lacks: the standard
# library's source, gcc's 32-bit half, cpio, and a static 32-bit BusyBox for the guest to run. With "tests" as
# argument also what tests alone need: cmake and libclang.
# Asks nothing, and takes no time when nothing is missing. What needs root is done by root and
# told to anybody else.
set -eu
project=$(cd "$(dirname "$0")/.." && pwd)
export DEBIAN_FRONTEND=noninteractive

busybox="$project/build/busybox-i386/bin/busybox"
updated=
missing=

say() { printf 'setup: %s\n' "$*" >&2; }
am_root() { [ "$(id -u)" = 0 ]; }
lacks() { missing="$missing
    $*"; }

# Debian's package lists, once. Some index may be out of step with its mirror: what is needed
# from the others is still found, and what isn't fails below, with its own message.
update_lists() {
    [ -z "$updated" ] || return 0
    apt-get -qq update >/dev/null 2>&1 || say 'apt-get update failed in part; going on with what there is'
    updated=yes
}

# Installs packages, or notes what to type.
install() {
    if am_root && command -v apt-get >/dev/null; then
        say "installing $*"
        update_lists
        apt-get -qq install --yes --no-install-recommends "$@" >/dev/null && return 0
    fi
    lacks "apt-get install $*"
}

read_toolchain() { . "$project/setup/guest-toolchain.sh"; }

# The standard library's source: from rustup, or else from Debian with a compiler that fits it.
ensure_rust_source() {
    read_toolchain
    [ -z "$guest_cargo" ] || return 0
    if command -v rustup >/dev/null; then
        say 'installing rust-src'
        timeout 300 rustup component add rust-src >/dev/null 2>&1 || say 'rustup has no rust-src for us'
        read_toolchain
        [ -z "$guest_cargo" ] || return 0
    fi
    install rustc-web cargo-web rust-web-src
    read_toolchain
    [ -n "$guest_cargo" ] || lacks 'rustup component add rust-src'
}

# gcc's -m32: programs for the guest, and the processor's own answers in tests, are 32-bit.
ensure_gcc_32() {
    echo 'int main(void) { return 0; }' | gcc -m32 -x c -o /dev/null - 2>/dev/null || install gcc-multilib
}

# The other processor that ours is compared with is built by cmake; its bindings are made by libclang.
ensure_unicorn_tools() {
    command -v cmake >/dev/null || install cmake
    for library in ${LIBCLANG_PATH:-} /usr/lib/llvm-*/lib/libclang.so /usr/lib/libclang.so /usr/lib64/libclang.so; do
        [ ! -e "$library" ] || return 0
    done
    install libclang-dev
}

ensure_cpio() {
    command -v cpio >/dev/null || install cpio
}

# BusyBox, from Debian's archive for i386: only unpacked into build/, never installed.
ensure_busybox() {
    [ ! -x "$busybox" ] || return 0
    if ! dpkg --print-foreign-architectures | grep -qx i386; then
        if ! am_root; then
            lacks 'dpkg --add-architecture i386 && apt-get update'
            return 0
        fi
        dpkg --add-architecture i386
        updated=
    fi
    say 'fetching a static 32-bit BusyBox'
    am_root && update_lists
    mkdir -p "$project/build/download"
    (
        cd "$project/build/download"
        rm -f busybox-static_*_i386.deb
        # The download is done by an unprivileged user where the folder lets it, with a warning where not.
        apt-get -qq download busybox-static:i386 2>apt.log || { cat apt.log >&2; exit 1; }
        dpkg -x busybox-static_*_i386.deb "$project/build/busybox-i386"
    ) || lacks 'apt-get download busybox-static:i386 (it failed; see above)'
    rm -rf "$project/build/download"
}

ensure_rust_source
ensure_gcc_32
ensure_cpio
ensure_busybox
[ "${1:-}" != tests ] || ensure_unicorn_tools

if [ -n "$missing" ]; then
    say "this is missing; please run, as root:$missing"
    exit 1
fi
