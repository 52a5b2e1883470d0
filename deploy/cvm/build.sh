#!/bin/bash
# Builds the image of a confidential VM: a root file system under dm-verity, a kernel, an initial RAM disk and the command
# line that has the root hash. Root on Debian, with mmdebstrap, erofs-utils, cryptsetup-bin, systemd installed.
#
#     deploy/cvm/build.sh FOLDER [MIRROR]
#
# MIRROR: pin it, or two builds have two sets of packages: http://snapshot.debian.org/archive/debian/20261120T000000Z
set -euo pipefail

out=$(realpath -m "${1:?folder}")
mirror=${2:-http://deb.debian.org/debian}
here=$(realpath "$(dirname "$0")")
top=$(realpath "$here/../..")
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600} LC_ALL=C.UTF-8
salt=$(printf strongroom | sha256sum | cut -d' ' -f1) # fixed: it only separates users of one hash, and is public
uuid=5f0cf8b2-3ec4-4e5b-9d0a-0f4e5ad1c7e1
umask 022

tree=$out/tree
mkdir -p "$out"
if [ ! -d "$tree" ]; then
    mmdebstrap --variant=minbase --include="$(paste -sd, "$here/packages")" trixie "$tree" "$mirror"
fi

# The server: the files that its measurement lists, its interpreter and libraries.
rm -rf "$tree/opt/strongroom"
"$top/.venv/bin/python" "$top/tools/gramine.py" --files-only --config "$here/strongroom.toml" --out "$tree/opt/strongroom"
for library in "$tree"/opt/strongroom/lib/*; do # where Debian has a library, the image has Debian's
    if [ -e "$tree/usr/lib/x86_64-linux-gnu/$(basename "$library")" ]; then rm "$library"; fi
done
cp -r --no-preserve=ownership "$here/overlay/." "$tree/"
chroot "$tree" /bin/bash -eu -c '
    grep -q ^strongroom: /etc/passwd || useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin strongroom
    ldconfig
    systemctl enable strongroom.service strongroom-modules.service var-lib-strongroom.mount systemd-networkd.service
    systemctl mask getty@.service serial-getty@.service console-getty.service getty.target ctrl-alt-del.target \
        systemd-firstboot.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer
    systemctl set-default multi-user.target
    passwd --lock root
'
kernel=$(basename "$tree"/lib/modules/*)
chroot "$tree" dracut --force --reproducible --no-hostonly --no-hostonly-cmdline --no-compress --quiet \
    --kver "$kernel" --add "systemd systemd-veritysetup" --omit "plymouth lvm mdraid multipath nfs iscsi" \
    --add-drivers "erofs dm-verity virtio_blk virtio_pci" /boot/initrd.img
zstd -19 --quiet --force "$tree/boot/initrd.img" -o "$out/initrd"
cp "$tree/boot/vmlinuz-$kernel" "$out/vmlinuz"

# What differs from build to build, and what nobody needs.
rm -rf "$tree"/boot/* "$tree"/var/cache/* "$tree"/var/log/* "$tree"/var/lib/apt/* "$tree"/tmp/* "$tree"/run/* \
    "$tree"/usr/share/{doc,man,locale,info} "$tree"/var/lib/dpkg/*-old "$tree"/etc/{passwd,group,shadow,gshadow}- \
    "$tree"/etc/{resolv.conf,hostname} "$tree"/usr/lib/udev/hwdb.bin "$tree"/etc/ld.so.cache~ "$tree"/var/lib/systemd/*
echo uninitialized > "$tree/etc/machine-id"
mkdir -p "$tree/var/lib/strongroom"

rm -f "$out"/root.erofs "$out"/root.verity
mkfs.erofs -T "$SOURCE_DATE_EPOCH" -U "$uuid" "$out/root.erofs" "$tree" > /dev/null
veritysetup format "$out/root.erofs" "$out/root.verity" --salt="$salt" --uuid="$uuid" |
    sed -n 's/^Root hash:[[:space:]]*//p' > "$out/roothash"

# Everything after this line is measured with the kernel; nothing else decides what runs. So nothing is taken from where
# the host can put something unmeasured: credentials in SMBIOS and fw_cfg (units, users, mounts), partitions that a table
# on a disk of the host's asks to be mounted or swapped to, the EFI variable SystemdOptions, which is read like this line.
echo "console=ttyS0 quiet ro panic=-1 random.trust_cpu=y random.trust_bootloader=n lockdown=confidentiality systemd.verity=yes" \
    "roothash=$(cat "$out/roothash") systemd.verity_root_data=/dev/disk/by-id/virtio-strongroom-root" \
    "systemd.verity_root_hash=/dev/disk/by-id/virtio-strongroom-hash systemd.verity_root_options=panic-on-corruption" \
    "rootfstype=erofs rd.shell=0 rd.emergency=poweroff systemd.firstboot=off" \
    "systemd.import_credentials=no systemd.gpt_auto=0 systemd.swap=0 efi=noruntime" | tr -d '\n' > "$out/cmdline"
(cd "$out" && sha256sum vmlinuz initrd cmdline root.erofs root.verity)
echo "root hash $(cat "$out/roothash")"
