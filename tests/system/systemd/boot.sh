#!/bin/sh
# boot.sh FOLDER [SOURCE TARGET]...
# Boots systemd on a throw-away copy of this machine's file system: an overlay whose changes stay in memory. Each
# SOURCE is visible as TARGET in it, read-only. Prints the process id of that systemd, then waits for the end of standard input
# and leaves nothing behind: no process, no control group, no FOLDER; mounts go with their namespace.
# To be run by root in namespaces of its own for mounts, network, host name and IPC (unshare -m -n -u -i).
set -eu

folder=$1
shift
pid=
root=$folder/root
groups=$folder/cgroup
init=

cleanup() {
    trap - EXIT
    if [ -n "$init" ]; then
        # With its process 1 everything in the namespace dies; unshare ends when it has seen that.
        kill -KILL "${pid:-$init}" 2>/dev/null || true
        wait "$init" 2>/dev/null || true
    fi
    if [ -d "$groups$branch" ]; then
        echo $$ >"$groups$parent/cgroup.procs"
        # The kernel may still be burying the last processes.
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            find "$groups$branch" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.1
        done
    fi
    umount -l "$folder"
    rmdir "$folder"
}
parent=$(sed -n 's/^0:://p' /proc/self/cgroup)
branch=${parent%/}/curfewd-test-$$
mount -t tmpfs -o mode=755 tmpfs "$folder"
trap cleanup EXIT
trap 'exit 1' INT TERM HUP
mkdir "$folder/upper" "$folder/work" "$folder/empty" "$root" "$groups"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"

# A branch of the control groups, which systemd in there takes for the whole tree.
mount -t cgroup2 none "$groups"
mkdir "$groups$branch"

# Nothing that is enabled or mounted on this machine is so in there; of sysinit.target, what services need is left.
mount -t tmpfs -o mode=755 tmpfs "$root/etc/systemd/system"
for each in "$root"/lib/systemd/system/*.target.wants; do
    mount --bind "$folder/empty" "$each"
done
wants=$root/etc/systemd/system/sysinit.target.wants
mkdir "$wants"
for each in systemd-journald.service systemd-tmpfiles-setup.service; do
    ln -s "/lib/systemd/system/$each" "$wants/"
done
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\n' >"$root/etc/systemd/system/booted.target"
: >"$root/etc/fstab"
echo curfewdtest >"$root/etc/hostname"
echo 00000000000000000000000000c0ffee >"$root/etc/machine-id"

for each in run tmp var/tmp var/log root home opt dev; do
    mkdir -p "$root/$each"
    mount -t tmpfs -o mode=755 tmpfs "$root/$each"
done
chmod 1777 "$root/tmp" "$root/var/tmp"
chmod 700 "$root/root"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
for each in null zero full random urandom tty; do
    : >"$root/dev/$each"
    mount --bind "/dev/$each" "$root/dev/$each"
done
: >"$root/dev/console"
mount -t sysfs -o ro sysfs "$root/sys"

while [ $# -ge 2 ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done

# In the branch before its namespace is made: the root of that is wherever its first process is. The kernel's
# settings belong to the whole machine, so they are read-only in there, and its modules and clock out of reach.
echo $$ >"$groups$branch/cgroup.procs"
unshare -m -C -p -f --kill-child sh -ec '
    mount -t proc proc "$1/proc"
    for each in sys sysrq-trigger; do
        [ -e "$1/proc/$each" ] || continue
        mount --bind "$1/proc/$each" "$1/proc/$each"
        mount -o remount,bind,ro "$1/proc/$each"
    done
    mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
    mkdir "$1/.outside"
    cd "$1"
    pivot_root . .outside
    umount -l /.outside
    rmdir /.outside
    mount --make-rshared / # in a container, systemd leaves this to who made it; credentials need it
    exec env -i container=curfewd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
        setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-sys_boot,-syslog \
        /lib/systemd/systemd --system --unit=booted.target --show-status=no --log-target=journal-or-kmsg \
        </dev/null >>/dev/console 2>&1
' sh "$root" </dev/null >&2 &
init=$!
until pid=$(cat "/proc/$init/task/$init/children") && [ -n "$pid" ]; do sleep 0.01; done
pid=${pid% }
echo "$pid"
cat >/dev/null
