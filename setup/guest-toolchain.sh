# Which cargo can build the guest: one whose compiler came with the source of the standard library,
# since nobody ships it compiled for a target of our own. Meant to be read in by the other scripts,
# with `.`: it sets guest_cargo and guest_rustc, or leaves them empty when there is none yet.

# The standard library's source of a compiler, if it is there.
source_of() {
    root=$("$1" --print sysroot 2>/dev/null) || return 1
    [ -f "$root/lib/rustlib/src/rust/library/Cargo.lock" ]
}

guest_cargo= guest_rustc=
if command -v rustc >/dev/null && command -v cargo >/dev/null && source_of rustc; then
    guest_cargo=cargo guest_rustc=rustc
elif [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] && source_of /usr/bin/rustc; then
    guest_cargo=/usr/bin/cargo guest_rustc=/usr/bin/rustc
fi

# Runs that cargo in the guest's workspace. A stable compiler takes the -Z options, and the target
# described by a file, only when told that it is bootstrapping.
cargo_for_guest() {
    (cd "$project/kernel" && RUSTC_BOOTSTRAP=1 RUSTC="$guest_rustc" "$guest_cargo" "$@")
}

# What every build for the guest's processor adds.
guest_target='-Zbuild-std=core,alloc,compiler_builtins -Zbuild-std-features=compiler-builtins-mem
    -Zjson-target-spec --target i686-lguest.json'
