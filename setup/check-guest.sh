#!/bin/sh
# Formatting, lints and tests of the guest's workspace, which is built for another processor. What needs no
# machine is tested here, natively; the rest by booting it.
set -eu
project=$(cd "$(dirname "$0")/.." && pwd)
. "$project/setup/guest-toolchain.sh"

ours='--package lguest-drivers --package lguest-guest --package lguest-kernel --package lguest-shell'
thinking='--package lguest-kernel-logic --package lguest-system-calls'

# shellcheck disable=SC2086 # the options are words
{
    cargo_for_guest fmt $ours $thinking --check
    cargo_for_guest clippy --quiet --release $ours $guest_target -- -D warnings
    cargo_for_guest clippy --quiet --all-targets $thinking -- -D warnings
    cargo_for_guest test --quiet $thinking
}
