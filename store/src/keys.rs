//! Every key in one place, under `/pgdeputy/<cluster>/`.

use proto::drill::{DrillTarget, Undertaking};
use proto::request::RequestKind;
use proto::{ClusterName, Epoch, MemberName, RequestId, WallTime};

/// The keys of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// The prefix of all clusters.
pub const ROOT: &str = "/pgdeputy/";

impl Keys {
    /// Returns the keys of `cluster`.
    pub fn of(cluster: &ClusterName) -> Self {
        Self { prefix: format!("{ROOT}{cluster}/") }
    }

    /// Returns the prefix of all keys of the cluster, with its last slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// ClusterSpec, written by the cli.
    pub fn spec(&self) -> String {
        self.key("spec")
    }

    /// ClusterState, written by the leader sentinel.
    pub fn state(&self) -> String {
        self.key("state")
    }

    /// The right to run as primary, under the primary's keeper's lease.
    pub fn primary(&self) -> String {
        self.key("primary")
    }

    /// Where clients find the members, written by the leader.
    pub fn topology(&self) -> String {
        self.key("topology")
    }

    /// The sentinels' leadership.
    pub fn leader(&self) -> String {
        self.key("leader")
    }

    /// The leader's last reason.
    pub fn explanation(&self) -> String {
        self.key("explanation")
    }

    /// The keepers' passwords, unless files give them.
    pub fn secrets(&self) -> String {
        self.key("secrets")
    }

    /// One member's report, under its keeper's lease.
    pub fn member(&self, member: &MemberName) -> String {
        format!("{}members/{member}", self.prefix)
    }

    /// One sentinel's liveness.
    pub fn sentinel(&self, id: &str) -> String {
        format!("{}sentinels/{id}", self.prefix)
    }

    /// One proxy-config's last epoch.
    pub fn proxy(&self, id: &str) -> String {
        format!("{}proxies/{id}", self.prefix)
    }

    /// The request of one kind that waits for its answer, under a lease of its validity.
    pub fn request(&self, kind: RequestKind) -> String {
        format!("{}requests/{kind}", self.prefix)
    }

    /// A switchover that waits for its time.
    pub fn scheduled(&self, id: &RequestId) -> String {
        format!("{}scheduled/{id}", self.prefix)
    }

    /// The prefix of all of these.
    pub fn all_scheduled(&self) -> String {
        format!("{}scheduled/", self.prefix)
    }

    /// The drill that is under way, under its runner's lease.
    pub fn drill(&self) -> String {
        self.key("drill/now")
    }

    /// Who may break something now, under that one's lease: a drill until its verdict is written, or reboots.
    pub fn drill_lock(&self) -> String {
        self.key("drill/runner")
    }

    /// The prefix of both, and of all else that is about drills but their records.
    pub fn all_of_drills(&self) -> String {
        self.key("drill/")
    }

    /// The last word of a target on a drill.
    pub fn drilled(&self, target: &DrillTarget) -> String {
        format!("{}drill/answers/{target}", self.prefix)
    }

    /// What is kept of all drills of one kind.
    pub fn drill_coverage(&self, what: Undertaking) -> String {
        format!("{}{what}", self.all_drill_coverage())
    }

    /// The prefix of all of these.
    pub fn all_drill_coverage(&self) -> String {
        self.key("drill/coverage/")
    }

    /// The right to write the standing canary, under its runner's lease.
    pub fn canary_holder(&self) -> String {
        self.key("drill/canary")
    }

    /// What the standing canary has seen.
    pub fn canary(&self) -> String {
        self.key("canary")
    }

    /// The right to begin a turn that was taken, under its runner's lease.
    pub fn drill_turn(&self, id: &RequestId) -> String {
        format!("{}{id}", self.all_drill_turns())
    }

    /// The prefix of all of these.
    pub fn all_drill_turns(&self) -> String {
        self.key("drill/turns/")
    }

    /// A drill that comes again and again.
    pub fn drill_plan(&self, id: &RequestId) -> String {
        format!("{}{id}", self.all_drill_plans())
    }

    /// The prefix of all of these.
    pub fn all_drill_plans(&self) -> String {
        self.key("drill/plans/")
    }

    /// What came of one drill, in the order of their beginnings.
    pub fn drill_record(&self, begun: WallTime, id: &RequestId) -> String {
        format!("{}drills/{:015}-{id}", self.prefix, begun.0)
    }

    /// The prefix of all of these.
    pub fn all_drill_records(&self) -> String {
        format!("{}drills/", self.prefix)
    }

    /// The record of the change that led to `epoch`; `restart` above 0: of that restart in place.
    pub fn history(&self, epoch: Epoch, restart: u64) -> String {
        match restart {
            0 => format!("{}history/{epoch:010}", self.prefix, epoch = epoch.0),
            n => format!("{}history/{epoch:010}.{n:06}", self.prefix, epoch = epoch.0),
        }
    }

    /// Returns what follows the prefix, such as `members/a`.
    pub fn strip<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(self.prefix.as_str())
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}
