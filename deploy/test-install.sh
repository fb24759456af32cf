#!/usr/bin/env bash
# Proves install-deps.sh in throw-away Debian 12 systems: that it installs everything, starts nothing, and
# leaves what was there before as it was. Needs root, debootstrap and the package mirror that this machine's
# own apt uses.
#
#   bare      what a container has, no policy-rc.d. Two runs.
#   lived-in  systemd's programs, a running haproxy, a policy-rc.d that allows starts, PostgreSQL defaults of
#             somebody's own. A run that is killed, one that is interrupted, one that ends.
#
# Everything runs in mount and process namespaces of its own: at the end, however it comes, no mount and no
# process is left, and the directory is removed.
set -euo pipefail

readonly SUITE=bookworm
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
checks=0

main() {
    if [ "${1-}" = --inside ]; then
        work=$2
        inside
        return
    fi
    local tool
    [ "$(id -u)" = 0 ] || skip "it needs root (for chroot)"
    for tool in debootstrap unshare apt-get; do
        command -v $tool >/dev/null || skip "it needs $tool"
    done
    work=$(mktemp -d "${TMPDIR:-/tmp}/pgdeputy-test-install.XXXXXX")
    trap 'rm -rf --one-file-system "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    unshare --mount --pid --fork --kill-child --mount-proc bash "${BASH_SOURCE[0]}" --inside "$work"
}

skip() {
    echo "test-install: not run: $*" >&2
    exit 1
}

inside() {
    make_base
    bare
    lived_in
    echo "test-install: all $checks checks hold"
}

bare() {
    enter_new bare
    check "a normal user without sudo is told the one command" normal_user_is_refused
    processes >"$work/processes.before"
    boot_links >"$work/links.before"
    run_install

    check "nothing runs" same processes
    check "nothing new starts at boot" same boot_links
    check "no cluster was created" no_cluster
    check "policy-rc.d is gone again" absent /usr/sbin/policy-rc.d
    check "PostgreSQL's defaults are the package's own" defaults_are_the_packages
    check "no trace is left" no_trace
    check "everything is there" inside_root /install-deps.sh --check

    tree >"$work/tree.before"
    packages >"$work/packages.before"
    run_install
    check "the second run says so" grep -q "nothing to do" "$work/output"
    check "the second run installs nothing" same packages
    check "the second run changes no file" same tree
    check "a normal user needs no root any more" inside_root setpriv --reuid=65534 --clear-groups /install-deps.sh

    # A policy that refuses starts by itself: not even renamed (a rename would show in its change time).
    inside_root apt-get -qq -y remove make >/dev/null
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    identity_of /usr/sbin/policy-rc.d %Z >"$work/policy.before"
    run_install
    check "a policy that refuses starts is not touched" same policy_with_change_time policy
}

lived_in() {
    enter_new lived-in
    inside_root apt-get -qq update
    # The control: what Debian does by itself must be seen by the same eyes that see nothing later. systemd
    # comes after it, because with its programs there packages start nothing in a chroot.
    debian_installs haproxy
    debian_installs systemd
    processes >"$work/processes.before"
    boot_links >"$work/links.before"
    check "control: Debian by itself starts haproxy" grep -q haproxy "$work/processes.before"
    check "control: Debian by itself enables haproxy" grep -q haproxy "$work/links.before"

    printf '#!/bin/sh\n# ours\nexit 0\n' >"$root/usr/sbin/policy-rc.d"
    chmod 750 "$root/usr/sbin/policy-rc.d"
    mkdir -p "$root/etc/postgresql-common"
    printf "# ours\nssl = off\ncreate_main_cluster = true" >"$root/etc/postgresql-common/createcluster.conf"
    chmod 640 "$root/etc/postgresql-common/createcluster.conf"
    chown 65534:65534 "$root/usr/sbin/policy-rc.d" "$root/etc/postgresql-common/createcluster.conf"
    touch -d 2001-02-03 "$root/usr/sbin/policy-rc.d" "$root/etc/postgresql-common/createcluster.conf"
    guarded >"$work/guarded.before"

    stop_install_in_the_middle INT
    check "interrupted: both files are back" same guarded
    check "interrupted: no trace is left" no_trace
    stop_install_in_the_middle KILL
    check "killed: the guard is still there (so the next check means something)" differs guarded
    run_install
    check "the next run puts both files back, same inode, mode, owner, time and bytes" same guarded
    check "haproxy runs on, and nothing else" same processes
    check "haproxy stays enabled, and nothing else" same boot_links
    check "no cluster was created" no_cluster
    check "no trace is left" no_trace
    check "everything is there" inside_root /install-deps.sh --check
}

# --- the throw-away systems -----------------------------------------------------------------------------

# The mirror, suites and proxies are those of this machine's apt: none is named here.
make_base() {
    local mirror include=""
    apt-get indextargets --format "\$(REPO_URI) \$(RELEASE) \$(COMPONENT)" "Created-By: Packages" |
        awk -v suite=$SUITE '$2 == suite || index($2, suite "-") == 1 { print "deb", $0 }' |
        sort -u >"$work/sources.list"
    mirror=$(awk -v suite=$SUITE '$3 == suite { print $2; exit }' "$work/sources.list")
    [ -n "$mirror" ] || fail "this machine's apt knows no mirror of $SUITE"
    case $mirror in https:*) include=--include=ca-certificates ;; esac
    echo "test-install: making Debian $SUITE in $work"
    debootstrap --variant=minbase $include $SUITE "$work/base" "$mirror" >"$work/output" 2>&1 ||
        fail "debootstrap"
    cp "$work/sources.list" "$work/base/etc/apt/sources.list"
    cp /etc/hosts /etc/resolv.conf "$work/base/etc/"
    apt-config dump | grep -E '^Acquire::(http|https|Check|Retries)[^ ]* "' \
        >"$work/base/etc/apt/apt.conf.d/99this-machine" || true
    cp "$here/install-deps.sh" "$work/base/install-deps.sh"
    rm -f "$work/base/usr/sbin/policy-rc.d"
    # To packages it shall look booted: without an init and a runlevel they start nothing by themselves.
    printf '#!/bin/sh\necho N 2\n' | tee "$work/base/sbin/runlevel" >"$work/base/sbin/init"
    chmod 755 "$work/base/sbin/runlevel" "$work/base/sbin/init"
}

enter_new() {
    echo "test-install: $1"
    root=$work/$1
    cp -a "$work/base" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
}

inside_root() {
    chroot "$root" "$@" </dev/null
}

debian_installs() {
    inside_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$1" \
        >"$work/output" 2>&1 || fail "apt-get install $1"
}

run_install() {
    inside_root /install-deps.sh >"$work/output" 2>&1 || fail "install-deps.sh"
    sed -n 's/^install-deps: /  | /p' "$work/output"
}

# Sends the signal to the whole run as a terminal would, once the guards stand.
stop_install_in_the_middle() {
    local run waited=0
    set -m # A process group of its own, in which SIGINT is not ignored.
    chroot "$root" /install-deps.sh </dev/null >"$work/output" 2>&1 &
    run=$!
    set +m
    until grep -q "create_main_cluster = false" "$root/etc/postgresql-common/createcluster.conf"; do
        waited=$((waited + 1))
        if [ $waited = 3000 ] || ! kill -0 $run 2>/dev/null; then fail "no guard was seen during the run"; fi
        sleep 0.05
    done
    kill "-$1" -- "-$run"
    if { wait $run; } 2>/dev/null; then fail "install-deps.sh ended well although it got SIG$1"; fi
}

# --- what is looked at ----------------------------------------------------------------------------------

# Processes whose root is inside the system (haproxy changes it once more), with their ids: a restart shows.
processes() {
    local process
    for process in /proc/[0-9]*; do
        case $(readlink "$process/root") in
            "$root" | "$root"/*) printf '%s %s\n' "${process#/proc/}" "$(tr '\0' ' ' <"$process/cmdline")" ;;
        esac
    done 2>/dev/null
}

boot_links() {
    (cd "$root" && find etc/systemd etc/rc[S2345].d -type l ! -name 'K*' 2>/dev/null | sort)
}

packages() {
    inside_root dpkg -l
}

# Every file with its metadata, and the bytes of /etc.
tree() {
    (cd "$root" && find . \( -path ./proc -o -path ./dev -o -path ./tmp \) -prune -o \
        -printf '%p %y %m %U %G %s %T@ %l\n' | sort)
    (cd "$root" && find etc -type f -print0 | sort -z | xargs -0 sha256sum)
}

# identity_of FILE [FORMAT]
identity_of() {
    stat -c "%n %i %a %u %g %s %y ${2-}" "$root$1"
    sha256sum <"$root$1"
}

guarded() {
    identity_of /usr/sbin/policy-rc.d
    identity_of /etc/postgresql-common/createcluster.conf
}

policy_with_change_time() {
    identity_of /usr/sbin/policy-rc.d %Z
}

# same EYE [NAME]: what EYE sees now is what it saw before.
same() {
    diff "$work/${2-$(before_name "$1")}.before" <("$1")
}

differs() {
    ! same "$@" >/dev/null
}

before_name() {
    case $1 in boot_links) echo links ;; *) echo "$1" ;; esac
}

absent() {
    [ ! -e "$root$1" ]
}

no_cluster() {
    [ -z "$(find "$root/etc/postgresql" "$root/var/lib/postgresql" -mindepth 2)" ] &&
        [ -z "$(ls -A "$root/var/lib/etcd")" ]
}

defaults_are_the_packages() {
    diff "$root/usr/share/postgresql-common/createcluster.conf" "$root/etc/postgresql-common/createcluster.conf" &&
        absent /etc/postgresql-common/createcluster.d
}

no_trace() {
    [ -z "$(find "$root/etc" "$root/usr/sbin" "$root/run" "$root/var/lib" -name '*pgdeputy*')" ] &&
        ! grep -rIl "install-deps.sh" "$root/etc" "$root/usr/sbin"
}

normal_user_is_refused() {
    local said
    if said=$(inside_root setpriv --reuid=65534 --clear-groups /install-deps.sh 2>&1); then return 1; fi
    grep -q "bash /install-deps.sh" <<<"$said"
}

# check CLAIM COMMAND...
check() {
    local claim=$1
    shift
    "$@" >"$work/difference" 2>&1 || { cat "$work/difference"; fail "$claim"; }
    checks=$((checks + 1))
    echo "  ok  $claim"
}

fail() {
    echo "test-install: FAILED: $*" >&2
    [ ! -s "$work/output" ] || tail -n 25 "$work/output" >&2
    exit 1
}

main "$@"
