//! The state vector of the model: small numbers only, so that millions of states can be told apart by their hashes.
//!
//! Documents, reports and Cfgs are the product's own values, named here by the numbers under which `Documents` keeps
//! them.

/// How many members there are.
pub const MEMBERS: usize = 3;
/// How many branches of WAL there can be: one for each epoch, and one for a start that goes its own way.
pub const BRANCHES: usize = 4;
/// How many commits of clients there can be.
pub const COMMITS: usize = 2;

/// A position in one branch of WAL. At a switch point it belongs to the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    pub branch: u8,
    pub lsn: u8,
}

/// WAL that one primary wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Branch {
    /// Zero: there is no such branch yet.
    pub timeline: u8,
    pub epoch: u8,
    pub parent: u8,
    /// Where it leaves its parent.
    pub fork: u8,
}

/// A client's commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Commit {
    pub at: At,
    /// The backend waits still.
    pub waits: bool,
    pub acknowledged: bool,
    /// A client can have read it: acknowledged, or recovered by a primary that opened since.
    pub read: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Server {
    Down,
    Standby,
    Primary,
}

/// What one process knows of `synchronous_standby_names`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The name that nobody can have.
    Nobody,
    /// An empty list.
    Empty,
    /// `ANY k` of the voters of this Cfg.
    Any(u8),
    /// `FIRST k`, with the impossible name in front.
    First(u8),
}

/// The name under which a standby streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    pub epoch: u8,
    /// The round of a voter's name; `None` under a name that no list holds.
    pub round: Option<u8>,
}

/// A walsender, as it stands in its primary's memory; it may outlive its standby's receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sender {
    pub name: Name,
    /// What it has loaded itself.
    pub rule: Rule,
    /// The last position that it was told.
    pub flush: u8,
}

/// A seal, as the keeper remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sealed {
    pub sealing: u8,
    pub at: At,
    pub clean: bool,
}

/// How far a return to the cluster has come, as the member files say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Marker {
    None,
    /// Half of the data may be another member's.
    Rewinding,
    Copying,
    /// Whole once it has flushed all before this.
    CatchingUp(u8),
}

/// What is known of the names in force: `keeper::facts::Names`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Known {
    Unproven,
    Impossible,
    Proven(u8),
}

/// The proof that a keeper reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Proven {
    pub cfg: u8,
    pub lsn: u8,
    pub voters: u8,
}

/// What the keeper is in the middle of. Each step can be the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    None,
    /// The receiver is cut; the promise and the position come next.
    Cut {
        sealing: u8,
        early: Option<At>,
    },
    /// The files and the names are written; `pg_promote` comes next.
    Promote,
    /// Out of recovery; the right comes next.
    Promoted,
    /// The right is taken; what was recovered has to be held by voters, or need not.
    Opening {
        promoted: bool,
    },
    /// The proving list is written.
    First {
        cfg: u8,
    },
    /// The names are in force; the voters have to hold all before `lsn`.
    Wait {
        cfg: u8,
        lsn: u8,
    },
    /// The mark is set; the data comes next.
    Fetch,
    /// A copy is made beside the data, which it then replaces.
    Copy,
}

/// One member: what lies on its disk, its PostgreSQL, and its keeper's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    pub promise: u8,
    pub epoch: u8,
    pub leads: bool,
    pub complete: bool,
    pub restarted: u8,
    pub marker: Marker,
    pub at: At,
    pub upstream: Option<Name>,
    pub names: Rule,

    pub server: Server,
    /// Clients may come in.
    pub open: bool,
    /// The checkpointer has said that backends wait at all.
    pub waits: bool,
    pub receiver: Option<Name>,
    pub senders: [Option<Sender>; MEMBERS],

    /// The agreed state that the keeper read last.
    pub view: u16,
    /// The state with which the present step was begun.
    pub began: u16,
    pub step: Step,
    /// The keeper saw PostgreSQL end.
    pub exited: bool,
    pub deaths: u8,
    pub seal: Option<Sealed>,
    pub scanned: bool,
    /// The timeline of the last receiver that streamed.
    pub streamed: Option<u8>,
    pub started_sealed: bool,
    /// The restart order that the present opening follows.
    pub opened: Option<u8>,
    pub confirmed: Option<Proven>,
    pub known: Known,
    pub right: bool,
}

/// The right to run as primary, in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Right {
    pub member: u8,
    pub epoch: u8,
}

/// A write that a leader decided on, and that is still on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pending {
    pub decided_on: u16,
    pub next: u16,
}

/// A promise that one step broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// The product's own check refuses what its decider wants.
    Refused,
    Guard,
    Destroyed,
    SelfMade,
}

/// How much more of each kind may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Left {
    pub commits: u8,
    pub crashes: u8,
    pub lapses: u8,
    pub late: u8,
    pub silences: u8,
}

/// All of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub agreed: u16,
    pub right: Option<Right>,
    /// Reports whose lease lives.
    pub reports: [Option<u16>; MEMBERS],
    pub pending: Option<Pending>,
    pub members: [Member; MEMBERS],
    pub branches: [Branch; BRANCHES],
    pub commits: [Option<Commit>; COMMITS],
    pub left: Left,
    /// All standbys report that they hear nothing of the primary, until something is agreed. What they report has no
    /// weight for safety, so that it need not be true.
    pub silent: bool,
    /// The highest epoch for which each member was heard to have sealed (for the properties).
    pub given: [u8; MEMBERS],
    pub broken: Option<Broken>,
}

impl State {
    /// A position at a switch point belongs to the parent: nothing of the child lies before it.
    pub fn normal(&self, mut at: At) -> At {
        loop {
            let branch = &self.branches[at.branch as usize];
            if branch.parent == at.branch || at.lsn > branch.fork {
                return at;
            }
            at.branch = branch.parent;
        }
    }

    /// Returns how far the path to `at` goes on `branch`.
    pub fn limit(&self, mut at: At, branch: u8) -> Option<u8> {
        loop {
            if at.branch == branch {
                return Some(at.lsn);
            }
            let own = &self.branches[at.branch as usize];
            if own.parent == at.branch {
                return None;
            }
            at = At { branch: own.parent, lsn: at.lsn.min(own.fork) };
        }
    }

    /// Returns whether whoever holds all up to `at` holds all up to `other`.
    pub fn covers(&self, at: At, other: At) -> bool {
        let other = self.normal(other);
        self.limit(at, other.branch).is_some_and(|limit| limit >= other.lsn)
    }

    /// Returns whether `member` holds all up to `at`, and its data is whole.
    pub fn holds(&self, member: usize, at: At) -> bool {
        let member = &self.members[member];
        let whole = !matches!(member.marker, Marker::Rewinding | Marker::Copying);
        whole && self.covers(member.at, at)
    }

    pub fn timeline(&self, at: At) -> u8 {
        self.branches[at.branch as usize].timeline
    }

    /// Begins a branch at `at` and returns its number.
    pub fn fork(&mut self, timeline: u8, epoch: u8, at: At) -> Option<u8> {
        let at = self.normal(at);
        let free = self.branches.iter().position(|b| b.timeline == 0)?;
        self.branches[free] = Branch { timeline, epoch, parent: at.branch, fork: at.lsn };
        Some(free as u8)
    }

    /// Notes the first promise that is broken.
    pub fn breaks(&mut self, what: Broken) {
        self.broken.get_or_insert(what);
    }
}
