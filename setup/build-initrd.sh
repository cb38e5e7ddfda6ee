#!/bin/sh
# Packs the guest's files, build/initrd.cpio: BusyBox, and a few small texts
# to try it on.
set -eu
project=$(cd "$(dirname "$0")/.." && pwd)
busybox="$project/build/busybox-i386/bin/busybox"
initrd="$project/build/initrd.cpio"
[ -x "$busybox" ] || { echo 'build-initrd: no BusyBox; run setup/setup.sh first' >&2; exit 1; }
[ ! "$initrd" -nt "$0" ] || [ ! "$initrd" -nt "$busybox" ] || exit 0

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
cp "$busybox" "$root/busybox"
mkdir "$root/texts"
cat >"$root/texts/poem.txt" <<'END'
A guest there was who thought itself a host,
And wrote its tables with a lordly hand;
But every store it made went by the post,
And someone else decided where to land.
END
cat >"$root/texts/numbers.txt" <<'END'
17
4
1729
256
42
6
END
chmod -R a+rX,u+w "$root"
# No owner, no times, names in order: the same archive from the same files.
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet --create --format=newc --owner=0:0 --reproducible) >"$initrd.new"
mv "$initrd.new" "$initrd"
