#!/usr/bin/env bash
# Installs what the system tests use, on Debian or Ubuntu. Safe to run again: what is there is left alone.
# Needs root or sudo for apt. Option: --all adds what the tests do
# without and a contributor wants: just, cargo-deny.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
tools="$here/.tools"
packages=(
    # clients and peers
    fio nbdkit nbdkit-plugin-python libnbd-bin python3-libnbd qemu-utils
    # file systems
    e2fsprogs xfsprogs btrfs-progs fuse3 mount util-linux curl ca-certificates
    # the guest whose power is cut
    qemu-system-x86 busybox-static binutils
    # the object store
    ceph-mon ceph-mgr ceph-osd ceph-common radosgw
    # to build the allocator, the fuzzer and the NBD project's test client
    dpkg-dev gcc g++ make pkg-config bison flex libglib2.0-dev libgnutls28-dev
)

say() {
    echo "install-tools: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || fail "run this as root, or install sudo"
        sudo "$@"
    fi
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done
}

install_packages() {
    local missing
    # Twice: a package that is there in another version than this machine's archives have may give way to one that is installed.
    for _ in 1 2; do
        mapfile -t missing < <(missing_packages)
        [ "${#missing[@]}" -gt 0 ] || return 0
        say "installing ${missing[*]}"
        as_root apt-get update -q
        # Ceph's packages register services; nothing here may start one.
        as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            apt-get install -q -y --no-install-recommends "${missing[@]}"
    done
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -eq 0 ] || fail "these packages do not go together with the others: ${missing[*]}"
}

# The NBD project's own test client is in no package, only in the source package's test folder.
build_nbd_tester() {
    local work suite
    [ -x "$tools/nbd-tester-client" ] && [ -f "$tools/integrityhuge-test.tr" ] && return
    say "building nbd-tester-client"
    work="$(mktemp -d)"
    mkdir -p "$tools" "$work/lists/partial"
    # This machine's release first; a mirror may lack an old source package, then a newer release's does as well.
    for suite in "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" trixie noble; do
        (cd "$work" && fetch_nbd_source "$suite" >"$work/fetch.log" 2>&1) && break
    done
    [ -f "$work"/nbd_*.dsc ] && ls "$work"/nbd_*.orig.tar.* >/dev/null 2>&1 ||
        fail "the source package nbd could not be fetched; see $work/fetch.log"
    (cd "$work" && compile_nbd_tester >"$work/build.log" 2>&1) ||
        fail "nbd-tester-client does not build; see $work/build.log"
    cp "$work/nbd-tester-client" "$work"/source/tests/run/integrity*-test.tr "$tools/"
    rm -rf "$work"
}

# The source side of the archives that this machine installs from. A list and an index of its own: the machine's
# configuration stays as it is.
source_archives() {
    local file
    mkdir -p parts
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] && grep -qE '^Suites:.*(bookworm|trixie|noble|jammy|stable)' "$file" &&
            sed -E "s/^Types:.*/Types: deb-src/; s/^Suites:.*/Suites: $1/" "$file" >"parts/$(basename "$file")"
    done
    sed -nE "s/^deb (\[[^]]*\] )?([^ ]+) [a-z]+ main.*/deb-src \1\2 $1 main/p" /etc/apt/sources.list >sources.list 2>/dev/null || true
}

fetch_nbd_source() {
    local options=(
        -o "Dir::Etc::SourceList=$PWD/sources.list" -o "Dir::Etc::SourceParts=$PWD/parts" -o "Dir::State::Lists=$PWD/lists"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o "APT::Sandbox::User=$(id -un)"
    )
    rm -rf lists parts ./nbd_*
    mkdir -p lists/partial
    source_archives "$1"
    # An archive without sources is an error to apt and none to us, if another one has what is needed.
    apt-get "${options[@]}" update || true
    apt-get "${options[@]}" source --download-only nbd
}

compile_nbd_tester() {
    # apt has checked the archive's signature; dpkg-source would ask for the maintainer's key besides.
    dpkg-source --no-check -x ./nbd_*.dsc source
    cd source
    ./configure --disable-manpages --without-libnl
    # shellcheck disable=SC2046
    gcc -O2 -w -DHAVE_CONFIG_H -I. tests/run/nbd-tester-client.c cliserv.c buffer.c crypto-gnutls.c \
        $(pkg-config --cflags --libs glib-2.0 gnutls) -o ../nbd-tester-client
}

# The kernel that the guests boot whose power is cut, and the few drivers they need. Unpacked, never installed.
unpack_guest_kernel() {
    local work package release
    [ -f "$tools/guest/vmlinuz" ] && return
    say "unpacking a kernel for the guests"
    work="$(mktemp -d)"
    # Debian's name, then Ubuntu's.
    package="$(apt-cache depends linux-image-cloud-amd64 linux-image-virtual 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)"
    [ -n "$package" ] || fail "this machine's archives have neither linux-image-cloud-amd64 nor linux-image-virtual for the guests"
    (cd "$work" && apt-get -o "APT::Sandbox::User=$(id -un)" download "$package" && dpkg-deb -x ./*.deb all) >"$work/log" 2>&1 ||
        fail "the package $package could not be fetched; see $work/log"
    release="$(basename "$work"/all/boot/vmlinuz-*)"
    release="${release#vmlinuz-}"
    # Some releases keep modules below usr, some compress them, and some kernels need none.
    mkdir -p "$work"/{all,kept}/lib/modules/"$release"
    [ ! -d "$work/all/usr/lib/modules" ] || cp -r "$work/all/usr/lib/modules" "$work/all/lib/"
    find "$work/all/lib/modules" -name '*.ko.xz' -exec unxz {} +
    (cd "$work/all" && busybox depmod -b . "$release")
    keep_drivers "$work" "lib/modules/$release" virtio_pci virtio_blk virtio_net ext4
    busybox depmod -b "$work/kept" "$release"
    cp "$work/all/boot/vmlinuz-$release" "$work/kept/vmlinuz"
    rm -rf "$tools/guest"
    mkdir -p "$tools"
    mv "$work/kept" "$tools/guest"
    rm -rf "$work"
}

# Copies these drivers and what they need from WORK/all to WORK/kept. What is built into the kernel is no file.
keep_drivers() {
    local work="$1" modules="$2" driver file
    shift 2
    for driver in "$@"; do
        for file in $(sed -n "s|^\(.*/$driver\.ko[^:]*\):|\1|p" "$work/all/$modules/modules.dep"); do
            mkdir -p "$work/kept/$modules/$(dirname "$file")"
            cp "$work/all/$modules/$file" "$work/kept/$modules/$file"
        done
    done
}

install_cargo_tools() {
    local tool
    export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    command -v cargo >/dev/null || fail "cargo is missing; install Rust from https://rustup.rs"
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        say "building $tool (some minutes)"
        cargo install --locked "$tool"
    done
}

command -v apt-get >/dev/null || fail "this machine has no apt-get; install by hand: ${packages[*]}"
install_packages
build_nbd_tester
unpack_guest_kernel
install_cargo_tools cargo-nextest
[ "${1:-}" != "--all" ] || install_cargo_tools just cargo-deny
say "ready"
