//! The table of ways back, case by case: a stopped member `a` against `b`, which leads timeline 3 since 300. Timeline 2
//! was left there, timeline 1 at 100.

use proto::state::EpochRecord;
use proto::{
    CfgId, Epoch, MemberName, Phase, StateNumber, SystemIdentifier, Timeline, TimelineHistory,
};

use super::*;

const CLUSTER: SystemIdentifier = SystemIdentifier(7);

fn state() -> ClusterState {
    let name: MemberName = "b".parse().unwrap();
    let epochs = [(1, None, 0), (2, Some(1), 100), (3, Some(2), 300)].map(
        |(n, parent, start): (u64, Option<u32>, u64)| EpochRecord {
            epoch: Epoch(n),
            timeline: Timeline(n as u32),
            primary: name.clone(),
            parent: parent.map(Timeline),
            start_lsn: Some(Lsn(start)),
            with_loss: false,
        },
    );
    ClusterState {
        number: StateNumber(9),
        etcd_cluster_id: "e".into(),
        system_identifier: Some(CLUSTER),
        epoch: Epoch(3),
        phase: Phase::Open,
        primary: Some(name),
        sealing: None,
        cfgs: Vec::new(),
        last_cfg: CfgId(3),
        timeline: Timeline(3),
        highest_timeline: Timeline(3),
        chosen: None,
        open_at_once: true,
        epochs: epochs.into(),
        members: Default::default(),
        restart: None,
        answered: None,
        adopted: None,
        requests: Vec::new(),
        orders: Default::default(),
    }
}

fn history(timeline: u32, text: &str) -> TimelineHistory {
    TimelineHistory::parse(Timeline(timeline), text).unwrap()
}

const THIRD: &str = "1\t0/64\tx\n2\t0/12C\tx\n";

/// A case, told by what differs from the usual one: a primary of timeline 2 that crashed, asked and proven.
#[derive(Clone)]
struct Told {
    role: Role,
    end: (u32, u64),
    disk: Option<Stopped>,
    source: Option<SourceSays>,
    room: Option<Room>,
    copy: Permission,
    complete: bool,
}

fn primary(timeline: u32, end: u64) -> Told {
    let text = ["", "1\t0/64\tx\n", THIRD][timeline as usize - 1];
    Told {
        role: Role::Primary,
        end: (timeline, end),
        disk: Some(Stopped {
            system_identifier: CLUSTER,
            history: history(timeline, text),
            pages: Pages::Primary { timeline: Timeline(timeline), clean: false },
            cannot_rewind: None,
        }),
        source: Some(SourceSays {
            system_identifier: CLUSTER,
            history: history(3, THIRD),
            flushed: Lsn(400),
            proof: Proof::Same { from: Lsn(0), to: Lsn(end.min(300)) },
        }),
        room: None,
        copy: Permission::Allowed,
        complete: true,
    }
}

fn standby(timeline: u32, end: u64, replayed: u64) -> Told {
    let pages = Pages::Replayed { lsn: Lsn(replayed), timeline: Timeline(timeline) };
    Told { role: Role::Standby, ..primary(timeline, end) }.disk(|d| d.pages = pages)
}

impl Told {
    fn disk(mut self, change: impl FnOnce(&mut Stopped)) -> Self {
        change(self.disk.as_mut().unwrap());
        self
    }

    fn source(mut self, change: impl FnOnce(&mut SourceSays)) -> Self {
        change(self.source.as_mut().unwrap());
        self
    }

    fn way(&self) -> Way {
        let (timeline, lsn) = self.end;
        let end = WalPosition {
            epoch: Epoch(timeline.into()),
            lsn: Lsn(lsn),
            timeline: Timeline(timeline),
        };
        choose(&Case {
            state: &state(),
            role: self.role,
            complete: self.complete,
            end,
            disk: self.disk.as_ref(),
            source: self.source.as_ref(),
            room: self.room,
            copy: self.copy,
        })
    }

    /// The way in a word, with the reason in words.
    fn told(&self) -> String {
        match self.way() {
            Way::Follow => "follow".into(),
            Way::DropUnreplayed { fork, reason } => {
                format!("drop from {} of {}: {reason}", fork.lsn, fork.timeline)
            }
            Way::Rewind { reason } => format!("rewind: {reason}"),
            Way::FreshCopy { reason } => format!("copy: {reason}"),
            Way::Refuse(refusal) => format!("refuse: {refusal}"),
        }
    }
}

fn check(cases: &[(&str, Told, &str)]) {
    for (what, told, expected) in cases {
        let way = told.told();
        assert!(way.starts_with(expected), "{what}: {way}");
    }
}

#[test]
fn what_ends_before_the_fork_follows_unless_its_disk_has_lost_some() {
    check(&[
        ("a crashed primary that ends at the fork", primary(2, 300), "follow"),
        (
            "one that passes it by a byte",
            primary(2, 301),
            "rewind: its WAL ends at 0/12D of timeline 2, past the fork at 0/12C",
        ),
        (
            "one that stopped in order",
            primary(2, 300)
                .disk(|d| d.pages = Pages::Primary { timeline: Timeline(2), clean: true }),
            "follow",
        ),
        (
            "one of an older timeline",
            primary(1, 120),
            "rewind: its WAL ends at 0/78 of timeline 1, past the fork at 0/64",
        ),
        (
            "a crashed primary that has less than it had sent",
            primary(2, 299),
            "copy: its WAL ends at 0/12B of timeline 2 and once reached 0/12C",
        ),
        ("a standby before the fork", standby(2, 250, 240), "follow"),
        ("a standby on the primary's own timeline", standby(3, 900, 900), "follow"),
    ]);
}

#[test]
fn what_passes_the_fork_is_set_aside_rewound_or_copied() {
    check(&[
        (
            "a standby that received past the fork and replayed to before it",
            standby(2, 400, 300),
            "drop from 0/12C of 2: ",
        ),
        ("a standby that replayed past the fork", standby(2, 400, 301), "rewind: "),
        (
            "a standby that crashed past the fork",
            standby(2, 400, 301)
                .disk(|d| d.cannot_rewind = Some("it is the data of a standby that crashed")),
            "copy: its WAL ends at 0/190 of timeline 2, past the fork at 0/12C, and it is the data",
        ),
        (
            "a standby whose WAL ends before what it had replayed",
            standby(2, 200, 201),
            "copy: its WAL ends at 0/C8 of timeline 2 and once reached 0/C9",
        ),
        (
            "a primary that was to be promoted and was cut",
            Told { role: Role::Primary, ..standby(2, 400, 300) },
            "rewind: ",
        ),
        (
            "a primary without checksums",
            primary(2, 400).disk(|d| {
                d.cannot_rewind = Some("neither data checksums nor wal_log_hints are on")
            }),
            "copy: its WAL ends at 0/190 of timeline 2, past the fork at 0/12C, and neither data checksums",
        ),
        (
            "the same where nothing may be copied",
            Told {
                copy: Permission::Never,
                ..primary(2, 400).disk(|d| d.cannot_rewind = Some("x"))
            },
            "refuse: its WAL ends at 0/190 of timeline 2, past the fork at 0/12C, and x, and rejoin.copy is never; set rejoin.copy",
        ),
    ]);
}

/// It would stream from nowhere, or be rewound and then never have what it needs to be consistent.
#[test]
fn whoever_needs_wal_that_the_primary_has_removed_is_copied_however_it_would_have_come_back() {
    let without = |told: Told, at: u64| {
        told.source(|s| s.proof = Proof::Removed { at: Lsn(at), timeline: Timeline(2) })
    };
    let removed = "copy: the primary has removed the WAL with which this member would go on, from";
    check(&[
        ("a standby that was away for long", without(standby(2, 250, 240), 250), removed),
        ("one that was to set WAL aside", without(standby(2, 400, 300), 300), removed),
        ("one that was to be rewound", without(primary(2, 400), 300), removed),
        (
            "one that may not be copied",
            Told { copy: Permission::Never, ..without(standby(2, 250, 240), 250) },
            "refuse: the primary has removed the WAL with which this member would go on, from 0/FA of timeline 2, and rejoin.copy is never",
        ),
        (
            "one of another cluster",
            without(standby(2, 250, 240), 250).disk(|d| d.system_identifier = SystemIdentifier(8)),
            "refuse: its data is of another cluster",
        ),
        (
            "one whose disk has lost some says that",
            without(standby(2, 200, 201), 200),
            "copy: its WAL ends at 0/C8 of timeline 2 and once reached 0/C9",
        ),
    ]);
}

#[test]
fn what_cannot_be_right_is_refused_with_a_next_step() {
    check(&[
        (
            "data of another cluster",
            primary(2, 300).disk(|d| d.system_identifier = SystemIdentifier(8)),
            "refuse: its data is of another cluster: system identifier 8 instead of 7",
        ),
        (
            "a primary of another cluster at the agreed address",
            primary(2, 300).source(|s| s.system_identifier = SystemIdentifier(8)),
            "refuse: its data is of another cluster: system identifier 7 instead of 8",
        ),
        (
            "bytes that differ before the fork",
            primary(2, 300)
                .source(|s| s.proof = Proof::Differs { at: Lsn(290), timeline: Timeline(2) }),
            "refuse: its WAL and the primary's differ at 0/122 of timeline 2",
        ),
        (
            "bytes that differ, past it",
            primary(2, 400)
                .source(|s| s.proof = Proof::Differs { at: Lsn(290), timeline: Timeline(2) }),
            "refuse: ",
        ),
        (
            "bytes that nobody has any more",
            primary(2, 400).source(|s| s.proof = Proof::Unknown("x".into())),
            "rewind: ",
        ),
        (
            "one number for two logs",
            primary(2, 280).disk(|d| d.history = history(2, "1\t0/50\tx\n")),
            "rewind: its WAL ends at 0/118 of timeline 2, past the fork at 0/50",
        ),
        (
            "nothing in common",
            standby(2, 250, 240).disk(|d| d.history = history(2, "")),
            "refuse: no timeline of its log is one of timeline 3's",
        ),
        (
            "a timeline that nobody agreed on",
            Told { end: (4, 350), ..primary(2, 350) }
                .disk(|d| d.history = history(4, "1\t0/64\tx\n2\t0/FA\tx\n")),
            "rewind: its WAL ends at 0/15E of timeline 4, past the fork at 0/FA",
        ),
    ]);
}

#[test]
fn without_the_primarys_answer_the_agreed_state_decides() {
    check(&[
        // Where the primary was not asked, by what was agreed.
        ("not asked, before the fork", Told { source: None, ..standby(2, 300, 240) }, "follow"),
        ("not asked, past it", Told { source: None, ..primary(2, 301) }, "rewind: "),
        (
            "nothing known but the end of its WAL",
            Told { source: None, disk: None, ..standby(2, 301, 0) },
            "copy: its WAL ends at 0/12D of timeline 2, past the fork at 0/12C, and it was a standby",
        ),
    ]);
}

/// Over all ends, replay positions and kinds of data: nothing is followed that could lack being a prefix, WAL is dropped
/// only where no page can hold it, and no way but a fresh copy or a person deals with another cluster's data.
#[test]
fn no_case_follows_or_drops_what_pages_may_hold() {
    for timeline in 1..=3_u32 {
        let fork = [100, 300, u64::MAX][timeline as usize - 1];
        for end in (10..=400).step_by(10) {
            for replayed in (10..=end).step_by(10) {
                for told in [primary(timeline, end), standby(timeline, end, replayed)] {
                    let is_primary = told.role == Role::Primary;
                    match told.way() {
                        Way::Follow => assert!(end <= fork, "{timeline} {end}"),
                        Way::DropUnreplayed { fork: at, .. } => {
                            assert!(!is_primary && replayed <= fork && end > fork);
                            assert_eq!(at.lsn, Lsn(fork));
                        }
                        Way::Rewind { .. } => {
                            assert!(end > fork && (is_primary || replayed > fork))
                        }
                        Way::FreshCopy { .. } => assert!(is_primary && end < fork),
                        Way::Refuse(refusal) => panic!("{refusal}"),
                    }
                }
            }
        }
    }
}

#[test]
fn a_fresh_copy_is_chosen_where_it_is_cheaper_than_a_rewind_and_fits() {
    const GB: u64 = 1 << 30;
    let told = |flushed: u64, data: u64, available: u64, copy| {
        let room = Some(Room { data: data * GB, available: available * GB });
        let told = Told { room, copy, ..primary(2, 400) };
        told.source(|s| s.flushed = Lsn(300 + flushed * GB)).told()
    };
    let (allowed, never) = (Permission::Allowed, Permission::Never);
    let cheaper = told(10, 8, 11, allowed);
    assert!(
        cheaper.ends_with("and a copy of 8.0 GB is cheaper than a rewind with 10.0 GB of WAL"),
        "{cheaper}"
    );
    for (flushed, data, available, copy, why) in [
        (10, 11, 100, allowed, "there is more data than WAL"),
        (3, 1, 100, allowed, "the rewind takes seconds"),
        (10, 8, 9, allowed, "the copy and the WAL of its time would not fit"),
        (10, 8, 11, never, "a copy is not allowed"),
    ] {
        let told = told(flushed, data, available, copy);
        assert!(told.starts_with("rewind: "), "{why}: {told}");
    }
    // What follows or is set aside costs no more than its stream.
    let room = Some(Room { data: GB, available: 100 * GB });
    let far = |told: Told| Told { room, ..told }.source(|s| s.flushed = Lsn(10 * GB)).told();
    assert_eq!(far(primary(2, 300)), "follow");
    assert!(far(standby(2, 400, 300)).starts_with("drop"));
}

#[test]
fn pages_ahead_of_the_wal_are_a_loss_only_of_a_member_that_counted() {
    let incomplete = |replayed| Told { complete: false, ..standby(2, 200, replayed) };
    assert!(standby(2, 200, 250).told().starts_with("copy: "), "its disk has lost some");
    // A rewind or copy brought them, and the present primary has all that they need.
    assert_eq!(incomplete(250).told(), "follow");
    assert_eq!(incomplete(300).told(), "follow");
    assert!(incomplete(301).told().starts_with("copy: "), "of WAL that is nobody's any more");
}
