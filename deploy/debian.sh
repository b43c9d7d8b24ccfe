# shellcheck shell=sh
# Debian's packages of another suite, unpacked beside this system without being installed. Sourced by the scripts here.
loader=lib64/ld-linux-x86-64.so.2
libraries="lib/x86_64-linux-gnu usr/lib/x86_64-linux-gnu"

need() { # need PROGRAM PACKAGE
    if ! command -v "$1" >/dev/null; then
        echo "$(basename "$0"): $1 is missing: apt-get install $2" >&2
        exit 1
    fi
}
mirror() { # the first mirror that apt is configured with, or Debian's own name
    found=$(sed -n 's/^URIs: *\([^ ]*\/debian\)\/* *.*$/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\/debian\)\/* .*$/\2/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1)
    echo "${found:-http://deb.debian.org/debian}"
}
unpack() { # unpack ROOT SUITE PACKAGES: with everything they need; the log is ROOT.log
    need debootstrap debootstrap
    need patchelf patchelf
    rm -rf "$1"
    debootstrap --foreign --variant=minbase --include="$3" "$2" "$1" "$(mirror)" >"$1.log"
    for package in "$1"/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$1"
    done
    rm -rf "$1/var/cache/apt/archives" "$1/dev"
    chmod -R a+rX "$1/usr" "$1/lib" "$1/lib64" 2>/dev/null || true
}
run_in_place() { # run_in_place ROOT PROGRAM...: they load the C library of their own folder
    root=$1
    shift
    path=""
    for folder in $libraries; do path="$path${path:+:}$root/$folder"; done
    for program in "$@"; do
        if patchelf --print-interpreter "$program" >/dev/null 2>&1; then
            patchelf --set-interpreter "$root/$loader" --force-rpath --set-rpath "$path" "$program"
        fi
    done
}
