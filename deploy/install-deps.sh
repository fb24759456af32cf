#!/usr/bin/env bash
# Installs what building and running pgdeputy needs, from the system's own package repositories.
#
# The rule it keeps: it starts nothing, and it touches nothing that was there before.
#   - What is installed already is skipped, however it was installed; when all is there, not even
#     `apt-get update` runs.
#   - Debian's packages start their service and PostgreSQL's creates a cluster when they are installed.
#     For the time of this run only, /usr/sbin/policy-rc.d refuses every start, and
#     `create_main_cluster = false` stands in PostgreSQL's defaults. A file that was there before is set
#     aside by a rename and comes back by a rename: same bytes, mode, owner and time. A policy that
#     refuses starts by itself is not touched at all.
#   - Debian's packages also enable their service at the next boot. Links that this run created are
#     removed again, which is what `systemctl disable` does; the output names them. Services that were
#     there before keep what they had.
#   - Nothing is upgraded that runs a service, and nothing is removed: where the packages cannot be had
#     without that, this stops before any change and says so.
# Ctrl-C and errors put everything back as well. After a SIGKILL or a power cut the next run does.
set -euo pipefail

readonly MARK="written by pgdeputy's install-deps.sh for the time of its run"
readonly SAVED_SUFFIX=".before-pgdeputy-install-deps"
readonly POLICY=/usr/sbin/policy-rc.d
readonly POSTGRES_CONFIG=/etc/postgresql-common
readonly CREATE_CLUSTER=$POSTGRES_CONFIG/createcluster.conf
readonly CREATE_CLUSTER_EXTRA=$POSTGRES_CONFIG/createcluster.d/zz-pgdeputy-install-deps.conf

# Normal users of Debian have no sbin on their PATH, and haproxy, pgbouncer and nft live there.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
self=$(readlink -f "${BASH_SOURCE[0]}")
new_directories=()

main() {
    case ${1-} in
        "") ;;
        --check) look || exit 1; exit 0 ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; exit 64 ;;
    esac
    # What an interrupted run left is put back even where nothing is missing any more.
    if look && ! leftovers; then
        echo "install-deps: everything is there, nothing to do"
        return
    fi
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then refuse_other_systems; fi
    [ "$(id -u)" = 0 ] || become_root
    exec 9<"$self"
    flock 9 # Two runs at once would take each other's guards for files that were there before.
    put_back
    look >/dev/null || install_missing
}

usage() {
    cat <<TEXT
usage: install-deps.sh [--check]
Installs etcd, PostgreSQL, HAProxy, PgBouncer, protoc and what else pgdeputy is built and tested with.
It starts nothing and touches nothing that was there before.
  --check   only prints what is there and what is missing; exit status 1 if something is missing
TEXT
}

# Prints a line per need and collects the Debian packages that are missing. True if none is.
look() {
    missing=()
    need etcd etcd-server command -v etcd
    need etcdctl etcd-client command -v etcdctl
    need "PostgreSQL 15 to 18" postgresql postgres_program
    need haproxy haproxy command -v haproxy
    need pgbouncer pgbouncer command -v pgbouncer
    need protoc protobuf-compiler command -v protoc
    need "protoc's standard types" libprotobuf-dev protoc_types
    need "C linker" "gcc libc6-dev" c_linker
    need make make command -v make
    need ip iproute2 command -v ip
    need tc iproute2 command -v tc
    need nft nftables command -v nft
    need mkfs.ext4 e2fsprogs command -v mkfs.ext4
    need e2fsck e2fsprogs command -v e2fsck
    need libfaketime libfaketime fake_time
    need mount mount command -v mount
    need strace strace command -v strace
    need "CA certificates" ca-certificates ca_certificates
    need openssl openssl command -v openssl
    [ ${#missing[@]} = 0 ]
}

# need WHAT "PACKAGES" PROBE...: the probe prints where it found it.
need() {
    local what=$1 packages=$2 where
    shift 2
    if where=$("$@" 2>/dev/null) && [ -n "$where" ]; then
        printf '%-24s there: %s\n' "$what" "$where"
    else
        printf '%-24s missing: %s\n' "$what" "$packages"
        # shellcheck disable=SC2206 # a list of package names
        missing+=($packages)
    fi
}

fake_time() {
    local library
    for library in /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib64/faketime/libfaketimeMT.so.1; do
        if [ -e "$library" ]; then echo "$library"; return; fi
    done
    return 1
}

# The newest supported server, in the usual places of Debian and RHEL or on PATH.
postgres_program() {
    local version directory
    for version in 18 17 16 15; do
        for directory in /usr/lib/postgresql/$version/bin /usr/pgsql-$version/bin; do
            if [ -x "$directory/postgres" ] && [ -x "$directory/pg_basebackup" ]; then
                echo "$directory"
                return
            fi
        done
    done
    command -v pg_basebackup >/dev/null || return 1
    case $(postgres --version) in
        *") 15"* | *") 16"* | *") 17"* | *") 18"*) command -v postgres ;;
        *) return 1 ;;
    esac
}

# etcd-client's build imports google/protobuf/descriptor.proto, which protoc finds beside itself.
protoc_types() {
    local program
    program=$(readlink -f "$(command -v protoc || echo /usr/bin/protoc)")
    ls "$(dirname "$(dirname "$program")")/include/google/protobuf/descriptor.proto"
}

# rustc links by `cc`; without the C library's start files it says so only after minutes of building.
c_linker() {
    case $(cc -print-file-name=crt1.o) in
        /*) command -v cc ;;
        *) return 1 ;;
    esac
}

# cargo fetches crates by https.
ca_certificates() {
    ls /etc/ssl/certs/ca-certificates.crt || ls /etc/pki/tls/certs/ca-bundle.crt
}

refuse_other_systems() {
    cat >&2 <<TEXT

install-deps: this is not Debian or a relative of it (no apt-get); install what is missing yourself.
On RHEL and its relatives, with the repositories CRB and PostgreSQL's own (PGDG):
  dnf install postgresql17-server postgresql17-contrib haproxy pgbouncer protobuf-compiler \\
      protobuf-devel gcc make iproute nftables libfaketime ca-certificates openssl etcd
(etcd is in PGDG's "extras"; PostgreSQL 15 to 18 will do). Then run this again: it only checks.
TEXT
    exit 1
}

become_root() {
    if command -v sudo >/dev/null; then
        if sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; then
            exec sudo bash "$self"
        fi
    fi
    printf '\ninstall-deps: installing packages needs root; run as root:\n  bash %q\n' "$self" >&2
    exit 1
}

install_missing() {
    export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 APT_LISTCHANGES_FRONTEND=none
    # needrestart would restart services that run already, because a library of theirs is newer now.
    export NEEDRESTART_SUSPEND=1
    local plan
    run_apt update || echo "install-deps: apt-get update failed, going on with the lists there are" >&2
    plan=$(run_apt --simulate install "${missing[@]}") ||
        give_up "apt-get cannot install ${missing[*]}; its reason is above. Nothing was changed."
    refuse_to_touch_services "$plan"

    links_before=$(boot_links)
    units_before=$(units)
    trap finish EXIT
    # bash acts on a signal when apt-get has ended: no guard is lifted while packages are set up.
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    refuse_starts
    refuse_clusters
    run_apt install "${missing[@]}" || give_up "apt-get failed, its reason is above"
    echo
    look || give_up "still missing: ${missing[*]}; this system's repositories do not have them in a" \
        "supported version (PostgreSQL 15 to 18: see apt.postgresql.org)"
    echo "install-deps: done; nothing was started"
}

give_up() {
    echo "install-deps: $*" >&2
    exit 1
}

finish() {
    disable_at_boot
    put_back
}

# What was configured before stays (confold), and nothing but what is needed comes.
run_apt() {
    apt-get -q -y --no-install-recommends --no-remove -o Dpkg::Options::=--force-confold \
        -o DPkg::Lock::Timeout=300 "$@" </dev/null 9<&-
}

# Stops if apt's plan ($1) would upgrade an installed package that runs a service.
refuse_to_touch_services() {
    local package
    while read -r package; do
        if dpkg -L "$package" | grep -E '/systemd/system/[^/]+\.(service|socket)$|^/etc/init\.d/.' >/dev/null; then
            give_up "${missing[*]} cannot be installed without an upgrade of $package, which runs a" \
                "service here. Nothing was changed. Upgrade it yourself when that suits" \
                "(apt-get install $package), then run this again."
        fi
    done < <(sed -n 's/^Inst \([^ ]*\) \[.*/\1/p' <<<"$1")
}

refuse_starts() {
    if policy_refuses; then
        echo "install-deps: $POLICY refuses starts already, left as it is"
        return
    fi
    set_aside $POLICY
    printf '#!/bin/sh\n# %s\nexit 101\n' "$MARK" >$POLICY
    chmod 755 $POLICY
}

# Asks the policy that is there; the last name stands for services that packages bring along.
policy_refuses() {
    [ -x $POLICY ] || return 1
    local service status
    for service in etcd haproxy pgbouncer postgresql nftables any-other-service; do
        status=0
        $POLICY $service start </dev/null >/dev/null 2>&1 || status=$?
        [ $status = 101 ] || return 1
    done
}

refuse_clusters() {
    local directory
    if [ -e $CREATE_CLUSTER ] || [ -L $CREATE_CLUSTER ]; then
        set_aside $CREATE_CLUSTER
        {
            cat $CREATE_CLUSTER$SAVED_SUFFIX
            printf '\n# %s\ncreate_main_cluster = false\n' "$MARK"
        } >$CREATE_CLUSTER
        chmod 644 $CREATE_CLUSTER
    else
        # The package brings the main file and would not bring it over one of ours; it reads this too.
        for directory in $POSTGRES_CONFIG ${CREATE_CLUSTER_EXTRA%/*}; do
            [ -d "$directory" ] || { mkdir "$directory"; new_directories=("$directory" "${new_directories[@]}"); }
        done
        printf '# %s\ncreate_main_cluster = false\n' "$MARK" >$CREATE_CLUSTER_EXTRA
    fi
}

set_aside() {
    if [ -e "$1" ] || [ -L "$1" ]; then
        mv -T "$1" "$1$SAVED_SUFFIX"
    fi
}

# Puts the guards' places back into the state before the run; changes nothing where there are no guards.
put_back() {
    local file directory
    for file in $POLICY $CREATE_CLUSTER $CREATE_CLUSTER_EXTRA; do
        if [ -e "$file$SAVED_SUFFIX" ] || [ -L "$file$SAVED_SUFFIX" ]; then
            mv -fT "$file$SAVED_SUFFIX" "$file"
        elif is_ours "$file"; then
            rm "$file"
        fi
    done
    # Only those that no package has come to own, and only if they are empty.
    for directory in "${new_directories[@]}"; do
        dpkg -S "$directory" >/dev/null 2>&1 || rmdir --ignore-fail-on-non-empty "$directory"
    done
    new_directories=()
}

leftovers() {
    local file
    for file in $POLICY $CREATE_CLUSTER $CREATE_CLUSTER_EXTRA; do
        if [ -e "$file$SAVED_SUFFIX" ] || [ -L "$file$SAVED_SUFFIX" ] || is_ours "$file"; then
            echo "install-deps: an earlier run was killed and left $file changed; putting it back"
            return 0
        fi
    done
    return 1
}

is_ours() {
    [ -f "$1" ] && grep -qF "$MARK" "$1"
}

# Everything that can start a service at boot: systemd's links and, without systemd, the rc directories'.
boot_links() {
    find /etc/systemd/system /etc/rc[S2345].d -type l ! -name 'K*' 2>/dev/null | sort
}

units() {
    find /lib/systemd/system /usr/lib/systemd/system /etc/init.d -maxdepth 1 -printf '%f\n' 2>/dev/null |
        sort -u
}

# Removes the boot links that this run created: those that are new and lead to a unit that is new.
disable_at_boot() {
    local link unit disabled=()
    while read -r link; do
        [ -L "$link" ] || continue # Gone with an earlier link of the same service.
        unit=$(basename "$(readlink "$link")")
        if grep -qxF "$unit" <<<"$units_before"; then
            continue
        fi
        case $link in
            /etc/rc*) update-rc.d "$unit" disable >/dev/null 2>&1 || rm -f "$link" ;;
            *) rm -f "$link" ;;
        esac
        disabled+=("${unit%.service}")
    done < <(comm -13 <(echo "$links_before") <(boot_links))
    [ ${#disabled[@]} -gt 0 ] || return 0
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    echo "install-deps: not enabled at boot (\`systemctl enable NAME\` where you want that):" \
        "$(printf '%s\n' "${disabled[@]}" | sort -u | paste -sd' ')"
}

main "$@"
