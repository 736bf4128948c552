# Becomes the systemd of the machine. It runs as the first process of new PID, mount, network, UTS and IPC namespaces,
# in the directory of the machine, which has the files to be installed in tree/; $1 is the name of its cgroup, $2 the root
# directory of the system below: / or another Debian.

mount --make-rprivate /

# A cgroup of its own, so that this systemd rules over nothing else.
mkdir cgroup layer root
mount -t cgroup2 none cgroup
mkdir "cgroup/$1"
echo 0 >"cgroup/$1/cgroup.procs"

# The files of the system below, those to be installed above; what the machine writes goes to memory.
mount -t tmpfs -o mode=755 none layer
cp -a tree layer/upper
mkdir layer/work
mount -t overlay -o "lowerdir=$2,upperdir=$PWD/layer/upper,workdir=$PWD/layer/work" none root

# What systemd expects of a container manager: https://systemd.io/CONTAINER_INTERFACE
# It must not set sysctls, most of which are those of the whole machine.
mount -t proc proc root/proc
mount --bind root/proc/sys root/proc/sys
mount -o remount,bind,ro root/proc/sys
mount -t sysfs -o ro sysfs root/sys
mount -t tmpfs -o mode=755 none root/run
mount -t tmpfs none root/tmp
mount -t tmpfs -o mode=755 none root/dev
for device in null zero full random urandom tty; do
	touch root/dev/$device
	mount --bind /dev/$device root/dev/$device
done
mkdir root/dev/pts root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 none root/dev/pts
ln -s pts/ptmx root/dev/ptmx
mount -t tmpfs none root/dev/shm
mkdir root/run/host
touch root/run/host/notify
mount --bind notify root/run/host/notify

# Without an id of its own, systemd would think that this is the first boot, and enable all there is.
rm -f root/etc/machine-id
systemd-machine-id-setup --root=root >/dev/null 2>&1

# Not chroot(1): in a chroot nobody may make user namespaces, which PrivateUsers= needs.
cd root
pivot_root . mnt
exec unshare --cgroup /bin/sh -e -c '
	mount -t cgroup2 none /sys/fs/cgroup
	umount -l /mnt
	exec env -i container=proxyd-e2e NOTIFY_SOCKET=/run/host/notify PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		/lib/systemd/systemd --system systemd.unit=basic.target --show-status=0 --log-target=journal'
