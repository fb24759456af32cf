//! Deliberate mistakes in the protocol, to show that who judges has teeth: one list for the simulator and the model
//! checker. They are made around the product's deciders and in the modelled shells, by name and for one run: nothing of
//! them is in the product.

use crate::model::Bounds;
use crate::model::run::{JOINT, LATE, LIVES, SHORT};

/// A mistake, what it is, and who is to find it.
pub struct Mutant {
    pub name: &'static str,
    pub what: &'static str,
    /// The simulator's profiles that look for it, in turn.
    pub profiles: &'static [&'static str],
    pub model: Option<Modelled>,
}

/// Where the model checker looks for a mistake, and the promises one of which it has to break.
pub struct Modelled {
    pub bounds: Bounds,
    pub breaks: &'static [&'static str],
}

const fn mutant(
    name: &'static str,
    what: &'static str,
    profiles: &'static [&'static str],
) -> Mutant {
    Mutant { name, what, profiles, model: None }
}

impl Mutant {
    const fn modelled(self, bounds: Bounds, breaks: &'static [&'static str]) -> Self {
        Self { model: Some(Modelled { bounds, breaks }), ..self }
    }
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant("promise-not-durable", "a seal is reported and its promise is not on disk", HEAVY)
        .modelled(JOINT, &["I5"]),
    mutant("upstream-stays", "the seal leaves the upstream and the epoch's password", HEAVY),
    mutant(
        "voters-given-up-at-once",
        "with durability available the primary goes on alone as soon as its voters hear nothing",
        &["single", "available"],
    ),
    mutant(
        "a-standby-streams-twice",
        "a slot in use is given to the next walsender of its standby, and both count",
        &["two-of-three"],
    ),
    mutant("receiver-not-ended", "the seal does not end the receiver", &["freeze"])
        .modelled(LIVES, &["I1", "I2", "I4", "I5", "I9", "I16"]),
    mutant("position-before-cut", "the position is read before the receiver is ended", BUSY)
        .modelled(LIVES, &["I1", "I2", "I4", "I16"]),
    mutant(
        "incomplete-member-counts",
        "incomplete members seal, and the leader counts them",
        HEAVY,
    ),
    mutant("complete-after-rewind", "a rewound member counts at once", HEAVY),
    mutant("rewind-without-mark", "the mark is not set before a rewind", HEAVY),
    mutant("names-empty-on-standbys", "a standby's list is empty", HEAVY).modelled(JOINT, &["I8"]),
    mutant("no-placeholders", "named timelines are not reserved", HEAVY),
    mutant("open-without-voters", "a primary opens though no voter holds what it recovered", ALL),
    mutant("restart-opens-at-once", "a primary is started open", HEAVY),
    mutant("confirm-without-evidence", "a Cfg is confirmed and nobody has flushed", HEAVY)
        .modelled(JOINT, &["I4"]),
    mutant("walsenders-not-proven", "a Cfg is confirmed by one reload", &["freeze"])
        .modelled(JOINT, &["I3"]),
    mutant("canary-not-looked-at", "backends are not seen to wait", ALL),
    mutant("piece-not-seen", "a seal overlooks a piece, and so does the promotion", PIECES),
    mutant(
        "piece-stays",
        "pieces are not set aside, and a promotion that falls short is taken",
        PIECES,
    ),
    mutant("renewal-counts-from-receipt", "a renewal counts from its answer", &["slow-store"]),
    mutant("keepalive-alone-renews", "a keepalive renews the right", &["network"]),
    mutant("sign-without-causality", "an old flush position is a sign", &["network"]),
    mutant("stale-sentinel-without-guard", "the leader's write has no guards", &["sentinels"])
        .modelled(LATE, &["I7"]),
    mutant("router-takes-a-lower-epoch", "the router follows any state", &["restore"])
        .modelled(SHORT, &["I19"]),
    mutant("promote-any-live-standby", "whoever has sealed first is promoted", HEAVY)
        .modelled(JOINT, &["I1", "I2", "I4", "I16"]),
    mutant("promote-the-least", "of a base the one that holds the least is promoted", HEAVY)
        .modelled(JOINT, &["I1", "I2", "I4", "I16"]),
    mutant("new-epoch-forgets-cfgs", "a promotion drops the Cfgs before it", HEAVY)
        .modelled(JOINT, &["I4"]),
    mutant("cfg-dropped-to-cancel", "a change that hangs is cancelled by dropping the Cfg", HEAVY)
        .modelled(JOINT, &["I3"]),
    mutant("change-without-joint", "a new Cfg takes the old one's place at once", HEAVY)
        .modelled(JOINT, &["I3"]),
    mutant(
        "late-member-follows-at-once",
        "a member past the fork follows under its voter's name",
        HEAVY,
    )
    .modelled(LIVES, &["I1", "I2", "I4", "I5", "I9", "I16"]),
    mutant(
        "sealed-primary-serves-on",
        "a seal neither fences the primary nor ends its renewals",
        &["network"],
    ),
    mutant("missing-report-is-silence", "an absent report reads as a lost primary", &["etcd"]),
    mutant("seal-number-not-compared", "a seal for an earlier epoch counts for this one", HEAVY),
    mutant("floors-are-forgotten", "the leader knows of no floor", &["disks"]),
    mutant("switchover-does-not-wait", "the target is promoted before it has sealed", &["orders"]),
    mutant(
        "request-is-forgotten",
        "the answer to a request is not remembered, nor its key deleted",
        &["switchover"],
    ),
    mutant(
        "handover-fences",
        "a primary that hands over is killed, and nobody compares",
        &["switchover"],
    ),
    mutant("names-wider-than-recorded", "names in force list a member of no Cfg", HEAVY),
    mutant("names-empty-at-promotion", "a standby is promoted with an empty list", HEAVY),
    mutant(
        "fence-terminates-backends",
        "a fence ends waiting backends, and others see their commits",
        BUSY,
    ),
    mutant(
        "streaming-counts-as-holding",
        "a voter that streams counts as one that has flushed",
        &["freeze"],
    ),
    mutant("only-holder-is-rewound", "data of a member that stands in a Cfg is overwritten", HEAVY),
    mutant("copy-resets-the-promise", "a fresh copy begins with new member files", HEAVY),
    mutant(
        "hello-clears-the-limit",
        "a keeper that comes back clears the fencer's limit",
        &["heavy", "network"],
    ),
    mutant("no-signs", "voters' signs count for nothing while etcd is away", &["etcd"]),
    mutant("set-back-store-renews", "a store that was set back renews the right", &["backup"]),
    mutant(
        "frozen-reports-are-ignored",
        "the leader decides on a store that was set back",
        &["restore"],
    ),
    mutant(
        "adopted-store-keeps-the-right",
        "the right is not taken again after an adoption",
        &["restore"],
    ),
    mutant(
        "restored-reports-stay",
        "a report that a backup has brought back is not put anew",
        &["restore", "backup"],
    ),
    mutant("timeline-used-again", "an epoch gets the timeline of the one before", HEAVY)
        .modelled(JOINT, &["I9"]),
];

const PIECES: &[&str] = &["pieces"];
const HEAVY: &[&str] = &["heavy"];
/// Load while PostgreSQL lives and what is around it does not.
const BUSY: &[&str] = &["busy"];
/// Mistakes that need more than one fault each, at the right moments.
const ALL: &[&str] = &["aimed", "freeze", "heavy", "orders", "crash"];
