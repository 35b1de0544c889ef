#!/bin/bash
# Starts a host's engine in control groups of the host's own, so that those of
# plugins, which the engine makes beside its own, are found and removed, too.
# Argument: the host's control group.
set -euo pipefail

if [ -e /sys/fs/cgroup/cgroup.procs ]; then
	roots=(/sys/fs/cgroup) # version 2
else
	roots=()
	for root in /sys/fs/cgroup/*/; do
		if [ -e "$root/cgroup.procs" ]; then
			roots+=("$root")
		fi
	done
fi
for root in "${roots[@]}"; do
	for group in "$root/$1" "$root/$1/engine"; do
		mkdir -p "$group"
		# Version 1 lets no process in before these are set.
		for file in cpuset.cpus cpuset.mems; do
			if [ -e "$root/$file" ]; then
				cat "$root/$file" >"$group/$file"
			fi
		done
	done
	echo 0 >"$root/$1/engine/cgroup.procs"
done
exec dockerd
