#!/usr/bin/env bash
# Runs the keeper's suites on real files, the matrix of ways back, TLS and a failover of two members against each of the
# VERSIONS given: `installed`, or 16, 17 and 18, which deploy/other-versions.sh puts into DIRECTORY. Prints a line for each
# version, and ends with the first one that fails.
#
# Needs the debug build of the pgdeputy program in PGDEPUTY_BIN. PGDEPUTY_INTERRUPTIONS and PGDEPUTY_SEED as the suites know them.
set -euo pipefail

main() {
    [ $# -ge 2 ] || { echo "usage: versions.sh DIRECTORY VERSION..." >&2; exit 64; }
    local directory=$1 version
    shift
    declare -A programs=([installed]="")
    while read -r version at; do programs[$version]=$at; done < <("$(dirname "$0")/../deploy/other-versions.sh" "$directory")
    for version in "$@"; do
        [ -v "programs[$version]" ] || { echo "no version $version: use ${!programs[*]}" >&2; exit 64; }
    done
    for version in "$@"; do
        one "$version" "${programs[$version]}"
    done
}

suite() {
    cargo test --workspace --test pgfiles -- "$@" </dev/null
}

# Two members: commits wait until the one that was lost has been rewound, by the keeper itself and its marker.
failover() {
    "$PGDEPUTY_BIN" demo --members 2 --fault "$1" ${2:+--postgres-bin "$2"} </dev/null
}

one() {
    local version=$1 at=$2 begun=$SECONDS tls=passed
    echo "== PostgreSQL $version ${at:+in $at}"
    if [ -n "$at" ]; then export PGDEPUTY_TEST_POSTGRES=$at; else unset PGDEPUTY_TEST_POSTGRES; fi
    suite --test-threads=2 --skip interrupted::
    suite --nocapture interrupted::
    suite --ignored --nocapture matrix::
    if [ "$version" = 16 ]; then
        # The build of 16 that other-versions.sh fetches has no OpenSSL.
        tls=not-built
    else
        suite --ignored --nocapture tls::
    fi
    failover crash "$at"
    failover member "$at"
    echo "versions: version=$version suite=passed interruptions=$PGDEPUTY_INTERRUPTIONS matrix=passed tls=$tls" \
        "failovers=passed seconds=$((SECONDS - begun))"
}

main "$@"
