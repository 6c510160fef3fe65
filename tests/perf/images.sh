#!/usr/bin/env bash
# Makes the disk images that the reduction study reads: tests/perf/images.sh DIRECTORY
#
# Root trees of two Debian releases, one of them again after packages were added and after an upgrade, with every file
# shifted by one block, and as a whole shifted by one block; a PostgreSQL data directory before and after pgbench. Each
# is an ext4 image of at most 1 GiB, sparse, about 5 GiB of data together. Images that are there are kept: remove
# one to have it made again. Needs root (chroot), a Debian machine and the archives that it installs from. Nothing is mounted
# outside a mount namespace of the script's own, and nothing listens but PostgreSQL on a Unix socket, meanwhile.
#
# CAIRN_DEBIAN_MIRROR and CAIRN_DEBIAN_SECURITY_MIRROR name other archives than those of apt's configuration.
set -euo pipefail

release=bookworm
next_release=trixie
# A small server: enough of one to have a kernel, an interpreter and libraries in it.
base_packages=linux-image-cloud-amd64,openssh-server,ca-certificates,curl,python3,vim-tiny
added_packages=(nginx git gcc libc6-dev python3-requests sqlite3)
pg_scale=25
pg_transactions=20000

say() {
    echo "images: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

# Runs a step with its output in a log, which is named when the step fails.
logged() {
    local name="$1"
    shift
    say "$name"
    "$@" >"$work/$name.log" 2>&1 || fail "'$name' failed; the end of $work/$name.log:
$(tail -n 5 "$work/$name.log")"
}

need() {
    command -v "$1" >/dev/null || fail "$1 is missing; apt-get install $2"
}

# The archive of a suite that apt is configured with.
configured_archive() {
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$1" '$1 == suite { print $2; exit }'
}

check_machine() {
    [ "$(id -u)" = 0 ] || fail "run this as root: debootstrap makes device nodes and changes its root"
    need apt-get apt
    need debootstrap debootstrap
    need mkfs.ext4 e2fsprogs
    need perl perl
    need runuser util-linux
    pg_bin="$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)"
    [ -n "$pg_bin" ] && [ -x "$pg_bin/initdb" ] && command -v pgbench >/dev/null ||
        fail "PostgreSQL with pgbench is missing; apt-get install postgresql"
    mirror="${CAIRN_DEBIAN_MIRROR:-$(configured_archive "$release")}"
    mirror="${mirror:-$(configured_archive "$next_release")}"
    [ -n "$mirror" ] || fail "apt is not configured with an archive of Debian $release or $next_release; name one in CAIRN_DEBIAN_MIRROR"
    security_mirror="${CAIRN_DEBIAN_SECURITY_MIRROR:-$(configured_archive "$release-security")}"
    [ -n "$security_mirror" ] ||
        fail "apt is not configured with security updates of $release; name an archive in CAIRN_DEBIAN_SECURITY_MIRROR"
    local free_kib
    free_kib="$(df --output=avail -k "$directory" | tail -n 1)"
    [ "$free_kib" -ge $((14 << 20)) ] || fail "$directory has $((free_kib >> 20)) GiB free; 14 are needed on the way"
}

in_tree() {
    local tree="$1"
    shift
    chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
}

# apt-get in a tree, with /proc there and no service started.
apt_in_tree() {
    local tree="$1"
    shift
    printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
    chmod 755 "$tree/usr/sbin/policy-rc.d"
    cp /etc/resolv.conf "$tree/etc/resolv.conf"
    mountpoint -q "$tree/proc" || mount -t proc proc "$tree/proc"
    in_tree "$tree" apt-get -q update
    in_tree "$tree" apt-get -q -y --no-install-recommends "$@"
    umount "$tree/proc"
    rm "$tree/usr/sbin/policy-rc.d"
}

# What differs from run to run and is no part of what is compared.
clean_tree() {
    local tree="$1"
    rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/var/log/* "$tree"/tmp/* "$tree/etc/resolv.conf"
}

# A tree is made in a folder of another name and renamed when it is complete.
tree() {
    local name="$1" maker="$2"
    shift 2
    [ ! -d "$work/$name" ] || return 0
    rm -rf "$work/$name.partial"
    logged "tree-$name" "$maker" "$work/$name.partial" "$@"
    mv "$work/$name.partial" "$work/$name"
}

bootstrap() {
    debootstrap --include="$base_packages" "$2" "$1" "$mirror"
    mountpoint -q "$1/proc" && umount "$1/proc"
    clean_tree "$1"
}

with_packages() {
    cp -a "$work/$release" "$1"
    apt_in_tree "$1" install "${added_packages[@]}"
    clean_tree "$1"
}

upgraded() {
    cp -a "$work/$release" "$1"
    cat >>"$1/etc/apt/sources.list" <<SOURCES
deb $mirror $release-updates main
deb $security_mirror $release-security main
SOURCES
    apt_in_tree "$1" dist-upgrade
    clean_tree "$1"
}

# One block, the same in front of every file, as a header would be.
with_files_shifted() {
    cp -a "$work/$release" "$1"
    find "$1" -xdev -type f -print0 | perl -0 -ne '
        BEGIN { $/ = "\0"; $block = ("a block in front of the file\n" x 142) . ("." x 4096); $block = substr($block, 0, 4096); }
        chomp;
        my ($device, $inode, $size, $accessed, $modified) = (lstat)[0, 1, 7, 8, 9];
        next if $seen{"$device:$inode"}++ || $size == 0;
        local $/;
        open(my $file, "<", $_) or die "$_: $!";
        binmode $file;
        my $content = <$file>;
        close $file;
        open($file, ">", $_) or die "$_: $!";
        binmode $file;
        print $file $block, $content;
        close $file or die "$_: $!";
        utime $accessed, $modified, $_;
    '
}

# An ext4 image of a tree: never mounted, and the same identity every time it is made.
image() {
    local name="$1" source="$2" identity blocks
    [ ! -f "$directory/$name.img" ] || return 0
    identity="$(echo "$name" | md5sum | sed -E 's/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/\1-\2-\3-\4-\5/')"
    blocks="$(($(du -s --block-size=4096 "$source" | cut -f 1) * 11 / 10 + 16384))"
    [ "$blocks" -le 262144 ] || fail "the image $name would be larger than 1 GiB"
    rm -f "$directory/$name.partial"
    E2FSPROGS_FAKE_TIME=1700000000 logged "image-$name" mkfs.ext4 -q -b 4096 -U "$identity" -E "hash_seed=$identity,lazy_itable_init=1" \
        -d "$source" "$directory/$name.partial" "$blocks"
    mv "$directory/$name.partial" "$directory/$name.img"
}

# The image of a tree that is made for it. The first release's tree is what others are made from.
tree_image() {
    local name="$1"
    [ ! -f "$directory/$name.img" ] || return 0
    tree "$release" bootstrap "$release"
    tree "$@"
    image "$name" "$work/$name"
}

shifted_image() {
    local name="$1" source="$2"
    [ ! -f "$directory/$name.img" ] || return 0
    say "image-$name"
    rm -f "$directory/$name.partial"
    head -c 4096 /dev/zero | tr '\0' '.' >"$directory/$name.partial"
    dd if="$directory/$source.img" of="$directory/$name.partial" bs=1M oflag=seek_bytes seek=4096 conv=sparse,notrunc status=none
    truncate -s $(($(stat -c %s "$directory/$source.img") + 4096)) "$directory/$name.partial"
    mv "$directory/$name.partial" "$directory/$name.img"
}

as_postgres() {
    runuser -u postgres -- env -i PATH="$pg_bin:/usr/bin:/bin" LC_ALL=C.UTF-8 "$@"
}

# A cluster, and a load of it that leaves it stopped in an orderly way.
in_cluster() {
    local socket="$work/pg-socket"
    as_postgres pg_ctl -w -D "$work/pg" -l "$work/pg-server.log" \
        -o "-c listen_addresses= -c unix_socket_directories=$socket -c fsync=off -c max_wal_size=128MB" start
    # Stopped also when the load fails.
    as_postgres pgbench -h "$socket" "$@" postgres || { as_postgres pg_ctl -w -m fast -D "$work/pg" stop && return 1; }
    as_postgres pg_ctl -w -m fast -D "$work/pg" stop
}

cluster() {
    rm -rf "$work/pg" "$work/pg-socket" "$work/pg-server.log"
    install -d -o postgres -m 700 "$work/pg" "$work/pg-socket"
    install -o postgres -m 600 /dev/null "$work/pg-server.log"
    as_postgres initdb --no-sync --auth trust -D "$work/pg"
    in_cluster -i -q -s "$pg_scale"
}

postgres_images() {
    local half=$((pg_transactions / 2))
    [ ! -f "$directory/pg-before.img" ] || [ ! -f "$directory/pg-after.img" ] || return 0
    rm -f "$directory/pg-before.img" "$directory/pg-after.img"
    as_postgres test -x "$work" || fail "the user postgres cannot enter $work; choose a folder that all can enter"
    [ "${#work}" -le 80 ] || fail "$work is too long a path for a Unix socket in it; choose a shorter one"
    logged pg-initialise cluster
    image pg-before "$work/pg"
    logged pg-transactions in_cluster -c 2 -j 2 -n -t "$half" --random-seed=1
    image pg-after "$work/pg"
}

[ $# = 1 ] || fail "usage: tests/perf/images.sh DIRECTORY"
mkdir -p "$1"
directory="$(cd "$1" && pwd)"
work="$directory/work"
# Mounts vanish with the script, however it ends.
[ -n "${CAIRN_IMAGES_NAMESPACE:-}" ] || [ "$(id -u)" != 0 ] ||
    CAIRN_IMAGES_NAMESPACE=1 exec unshare --mount "${BASH_SOURCE[0]}" "$1"
check_machine
mkdir -p "$work"
tree_image "$release" bootstrap "$release"
tree_image "$release-packages" with_packages
tree_image "$release-upgraded" upgraded
tree_image "$next_release" bootstrap "$next_release"
shifted_image "$release-shifted" "$release"
tree_image "$release-files-shifted" with_files_shifted
postgres_images
rm -rf "$work"
du -h --apparent-size "$directory"/*.img >&2
say "ready; cargo run --release -p cairn-segment-writer --example reduction_study -- $directory"
