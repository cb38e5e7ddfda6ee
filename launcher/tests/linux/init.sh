#!/bin/busybox sh
# The first program of a guest under test: makes the machine usable, then does what is typed, a line at a
# time, and says with what status each ended.
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sysfs /sys
# Kernels before 2.6.32 don't make their devices' nodes.
mount -t devtmpfs devtmpfs /dev 2>/dev/null || for number in /sys/class/*/*/dev /sys/block/*/dev; do
    case $number in
    *'*'*) continue ;;
    /sys/block/*) kind=b ;;
    *) kind=c ;;
    esac
    name=${number%/dev}
    name=/dev/${name##*/}
    [ -e "$name" ] || mknod "$name" $kind $(tr : ' ' <"$number")
done
mount -t tmpfs -o size=90% tmpfs /tmp
# The kernel speaks when it dies, and not into what programs print.
dmesg -n 1
exec </dev/hvc0 >/dev/hvc0 2>&1
echo "The guest is up: Linux $(uname -r)."
while read -r line; do
    eval "$line"
    echo "[status $?]"
done
