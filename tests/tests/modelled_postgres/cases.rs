//! The cases: steps, questions, and of the answers those that were once measured by hand.

mod timelines;
mod waits;

use system_tests::sim::scripted::Part;

/// Members are numbered: the primary is 0 at first. Commits are numbered as well.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Names(usize, &'static str),
    CutOff(usize),
    Commit(u64, usize),
    /// Under a `statement_timeout`, which ends no wait of a plain statement.
    CommitWithTimeout(u64, usize),
    /// `CALL` of a procedure that commits, under a `statement_timeout`.
    CallWithTimeout(u64, usize),
    Cancel(usize),
    Terminate(usize),
    Stop(usize, Part),
    GoOn(usize, Part),
    Crash(usize),
    StartAgain(usize),
    Promote(usize),
    /// Which has to fail, or not to end: nothing is waited for.
    TryToStart(usize),
    /// A standby is given another upstream.
    Follow(usize, usize),
    /// Empty history files for these timelines.
    Reserve(usize, &'static [u32]),

    Told(u64),
    Sees(u64, usize),
    Holds(u64, usize),
    Writes(usize),
    Senders(usize),
    /// Whether a session can be opened.
    Runs(usize),
}

impl Step {
    pub fn is_question(&self) -> bool {
        use Step::{Holds, Runs, Sees, Senders, Told, Writes};
        matches!(self, Told(_) | Sees(..) | Holds(..) | Writes(_) | Senders(_) | Runs(_))
    }
}

pub struct Case {
    pub name: &'static str,
    /// `synchronous_standby_names` of the primary at first.
    pub names: &'static str,
    pub steps: &'static [Step],
    /// What has to be among the answers.
    pub shows: &'static [&'static str],
}

use Part::{Checkpointer, Receiver, Senders as Walsenders, Startup};
use Step::{
    CallWithTimeout, Cancel, Commit, CommitWithTimeout, Crash, CutOff, GoOn, Holds, Names, Promote,
    Reserve, Sees, Senders, StartAgain, Stop, Terminate, Told, Writes,
};

const ANY_1: &str = r#"ANY 1 ("b.e1","c.e1")"#;
const ANY_2: &str = r#"ANY 2 ("b.e1","c.e1")"#;
const ONLY_B: &str = r#"ANY 1 ("b.e1")"#;
const NOBODY: &str = r#"ANY 1 ("nobody.can.have")"#;

const fn case(
    name: &'static str,
    names: &'static str,
    steps: &'static [Step],
    shows: &'static [&'static str],
) -> Case {
    Case { name, names, steps, shows }
}

/// Returns all of them.
pub fn all() -> impl Iterator<Item = &'static Case> {
    FIRST.iter().chain(waits::CASES).chain(timelines::CASES)
}

/// The holes of synchronous replication, and what the first promotions showed.
const FIRST: &[Case] = &[
    case(
        "a commit is acknowledged once one of two holds it",
        ANY_1,
        &[Stop(1, Receiver), Commit(1, 0), Told(1), Holds(1, 2), Sees(1, 0)],
        &["Told(1): Done"],
    ),
    case(
        "a commit that both have to hold waits for the one that is stopped",
        ANY_2,
        &[
            Stop(1, Receiver),
            Commit(1, 0),
            Told(1),
            Sees(1, 0),
            Holds(1, 2),
            GoOn(1, Receiver),
            Told(1),
            Sees(1, 0),
        ],
        &["Told(1): Waits", "Told(1): Done", "Sees(1, 0): Some(false)"],
    ),
    case(
        "a standby that comes back beside its old walsender counts once",
        ANY_2,
        &[
            Stop(2, Receiver),
            Stop(0, Walsenders),
            Crash(1),
            StartAgain(1),
            Commit(1, 0),
            Told(1),
            GoOn(0, Walsenders),
            Told(1),
            Holds(1, 1),
            GoOn(2, Receiver),
            Told(1),
        ],
        &["Told(1): Waits", "Holds(1, 1): Some(true)", "Told(1): Done"],
    ),
    case(
        "a cancelled wait is success with a warning, and others see it",
        NOBODY,
        &[Commit(1, 0), Told(1), Sees(1, 0), Cancel(0), Told(1), Sees(1, 0)],
        &["Told(1): Warned", "Sees(1, 0): Some(true)"],
    ),
    case(
        "a statement_timeout ends no wait of a plain commit",
        NOBODY,
        &[CommitWithTimeout(1, 0), Told(1), Sees(1, 0)],
        &["Told(1): Waits"],
    ),
    case(
        "a statement_timeout ends the wait of a CALL, with a warning",
        NOBODY,
        &[CallWithTimeout(1, 0), Told(1), Sees(1, 0)],
        &["Told(1): Warned"],
    ),
    case(
        "a session that is ended while it waits is told nothing, and others see its commit",
        NOBODY,
        &[Commit(1, 0), Terminate(0), Told(1), Sees(1, 0)],
        &["Told(1): Lost", "Sees(1, 0): Some(true)"],
    ),
    case(
        "a crash while commits wait exposes them after the restart",
        NOBODY,
        &[Commit(1, 0), Sees(1, 0), Crash(0), Told(1), StartAgain(0), Sees(1, 0), Writes(0)],
        &["Sees(1, 0): Some(false)", "Told(1): Lost", "Sees(1, 0): Some(true)"],
    ),
    case(
        "emptied names release whoever waits",
        NOBODY,
        &[Commit(1, 0), Told(1), Names(0, ""), Told(1)],
        &["Told(1): Waits", "Told(1): Done"],
    ),
    case(
        "emptied names release nobody while the checkpointer is stopped",
        NOBODY,
        &[
            Commit(1, 0),
            Stop(0, Checkpointer),
            Names(0, ""),
            Told(1),
            Commit(2, 0),
            Told(2),
            GoOn(0, Checkpointer),
            Told(1),
            Told(2),
        ],
        &["Told(1): Waits", "Told(2): Waits", "Told(2): Done"],
    ),
    case(
        "names that come after empty ones are waited for only once the checkpointer has read them",
        "",
        &[
            Stop(0, Checkpointer),
            Names(0, NOBODY),
            Commit(1, 0),
            Told(1),
            GoOn(0, Checkpointer),
            Commit(2, 0),
            Told(2),
        ],
        &["Told(1): Done", "Told(2): Waits"],
    ),
    case(
        "without names nobody waits",
        "",
        &[Stop(1, Receiver), Stop(2, Receiver), Commit(1, 0), Told(1)],
        &["Told(1): Done"],
    ),
    case(
        "a walsender that has not read the new names shows its old place",
        ONLY_B,
        &[Stop(0, Walsenders), Names(0, NOBODY), Commit(1, 0), Told(1), Senders(0)],
        &["Told(1): Waits"],
    ),
    case(
        "a standby that is stopped is shown as streaming and with its place",
        ONLY_B,
        &[Stop(1, Receiver), Commit(1, 0), Told(1), Senders(0)],
        &["Told(1): Waits", r#"Senders(0): [("b.e1", 1, true), ("c.e1", 0, true)]"#],
    ),
    case(
        "names that change put another standby into its place",
        ONLY_B,
        &[
            Senders(0),
            Names(0, r#"ANY 1 ("c.e1")"#),
            Senders(0),
            Stop(1, Receiver),
            Commit(1, 0),
            Told(1),
        ],
        &["Told(1): Done"],
    ),
    case(
        "FIRST shows an order of places",
        r#"FIRST 2 ("c.e1","b.e1")"#,
        &[Senders(0), Names(0, r#"FIRST 1 ("b.e1","c.e1")"#), Senders(0)],
        &[r#"Senders(0): [("b.e1", 2, true), ("c.e1", 1, true)]"#],
    ),
    case(
        "FIRST 1 does not go past a stopped first one that is connected",
        r#"FIRST 1 ("b.e1","c.e1")"#,
        &[Stop(1, Receiver), Commit(1, 0), Told(1), Holds(1, 2)],
        &["Told(1): Waits"],
    ),
    case(
        "FIRST 1 goes past a first one that is gone",
        r#"FIRST 1 ("b.e1","c.e1")"#,
        &[Crash(1), Commit(1, 0), Told(1), Senders(0)],
        &["Told(1): Done"],
    ),
    case(
        "a standby without an upstream receives nothing, and leaves the list of walsenders",
        ANY_1,
        &[CutOff(1), Senders(0), Commit(1, 0), Told(1), Holds(1, 1), Holds(1, 2)],
        &["Told(1): Done", "Holds(1, 1): Some(false)"],
    ),
    case(
        "a standby that starts again streams again and releases what waits",
        ONLY_B,
        &[Crash(1), Commit(1, 0), Told(1), StartAgain(1), Told(1), Sees(1, 1)],
        &["Told(1): Waits", "Told(1): Done"],
    ),
    case(
        "a promotion takes the next timeline",
        ANY_1,
        &[Commit(1, 0), Crash(0), Promote(1), Writes(1), Sees(1, 1), Writes(2)],
        &["Writes(1): Some(2)", "Writes(2): None"],
    ),
    case(
        "a promotion leaves reserved timelines behind",
        ANY_1,
        &[Crash(0), Reserve(1, &[2, 3]), Promote(1), Writes(1)],
        &["Writes(1): Some(4)"],
    ),
    case(
        "a promotion waits for a startup process that is stopped",
        ANY_1,
        &[Crash(0), Stop(1, Startup), Promote(1), Writes(1), GoOn(1, Startup), Writes(1)],
        &["Writes(1): None", "Writes(1): Some(2)"],
    ),
    case(
        "a stopped startup process stops no receiver: commits are acknowledged and not seen there",
        ONLY_B,
        &[
            Stop(1, Startup),
            Commit(1, 0),
            Told(1),
            Holds(1, 1),
            Sees(1, 1),
            GoOn(1, Startup),
            Sees(1, 1),
        ],
        &["Told(1): Done", "Sees(1, 1): Some(false)", "Sees(1, 1): Some(true)"],
    ),
    case(
        "what nobody has received is lost with a promotion",
        NOBODY,
        &[CutOff(1), CutOff(2), Commit(1, 0), Told(1), Crash(0), Promote(1), Writes(1), Sees(1, 1)],
        &["Told(1): Waits", "Sees(1, 1): Some(false)"],
    ),
];
