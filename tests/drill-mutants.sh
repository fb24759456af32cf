#!/usr/bin/env bash
# Shows that drills on real processes find deliberate mistakes: for each of them the drills that should find it are run with a
# test-only build that makes it. Usage: drill-mutants.sh PGDEPUTY DIRECTORY [MISTAKE]... (root). Logs go to DIRECTORY.
#
# The rule it keeps: a mistake counts as found only if the drills fail with it, a process has said that it made it, and the same
# drills pass with the same build without it.
set -euo pipefail

readonly program=$1 directory=$2
shift 2

# A mistake of tests/src/mutants.rs, and the drills that look for it.
readonly MISTAKES="
promote-the-least            crash-behind
promote-any-live-standby     crash-behind,crash-behind,crash-behind,crash-behind,crash-behind,crash-behind,crash-behind,crash-behind
timeline-used-again          crash
upstream-stays               cut-etcd
late-member-follows-at-once  crash-behind,crash,crash
no-signs                     etcd-freeze
keepalive-alone-renews       mtu-hole
sign-without-causality       mtu-hole
router-takes-a-lower-epoch   etcd-restored
"

# drill NAME DRILLS MISTAKE: status and last line of a run, whose logs are kept if something was wrong.
drill() {
    local logs=$directory/$1 status=0
    rm -rf "$logs"
    mkdir -p "$logs"
    MISTAKE_OF_PGDEPUTY=$3 timeout 400 "$program" drills --only "$2" --evidence "$logs/evidence" \
        >"$logs/out" 2>"$logs/err" || status=$?
    return $status
}

# The status of DRILLS without a mistake: each is asked for once.
declare -A sound=()
passes() {
    local name=sound-${1//,/-} status=0
    if [ -z "${sound[$name]:-}" ]; then
        drill "$name" "$1" none || status=$?
        sound[$name]=$status
    fi
    [ "${sound[$name]}" = 0 ]
}

# What was found, in one line: what clients have seen first.
finding() {
    grep -h -m1 -oE 'WRONG: .*(acknowledged|read|gone|begins).*|WRONG: .*|stuck: .*|^pgdeputy: .*' "$directory/$1/out" "$directory/$1/err" |
        head -n 1 | cut -c1-180
}

wanted() {
    local one
    for one in "${@:2}"; do [ "$one" = "$1" ] && return 0; done
    [ $# = 1 ]
}

killed=0 total=0
while read -r mistake drills; do
    [ -n "$mistake" ] && wanted "$mistake" "$@" || continue
    total=$((total + 1))
    if drill "$mistake" "$drills" "$mistake"; then
        echo "$mistake: not found by $drills"
    elif ! grep -qrs "makes the mistake $mistake" "$directory/$mistake"; then
        echo "$mistake: failed, but nobody made the mistake: $(finding "$mistake")"
    elif ! passes "$drills"; then
        echo "$mistake: $drills fail without it, too: $(finding "sound-${drills//,/-}")"
    else
        killed=$((killed + 1))
        echo "$mistake: found by $drills: $(grep -h '^drills:' "$directory/$mistake/out" || true): $(finding "$mistake")"
    fi
done <<<"$MISTAKES"
echo "drill-mutants: killed=$killed total=$total"
[ "$killed" = "$total" ]
