#!/bin/bash
# The first process of a lab host, in PID, mount, UTS and network namespaces of
# its own. It turns the machine's file tree into one of a freshly booted host,
# says so, and then only buries the dead: when it is killed, all that ran on
# the host dies with it, and all mounts go.
# Arguments: the host's directory, its name.
set -euo pipefail
dir=$1 name=$2

mount --make-rprivate /
mount -t proc proc /proc
# /sys must be that of this network namespace, with the machine's cgroups.
mount --rbind /sys/fs/cgroup "$dir/cgroup"
umount --lazy /sys
mount -t sysfs sysfs /sys
mount --rbind "$dir/cgroup" /sys/fs/cgroup
umount --lazy "$dir/cgroup"
# Beside version 1 of cgroups newer engines use version 2, too, where plugins of all
# hosts would be in one group: they have one ID.
if mountpoint -q /sys/fs/cgroup/unified; then
	umount --lazy /sys/fs/cgroup/unified
fi
# /run is empty at boot; /etc/docker and /var/lib outlive it.
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$dir/etc-docker" /etc/docker
mount --bind "$dir/var-lib" /var/lib
# The plugin's mounts are slaves of the host's, as under systemd.
mount --make-rshared /
hostname "$name"
echo ready
while :; do
	sleep infinity &
	wait
done
