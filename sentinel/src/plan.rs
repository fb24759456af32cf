//! What a decision says: the next state or what is waited for, always with its reason.
//!
//! The one rule: a plan is complete. The shell adds nothing to it, and the cli computes nothing
//! anew.

use std::fmt;

use proto::explanation::Explanation;
use proto::history::HistoryRecord;
use proto::{Cfg, ClusterState, Epoch, MemberName, Moment};

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub verdict: Verdict,
    pub explanation: Explanation,
    /// When to decide again although nothing was written meanwhile.
    pub wake_at: Option<Moment>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Commit `next` together with `history`.
    Change {
        next: Box<ClusterState>,
        history: Vec<HistoryWrite>,
        why: String,
    },
    /// Commit these records alone: the state stays as it is.
    Record {
        history: Vec<HistoryWrite>,
        why: String,
    },
    Wait(WaitingOn),
}

/// One history record with what its key is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryWrite {
    pub epoch: Epoch,
    pub restart: u64,
    pub record: HistoryRecord,
}

/// What the next change waits for. `Display` gives one sentence without times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingOn {
    /// All is as the spec wants it.
    Nothing { primary: MemberName },
    /// The state was made in another etcd cluster: a restored store.
    OtherStore { made_in: String, found: String },
    /// A member has acted on a later state than this one.
    SetBack { member: MemberName, why: String },
    /// No member with an empty data directory reports.
    EmptyMember,
    /// The founder that the spec names does not report an empty data directory.
    NamedFounder { founder: MemberName },
    /// The founder runs initdb.
    Initdb { founder: MemberName },
    /// The founder's report is gone, and no other empty member may take its place or not yet.
    FounderReport { founder: MemberName },
    /// The primary's keeper lives and has yet to say that PostgreSQL serves.
    PrimaryReport { primary: MemberName },
    /// The only voter calls the primary silent: the leader asks the primary's keeper itself.
    OwnProbe { primary: MemberName },
    /// Commits wait: no voter receives from the primary though its keeper reports. They have time to come back.
    Stream { primary: MemberName },
    /// The right to serve lapsed, but its keeper lives and these members hear the primary.
    PrimaryKey { primary: MemberName, heard_by: Vec<MemberName> },
    /// The right to serve lapsed, and not all who count call the primary silent.
    IsolationGrace { primary: MemberName, heard_by: Vec<MemberName> },
    /// The primary is lost, and the live complete members seal not every Cfg, or none of them may
    /// be promoted.
    SealSet { primary: MemberName, unmet: Vec<Cfg> },
    /// Members that may be promoted are missing among those that would form a base.
    Candidate { primary: MemberName },
    /// No base yet: these have not sealed.
    Seals { sealing: Epoch, missing: Vec<MemberName> },
    /// A base exists; these live members may still seal.
    SealPatience { sealing: Epoch, missing: Vec<MemberName> },
    /// The most WAL is held only by members that may not be promoted.
    PromotableHolder { sealing: Epoch, holders: Vec<MemberName> },
    /// The chosen member is on its way out of recovery.
    Promotion { primary: MemberName, epoch: Epoch },
    /// It died on the way, and without its member there is no base: the next try waits.
    NextPromotion { primary: MemberName },
    /// This many promotions in a row came to nothing: the next one waits, longer each time.
    PromotionPause { failed: usize },
    /// The primary's PostgreSQL is being started again.
    Restart { primary: MemberName, number: u64 },
    /// It died again; the next order waits, so that a crash loop does not spin.
    NextRestart { primary: MemberName, number: u64 },
    /// PostgreSQL runs as primary and waits until k voters hold all that it holds.
    VotersHold { primary: MemberName },
    /// The primary writes a checkpoint, then it hands over.
    Checkpoint { primary: MemberName, target: MemberName },
    /// These proxies make their clients wait, then the primary stops.
    Held { target: MemberName, proxies: Vec<String> },
    /// The primary stops, to hand over.
    HandOver { primary: MemberName, target: MemberName },
    /// Fewer complete members stream than must acknowledge a commit.
    Voters { present: Vec<MemberName>, wanted: usize },
    /// Fewer voters than the spec asks for, by `durability: available` or because the last ones were removed.
    Reduced { primary: MemberName, k: usize, wanted: usize },
    /// The primary is lost, and the cluster is paused.
    Resume { primary: MemberName, by: String, reason: String },
    /// Loss was accepted, but not of all that is missing.
    MoreLoss { sealing: Epoch, unmet: Vec<Cfg> },
    /// A change of the voters waits for others to settle.
    Settle { voters: Vec<MemberName> },
    /// The newest Cfg is recorded and its proof is awaited.
    Confirmation { cfg: Cfg },
    /// The primary serves; these members are not yet in their places.
    Redundancy { missing: Vec<MemberName> },
}

impl fmt::Display for WaitingOn {
    #[expect(clippy::too_many_lines, reason = "one sentence for each case, nothing to take apart")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing { primary } => {
                write!(f, "{primary} serves and every member is in its place")
            }
            Self::OtherStore { made_in, found } => write!(
                f,
                "the state was made in etcd cluster {made_in} and this is {found}: nothing is decided on a restored store \
                 until `pgdeputy adopt-store`"
            ),
            Self::SetBack { member, why } => write!(
                f,
                "{member} is frozen ({why}): nothing is decided on a restored store until `pgdeputy adopt-store`"
            ),
            Self::EmptyMember => {
                f.write_str("waits for a member with an empty data directory to found the cluster")
            }
            Self::NamedFounder { founder } => {
                write!(
                    f,
                    "waits for founder {founder}, named by the spec, to report an empty data directory"
                )
            }
            Self::Initdb { founder } => write!(f, "waits for {founder} to run initdb"),
            Self::FounderReport { founder } => {
                write!(
                    f,
                    "waits for the report of founder {founder}, or for another empty member if it stays away"
                )
            }
            Self::PrimaryReport { primary } => {
                write!(f, "waits for the keeper of {primary} to say that its PostgreSQL serves")
            }
            Self::OwnProbe { primary } => write!(
                f,
                "the only voter misses {primary}: waits for an answer of its keeper to the leader"
            ),
            Self::Stream { primary } => write!(
                f,
                "commits wait: no voter receives from {primary} though they are well: waits isolation_grace"
            ),
            Self::PrimaryKey { primary, heard_by } => {
                write!(
                    f,
                    "waits for the keeper of {primary} to take its right back: {} still hear it",
                    list(heard_by)
                )
            }
            Self::IsolationGrace { primary, heard_by } if heard_by.is_empty() => write!(
                f,
                "the right of {primary} lapsed and too few members can say that it is silent: waits isolation_grace"
            ),
            Self::IsolationGrace { primary, heard_by } => {
                write!(
                    f,
                    "the right of {primary} lapsed but {} still hear it: waits isolation_grace",
                    list(heard_by)
                )
            }
            Self::SealSet { primary, unmet } => write!(
                f,
                "{primary} is lost, but the live complete members could lack commits of {}: waits for more of its members",
                list(unmet)
            ),
            Self::Candidate { primary } => {
                write!(
                    f,
                    "{primary} is lost, and no live complete member may be promoted: waits for one"
                )
            }
            Self::Seals { sealing, missing } => {
                write!(f, "sealing epoch {sealing}: no base yet, waits for {}", list(missing))
            }
            Self::SealPatience { sealing, missing } => {
                write!(
                    f,
                    "sealing epoch {sealing}: a base exists, waits seal_patience for {}",
                    list(missing)
                )
            }
            Self::PromotableHolder { sealing, holders } => write!(
                f,
                "sealing epoch {sealing}: only {} hold the most WAL and may not be promoted: waits for another holder",
                list(holders)
            ),
            Self::Promotion { primary, epoch } => {
                write!(f, "waits for {primary} to open as primary of epoch {epoch}")
            }
            Self::NextPromotion { primary } => write!(
                f,
                "the PostgreSQL of {primary} died on its way to open and the others form no base: \
                 waits promote_patience before it may be tried again"
            ),
            Self::PromotionPause { failed } => write!(
                f,
                "the last {failed} promotions came to nothing, see the logs of the members: waits before the next, \
                 longer each time"
            ),
            Self::Restart { primary, number } => {
                write!(f, "waits for the PostgreSQL of {primary} to open after restart {number}")
            }
            Self::NextRestart { primary, number } => write!(
                f,
                "the PostgreSQL of {primary} died again after restart {number}: waits promote_patience before the next"
            ),
            Self::VotersHold { primary } => {
                write!(f, "waits until enough voters hold all that {primary} holds, then it opens")
            }
            Self::Checkpoint { primary, target } => write!(
                f,
                "switchover to {target}: waits for {primary} to write a checkpoint, it serves meanwhile"
            ),
            Self::Held { target, proxies } => write!(
                f,
                "switchover to {target}: waits for {} to hold clients, until the transactions that run have ended",
                list(proxies)
            ),
            Self::HandOver { primary, target } => {
                write!(f, "switchover to {target}: waits for {primary} to stop and to seal")
            }
            Self::Voters { present, wanted } => write!(
                f,
                "{} of {wanted} members that must acknowledge commits stream ({}): waits for more",
                present.len(),
                list(present)
            ),
            Self::Reduced { primary, k: 0, wanted } => write!(
                f,
                "REDUCED DURABILITY: {primary} has no voter. Nobody can be promoted if it is lost, until {wanted} \
                 standbys have joined"
            ),
            Self::Reduced { primary, k, wanted } => write!(
                f,
                "REDUCED DURABILITY: {k} of {wanted} standbys acknowledge the commits of {primary}: waits for more"
            ),
            Self::Resume { primary, by, reason } => write!(
                f,
                "{primary} is lost, and NOTHING IS DONE: the cluster is paused by {by} ({reason}). \
                 pgdeputy resume ends that"
            ),
            Self::MoreLoss { sealing, unmet } => write!(
                f,
                "sealing epoch {sealing}: more members are missing than were given up ({}): start them, or look at \
                 pgdeputy failover --accept-data-loss again",
                list(unmet)
            ),
            Self::Settle { voters } => {
                write!(f, "waits for members to settle before the voters become {}", list(voters))
            }
            Self::Confirmation { cfg } => {
                write!(f, "waits for the proof that Cfg {cfg} is in force")
            }
            Self::Redundancy { missing } => {
                write!(f, "waits for {} to stream and vote", list(missing))
            }
        }
    }
}

/// Returns the items with commas, `nobody` where there are none.
pub(crate) fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "nobody".into();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
