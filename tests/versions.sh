#!/usr/bin/env bash
# Runs the keeper's suites on real files, the matrix of ways back, TLS and two failovers of two members against each of the
# VERSIONS given: `installed`, or 16, 17 and 18, which deploy/other-versions.sh puts into DIRECTORY. Prints a line for each
# version, ends with the first one that fails, and its last line says how far it came:
#
#   versions: result=passed passed=4 of=4 interruptions=100 seconds=N
#   versions: result=failed passed=2 of=4 interruptions=100 seconds=N version=17 step=matrix
#
# Needs the debug build of the pgdeputy program in PGDEPUTY_BIN, of which it runs a copy, as of the suites: what is built
# meanwhile changes nothing. PGDEPUTY_INTERRUPTIONS and PGDEPUTY_SEED as the suites know them.
set -euo pipefail

passed=0 of=0 running=none step=build built=

main() {
    [ $# -ge 2 ] || { echo "usage: versions.sh DIRECTORY VERSION..." >&2; exit 64; }
    local directory=$1 version at
    shift
    of=$#
    declare -A programs=([installed]="")
    while read -r version at; do programs[$version]=$at; done < <("$(dirname "$0")/../deploy/other-versions.sh" "$directory")
    for version in "$@"; do
        [ -v "programs[$version]" ] || { echo "no version $version: use ${!programs[*]}" >&2; exit 64; }
    done
    trap 'last_line $?' EXIT
    build
    for version in "$@"; do
        running=$version
        one "$version" "${programs[$version]}"
        passed=$((passed + 1))
    done
}

last_line() {
    local said="passed=$passed of=$of interruptions=$PGDEPUTY_INTERRUPTIONS seconds=$SECONDS"
    rm -rf "$built"
    if [ "$1" = 0 ]; then
        echo "versions: result=passed $said"
    else
        echo "versions: result=failed $said version=$running step=$step"
    fi
}

build() {
    local suites
    built=$(mktemp -d)
    # The demo's keepers leave root's rights, and run the same program.
    chmod 755 "$built"
    suites=$(cargo test --workspace --test pgfiles --no-run --message-format=json |
        sed -n 's/.*"name":"pgfiles".*"executable":"\([^"]*\)".*/\1/p')
    cp "$suites" "$built/pgfiles"
    cp "$PGDEPUTY_BIN" "$built/pgdeputy"
}

suite() {
    step=$1
    shift
    (cd "$(dirname "$0")/../keeper" && "$built/pgfiles" "$@" </dev/null)
}

# Two members: commits wait until the one that was lost has been rewound, by the keeper itself and its marker.
failover() {
    step=failover-$1
    "$built/pgdeputy" demo --members 2 --fault "$1" ${2:+--postgres-bin "$2"} </dev/null
}

one() {
    local version=$1 at=$2 begun=$SECONDS tls=passed
    echo "== PostgreSQL $version ${at:+in $at}"
    if [ -n "$at" ]; then export PGDEPUTY_TEST_POSTGRES=$at; else unset PGDEPUTY_TEST_POSTGRES; fi
    suite suite --test-threads=2 --skip interrupted::
    suite interrupted --nocapture interrupted::
    suite matrix --ignored --nocapture matrix::
    if [ "$version" = 16 ]; then
        # The build of 16 that other-versions.sh fetches has no OpenSSL.
        tls=not-built
    else
        suite tls --ignored --nocapture tls::
    fi
    failover crash "$at"
    failover member "$at"
    echo "versions: version=$version suite=passed interruptions=$PGDEPUTY_INTERRUPTIONS matrix=passed tls=$tls" \
        "failovers=passed seconds=$((SECONDS - begun))"
}

main "$@"
