//! More cases of commits that wait: who is counted, what releases them, what becomes of those that were ended.

use super::Case;
use super::Part::{Receiver, Senders as Walsenders};
use super::Step::{
    Cancel, Commit, Crash, GoOn, Holds, Names, Sees, Senders, StartAgain, Stop, Terminate, Told,
};
use super::{ANY_1, ANY_2, NOBODY, ONLY_B, case};

const FIRST_1: &str = r#"FIRST 1 ("b.e1","c.e1")"#;
const FIRST_2: &str = r#"FIRST 2 ("b.e1","c.e1")"#;

pub const CASES: &[Case] = &[
    case(
        "ANY 2 waits for a standby that is gone, until it is back",
        ANY_2,
        &[Crash(1), Commit(1, 0), Told(1), StartAgain(1), Told(1)],
        &["Told(1): Waits", "Told(1): Done"],
    ),
    case(
        "FIRST 2 of two waits for both",
        FIRST_2,
        &[
            Stop(2, Receiver),
            Commit(1, 0),
            Told(1),
            Holds(1, 1),
            Senders(0),
            GoOn(2, Receiver),
            Told(1),
        ],
        &["Told(1): Waits", "Holds(1, 1): Some(true)", "Told(1): Done"],
    ),
    case(
        "the first of FIRST 1 takes its place again when it is back",
        FIRST_1,
        &[
            Crash(1),
            Senders(0),
            StartAgain(1),
            Senders(0),
            Stop(2, Receiver),
            Commit(1, 0),
            Told(1),
        ],
        &[r#"Senders(0): [("b.e1", 1, true), ("c.e1", 2, true)]"#, "Told(1): Done"],
    ),
    case(
        "names that somebody can satisfy who holds it release what waits",
        NOBODY,
        &[Commit(1, 0), Told(1), Holds(1, 1), Names(0, ONLY_B), Told(1), Sees(1, 0)],
        &["Told(1): Waits", "Told(1): Done"],
    ),
    case(
        "a lower count releases what waits for more",
        ANY_2,
        &[Stop(2, Receiver), Commit(1, 0), Told(1), Names(0, ANY_1), Told(1)],
        &["Told(1): Waits", "Told(1): Done"],
    ),
    case(
        "a higher count holds up what comes after it, and nothing before",
        ANY_1,
        &[
            Stop(2, Receiver),
            Commit(1, 0),
            Told(1),
            Names(0, ANY_2),
            Commit(2, 0),
            Told(2),
            Told(1),
        ],
        &["Told(1): Done", "Told(2): Waits"],
    ),
    case(
        "a cancel ends the waits that are there and no later one",
        NOBODY,
        &[Commit(1, 0), Commit(2, 0), Cancel(0), Told(1), Told(2), Commit(3, 0), Told(3)],
        &["Told(1): Warned", "Told(2): Warned", "Told(3): Waits"],
    ),
    case(
        "what a client was warned of reaches a standby that goes on",
        ONLY_B,
        &[
            Stop(1, Receiver),
            Commit(1, 0),
            Cancel(0),
            Told(1),
            Sees(1, 0),
            GoOn(1, Receiver),
            Holds(1, 1),
            Sees(1, 1),
        ],
        &["Told(1): Warned", "Sees(1, 1): Some(true)"],
    ),
    case(
        "what a session was ended in reaches a standby that goes on",
        ONLY_B,
        &[
            Stop(1, Receiver),
            Commit(1, 0),
            Terminate(0),
            Told(1),
            GoOn(1, Receiver),
            Holds(1, 1),
            Sees(1, 1),
        ],
        &["Told(1): Lost", "Sees(1, 1): Some(true)"],
    ),
    case(
        "a wait that was ended holds no later commit up",
        ONLY_B,
        &[
            Stop(1, Receiver),
            Commit(1, 0),
            Terminate(0),
            GoOn(1, Receiver),
            Commit(2, 0),
            Told(2),
            Told(1),
        ],
        &["Told(2): Done", "Told(1): Lost"],
    ),
    case(
        "all that waits for the same standby is released together",
        ONLY_B,
        &[
            Stop(1, Receiver),
            Commit(1, 0),
            Commit(2, 0),
            Told(1),
            Told(2),
            GoOn(1, Receiver),
            Told(1),
            Told(2),
        ],
        &["Told(1): Waits", "Told(2): Waits", "Told(1): Done", "Told(2): Done"],
    ),
    case(
        "walsenders that are stopped send nothing and release nothing",
        ONLY_B,
        &[
            Stop(0, Walsenders),
            Commit(1, 0),
            Told(1),
            Holds(1, 1),
            GoOn(0, Walsenders),
            Told(1),
            Holds(1, 1),
        ],
        &["Told(1): Waits", "Holds(1, 1): Some(false)", "Told(1): Done"],
    ),
    case(
        "names hold up what comes after them, and nothing before",
        "",
        &[
            Stop(1, Receiver),
            Commit(1, 0),
            Told(1),
            Names(0, ONLY_B),
            Commit(2, 0),
            Told(2),
            Told(1),
        ],
        &["Told(1): Done", "Told(2): Waits"],
    ),
    case(
        "a name of another epoch is nobody's",
        r#"ANY 1 ("b.e2")"#,
        &[Senders(0), Commit(1, 0), Told(1)],
        &[r#"Senders(0): [("b.e1", 0, true), ("c.e1", 0, true)]"#, "Told(1): Waits"],
    ),
    case(
        "a name that nobody has does no harm where others are enough",
        r#"ANY 2 ("b.e1","c.e1","nobody.can.have")"#,
        &[Senders(0), Commit(1, 0), Told(1)],
        &["Told(1): Done"],
    ),
    case(
        "ANY 3 waits where two of the three stream",
        r#"ANY 3 ("b.e1","c.e1","nobody.can.have")"#,
        &[Commit(1, 0), Told(1), Holds(1, 1), Holds(1, 2)],
        &["Told(1): Waits", "Holds(1, 2): Some(true)"],
    ),
    case(
        "standbys stream again from a primary that has started again",
        ANY_1,
        &[Crash(0), StartAgain(0), Senders(0), Commit(1, 0), Told(1)],
        &[r#"Senders(0): [("b.e1", 1, true), ("c.e1", 1, true)]"#, "Told(1): Done"],
    ),
    case(
        "what waited when its primary crashed is sent once that has started again",
        ONLY_B,
        &[
            Stop(0, Walsenders),
            Commit(1, 0),
            Told(1),
            Crash(0),
            Told(1),
            StartAgain(0),
            Holds(1, 1),
            Sees(1, 1),
        ],
        &["Told(1): Waits", "Told(1): Lost", "Sees(1, 1): Some(true)"],
    ),
];
