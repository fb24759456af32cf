//! The list itself: a line for each fault.

use super::Fault::*;
use super::entry::{Entry, line};
use super::{Class, Hits};

// A stream or an echo that is silent is noticed after 1 s, and the rest takes half of one: far below these.
const CRASH: u64 = 1_500;
const SILENCE: u64 = 4_000;
/// `unresponsive_after` is 3 s in drills, the shortest that a spec allows.
const UNRESPONSIVE: u64 = 6_000;
/// A primary that is heard by all, now and then, and cannot renew serves until half a second before its lease of 4 s ends; within
/// half a second its keeper answers nobody for it, after 1 s its silence is noticed, and the rest takes half of one.
const LEASE: u64 = 5_500;
/// No time-out of pgdeputy's is as short.
const UNSEEN: u64 = 750;
/// A new leader of etcd, or a session that has to be opened again.
const HARDLY_SEEN: u64 = 1_000;
const PLANNED: u64 = 2_000;
/// Two of three members fail at once: commits wait until one of them has been rewound and streams. Two rewinds at once of
/// 190 MB each took 4.7 s with builds running on both processors, and it is the disk and they that bound it.
const REJOIN: u64 = 10_000;

const AGAIN: &str = "{x} is started again";
const THAWED: &str = "{x} is thawed";
const MENDED: &str = "the network of {x} is mended";
const ETCD_AGAIN: &str = "etcd is started again";

/// All faults, in the order of the help text, which is that of `Fault`.
pub const ALL: [Entry; 60] = [
    line(
        Member,
        "member",
        (Class::Member, Hits::Primary),
        (SILENCE, 2_000),
        ("kill -9 keeper, fencer and PostgreSQL of the primary {x}", AGAIN),
    ),
    line(
        Freeze,
        "freeze",
        (Class::Freeze, Hits::Primary),
        (SILENCE, 2_500),
        ("kill -STOP keeper, fencer and PostgreSQL of the primary {x}", THAWED),
    ),
    line(
        Partition,
        "partition",
        (Class::Network, Hits::Primary),
        (SILENCE, 3_000),
        ("cut the primary {x} off from members, etcd and sentinels", MENDED),
    ),
    line(
        Crash,
        "crash",
        (Class::Postgres, Hits::Primary),
        (CRASH, 0),
        ("kill -9 the postmaster of the primary {x}", ""),
    ),
    line(
        CrashTwice,
        "crash-twice",
        (Class::Twice, Hits::Primary),
        (REJOIN, 0),
        ("kill -9 the postmaster of the primary {x}, and that of the next one", ""),
    ),
    line(
        Keeper,
        "keeper",
        (Class::Deputies, Hits::PrimaryUnseen),
        (UNSEEN, 0),
        ("kill -9 the keeper of the primary {x}", "the keeper of {x} is to run again"),
    ),
    line(
        SentinelAndMember,
        "sentinel-and-member",
        (Class::Sentinels, Hits::Primary),
        (3_000, 1_000),
        (
            "kill -9 the leading sentinel, and keeper, fencer and PostgreSQL of the primary {x}",
            "the sentinel and {x} are started again",
        ),
    ),
    line(
        Standby,
        "standby",
        (Class::Member, Hits::Standby),
        (UNSEEN, 2_000),
        ("kill -9 keeper, fencer and PostgreSQL of the standby {x}", AGAIN),
    ),
    line(
        StandbyFreeze,
        "standby-freeze",
        (Class::Freeze, Hits::Standby),
        (UNSEEN, 3_000),
        ("kill -STOP keeper, fencer and PostgreSQL of the standby {x}", THAWED),
    ),
    line(
        Etcd,
        "etcd",
        (Class::Etcd, Hits::Others),
        (UNSEEN, 6_000),
        ("kill -9 every etcd member", ETCD_AGAIN),
    ),
    line(
        Switchover,
        "switchover",
        (Class::Switchover, Hits::Primary),
        (PLANNED, 0),
        ("a switchover from the primary {x} is asked for", ""),
    ),
    line(
        Stop,
        "stop",
        (Class::Reboot, Hits::Primary),
        (PLANNED, 500),
        ("the keeper of the primary {x} is asked to stop", AGAIN),
    ),
    line(
        Backend,
        "backend",
        (Class::Postgres, Hits::Primary),
        (CRASH, 0),
        ("kill -9 one session's process of the primary {x}", ""),
    ),
    line(
        Walsender,
        "walsender",
        (Class::Postgres, Hits::Primary),
        (CRASH, 0),
        ("kill -9 one walsender of the primary {x}", ""),
    ),
    line(
        Walreceiver,
        "walreceiver",
        (Class::Postgres, Hits::Standby),
        (UNSEEN, 0),
        ("kill -9 the walreceiver of the standby {x}", ""),
    ),
    line(
        Fencer,
        "fencer",
        (Class::Deputies, Hits::Primary),
        (SILENCE, 0),
        ("kill -9 the fencer of the primary {x}", "the keeper of {x} is started again"),
    ),
    line(
        KeeperFreeze,
        "keeper-freeze",
        (Class::Deputies, Hits::Primary),
        (SILENCE, 500),
        ("kill -STOP the keeper of the primary {x}", "the keeper of {x} is thawed"),
    ),
    line(
        PostmasterFreeze,
        "postmaster-freeze",
        (Class::Freeze, Hits::Primary),
        (SILENCE, 0),
        ("kill -STOP the postmaster of the primary {x}", THAWED),
    ),
    line(
        CutOff,
        "cut-off",
        (Class::Network, Hits::Primary),
        (SILENCE, 3_000),
        ("cut the primary {x} off from everybody, clients too", MENDED),
    ),
    line(
        CutPeers,
        "cut-peers",
        (Class::Network, Hits::Primary),
        (SILENCE, 500),
        ("cut the primary {x} off from the other members", MENDED),
    ),
    line(
        CutEtcd,
        "cut-etcd",
        (Class::Network, Hits::Primary),
        (PLANNED, 500),
        ("cut the primary {x} off from etcd", MENDED),
    ),
    line(
        Mute,
        "mute",
        (Class::Network, Hits::Primary),
        (SILENCE, 500),
        ("what the primary {x} sends to members, etcd and sentinels is lost", MENDED),
    ),
    line(
        Deaf,
        "deaf",
        (Class::Network, Hits::Primary),
        (SILENCE, 500),
        ("what members, etcd and sentinels send to the primary {x} is lost", MENDED),
    ),
    line(
        Resets,
        "resets",
        (Class::Network, Hits::Primary),
        (SILENCE, 500),
        ("TCP between the primary {x} and members, etcd and sentinels is reset", MENDED),
    ),
    line(
        Flapping,
        "flapping",
        (Class::Network, Hits::PrimaryLink),
        (SILENCE, 0),
        ("cut the primary {x} off from members, etcd and sentinels, and mend it, four times", ""),
    ),
    line(
        StandbyCut,
        "standby-cut",
        (Class::Network, Hits::Standby),
        (PLANNED, 5_000),
        ("cut the standby {x} off from members, etcd and sentinels", MENDED),
    ),
    line(
        DiskFull,
        "disk-full",
        (Class::Disk, Hits::Primary),
        (SILENCE, 500),
        ("fill the disk of the primary {x}", "there is room again on the disk of {x}"),
    ),
    line(
        DiskHung,
        "disk-hung",
        (Class::Disk, Hits::Primary),
        (UNRESPONSIVE, 1_000),
        ("nothing can be written to the disk of the primary {x}", "the disk of {x} goes on"),
    ),
    line(
        EtcdMember,
        "etcd-member",
        (Class::Etcd, Hits::Others),
        (HARDLY_SEEN, 2_000),
        ("kill -9 one etcd member that does not lead", ETCD_AGAIN),
    ),
    line(
        EtcdLeader,
        "etcd-leader",
        (Class::Etcd, Hits::Others),
        (HARDLY_SEEN, 2_000),
        ("kill -9 the leading etcd member", ETCD_AGAIN),
    ),
    line(
        EtcdLeaderFreeze,
        "etcd-leader-freeze",
        (Class::Etcd, Hits::Others),
        (HARDLY_SEEN, 6_000),
        ("kill -STOP the leading etcd member", "etcd is thawed"),
    ),
    line(
        EtcdQuorum,
        "etcd-quorum",
        (Class::Etcd, Hits::Others),
        (UNSEEN, 6_000),
        ("kill -9 two of three etcd members", ETCD_AGAIN),
    ),
    line(
        EtcdFreeze,
        "etcd-freeze",
        (Class::Etcd, Hits::Others),
        (UNSEEN, 8_000),
        ("kill -STOP every etcd member", "etcd is thawed"),
    ),
    line(
        EtcdFull,
        "etcd-full",
        (Class::Etcd, Hits::Others),
        (UNSEEN, 6_000),
        ("etcd has no space and takes no put", "there is space again in etcd"),
    ),
    line(
        EtcdCompaction,
        "etcd-compaction",
        (Class::Etcd, Hits::Others),
        (UNSEEN, 1_000),
        ("etcd forgets all that is not current", ""),
    ),
    line(
        Sentinel,
        "sentinel",
        (Class::Sentinels, Hits::Others),
        (UNSEEN, 1_000),
        ("kill -9 the leading sentinel", "the sentinel is started again"),
    ),
    line(
        SentinelFreeze,
        "sentinel-freeze",
        (Class::Sentinels, Hits::Others),
        (UNSEEN, 1_000),
        ("kill -STOP the leading sentinel", "the sentinel is thawed"),
    ),
    line(
        Sentinels,
        "sentinels",
        (Class::Sentinels, Hits::Others),
        (UNSEEN, 5_000),
        ("kill -9 every sentinel", "the sentinels are started again"),
    ),
    line(
        Haproxy,
        "haproxy",
        (Class::Proxies, Hits::Others),
        (PLANNED, 0),
        ("stop HAProxy with all its sessions, and start it again", ""),
    ),
    line(
        Pgbouncer,
        "pgbouncer",
        (Class::Proxies, Hits::Others),
        (UNSEEN, 500),
        ("kill -9 PgBouncer", "PgBouncer is started again"),
    ),
    line(
        ProxyConfig,
        "proxy-config",
        (Class::Proxies, Hits::Others),
        (UNSEEN, 1_000),
        ("kill -9 proxy-config", "proxy-config is started again"),
    ),
    line(
        Connections,
        "connections",
        (Class::Sessions, Hits::PrimaryUnseen),
        (HARDLY_SEEN, 4_000),
        ("take every session that the primary {x} has", "the sessions are given back"),
    ),
    line(
        Stranger,
        "stranger",
        (Class::Stranger, Hits::PrimaryUnseen),
        (UNSEEN, 1_000),
        ("a stranger streams from the primary {x} under a voter's name", "the stranger is gone"),
    ),
    line(
        SwitchoverTarget,
        "switchover-target",
        (Class::Switchover, Hits::PrimaryLink),
        (SILENCE, 1_000),
        (
            "kill -9 all of the member that the primary {x} is handing over to",
            "that member is started again",
        ),
    ),
    line(
        RejoinCrash,
        "rejoin-crash",
        (Class::Twice, Hits::Primary),
        (CRASH, 500),
        ("kill -9 the postmaster of the primary {x}, and all of {x} while it comes back", AGAIN),
    ),
    line(
        Loss,
        "loss",
        (Class::Network, Hits::PrimaryLink),
        (SILENCE, 4_000),
        ("of the packets between the primary {x} and everybody a tenth is lost", MENDED),
    ),
    line(
        MtuHole,
        "mtu-hole",
        (Class::Network, Hits::PrimaryLink),
        (LEASE, 4_000),
        ("no long packet passes between the primary {x} and members, etcd and sentinels", MENDED),
    ),
    line(
        StandbyMtuHole,
        "standby-mtu-hole",
        (Class::Network, Hits::Standby),
        (PLANNED, 4_000),
        ("no long packet passes between the standby {x} and members, etcd and sentinels", MENDED),
    ),
    line(
        Narrow,
        "narrow",
        (Class::Network, Hits::PrimaryLink),
        (SILENCE, 4_000),
        ("all that the primary {x} sends leaves at 400 kbit a second", MENDED),
    ),
    line(
        DiskSlow,
        "disk-slow",
        (Class::Disk, Hits::PrimaryLink),
        (SILENCE, 4_000),
        (
            "every write to the disk of the primary {x} takes a quarter of a second",
            "the disk of {x} is as fast as before",
        ),
    ),
    line(
        DiskErrors,
        "disk-errors",
        (Class::Disk, Hits::Primary),
        (SILENCE, 500),
        (
            "the disk of the primary {x} fails: it takes no write and no fsync",
            "that disk is checked, and {x} is started again",
        ),
    ),
    line(
        Processor,
        "processor",
        (Class::Starved, Hits::PrimaryLink),
        (UNRESPONSIVE, 2_000),
        ("leave the primary {x} three hundredths of a processor", "{x} has the processor again"),
    ),
    line(
        Memory,
        "memory",
        (Class::Starved, Hits::Primary),
        (SILENCE, 500),
        (
            "have a query of the primary {x} take more memory than there is",
            "{x} may take memory again",
        ),
    ),
    line(
        CrashBehind,
        "crash-behind",
        (Class::Postgres, Hits::Primary),
        (SILENCE, 500),
        (
            "reset the links of one standby, and kill -9 the postmaster of the primary {x} once that standby lacks commits",
            "",
        ),
    ),
    line(
        EtcdRestored,
        "etcd-restored",
        (Class::Etcd, Hits::Others),
        (UNSEEN, 6_000),
        (
            "etcd is killed and restored from a backup that is older than a failover",
            "an operator vouches for what etcd holds",
        ),
    ),
    line(
        Delay,
        "delay",
        (Class::Network, Hits::PrimaryUnseen),
        (UNSEEN, 3_000),
        ("all that the primary {x} sends and receives takes 25 ms longer", MENDED),
    ),
    line(
        Stall,
        "stall",
        (Class::Network, Hits::Primary),
        (SILENCE, 1_000),
        (
            "all that the primary {x} sends and receives is held, and arrives when it is let go",
            MENDED,
        ),
    ),
    line(
        Clock,
        "clock",
        (Class::Member, Hits::Primary),
        (SILENCE, 2_000),
        (
            "start the primary {x} again with a clock that is 7 minutes slow, and have it serve",
            "{x} is killed and started again with the right time",
        ),
    ),
    line(
        CfgCrash,
        "cfg-crash",
        (Class::Twice, Hits::Primary),
        (SILENCE, 500),
        (
            "kill -9 all of a standby, start it again, and kill -9 all of the primary {x} while that standby is to vote again",
            AGAIN,
        ),
    ),
    // A copy begins with a checkpoint of the primary, on whose disk commits wait for it.
    line(
        CopyCrash,
        "copy-crash",
        (Class::Twice, Hits::Standby),
        (PLANNED, 500),
        (
            "kill -9 all of the standby {x}, give it an empty disk, and kill it again while it is copied",
            AGAIN,
        ),
    ),
];
