#!/bin/busybox sh
# What udhcpc calls with the address that it got.
case $1 in
deconfig) ifconfig "$interface" up ;;
bound | renew)
    ifconfig "$interface" "$ip" netmask "$subnet"
    route add default gw "$router"
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
    ;;
esac
