//! One run: found a cluster, torment it, heal it, and demand that it comes back.

use proto::document::encode;
use proto::{ClusterName, ClusterSpec, Phase};
use store::keys::Keys;
use store::{Operation, Txn};

use super::etcd::Etcd;
use super::executor::{Micros, Node, Sim};
use super::faults::Fault;
use super::net::Net;
use super::oracle::{Oracle, Violation};
use super::postgres::Phase as Server;
use super::profiles::Profile;
use super::rng::{Rng, Stream};
use super::trace::Trace;
use super::wal::Wal;
use super::wishes;
use super::world::{Counts, Member, World, member_name};

/// From when things go wrong, and by when after it everything has to be well again.
const FAULTS_FROM: Micros = 15_000_000;
const WELL_WITHIN: Micros = 240_000_000;

/// What is run.
#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    pub profile: Profile,
    pub mutant: Option<String>,
    /// The faults, where they are not those of the seed.
    pub faults: Option<Vec<Fault>>,
    /// What the operators want of the cluster at first.
    pub spec: ClusterSpec,
    pub keep_trace: bool,
}

/// What came of it.
pub struct Outcome {
    pub violations: Vec<Violation>,
    pub refusals: Vec<String>,
    pub hash: u64,
    pub events: u64,
    pub simulated: Micros,
    pub counts: Counts,
    pub lines: Vec<String>,
    pub healed_in: Option<Micros>,
}

impl Plan {
    /// Makes the run of a seed, at one of the paces that its profile has.
    pub fn new(seed: u64, profile: Profile) -> Self {
        let paces = profile.paces;
        let pace = (!paces.is_empty()).then(|| Rng::of(seed, Stream::Pace).pick(paces));
        Self::at_pace(seed, profile, pace)
    }

    pub fn at_pace(seed: u64, profile: Profile, pace: Option<u64>) -> Self {
        let mut profile = profile.at_pace(pace);
        let mut rng = Rng::of(seed, Stream::Wishes);
        profile.members = profile.wishes.members(profile.members, &mut rng);
        let spec = profile.wishes.spec(profile.members, &mut rng);
        Self { seed, profile, mutant: None, faults: None, spec, keep_trace: false }
    }

    /// Returns the faults of this run.
    pub fn faults(&self) -> Vec<Fault> {
        self.faults.clone().unwrap_or_else(|| self.profile.faults(self.seed, FAULTS_FROM))
    }

    /// Runs it.
    pub fn run(&self) -> Outcome {
        let sim = self.founded();
        let broken = |w: &mut World| !w.oracle.violations.is_empty();
        let healed = FAULTS_FROM + self.profile.torment + 1;
        sim.schedule(&self.faults(), healed - 1);
        sim.run_until(healed, broken);
        let healed_in = well(&sim, healed);
        sim.oracle_ends();
        self.outcome(&sim, healed_in)
    }

    /// Returns a cluster at the moment from which things go wrong.
    pub(super) fn founded(&self) -> Sim {
        let sim = Sim::new(self.seed, self.world());
        begin(&sim);
        sim.run_until(FAULTS_FROM, |w| !w.oracle.violations.is_empty());
        sim
    }

    pub(super) fn world(&self) -> World {
        let mut rng = Rng::of(self.seed, Stream::Setup);
        let cluster: ClusterName = "sim".parse().expect("a valid name");
        let member = |number| Member {
            name: member_name(number),
            up: true,
            disk: Default::default(),
            copies: Vec::new(),
            server: None,
            fencer: None,
            keeper: None,
            keeper_proc: None,
        };
        let nodes = (0..self.profile.members).map(Node::Member).chain((0..3).map(Node::Sentinel));
        let ppm = self.profile.clocks_ppm;
        let clock_rates =
            nodes.map(|node| (node, rng.between(0, 2 * ppm) as i64 - ppm as i64)).collect();
        World {
            spec: self.spec.clone(),
            mutant: self.mutant.clone(),
            keys: Keys::of(&cluster),
            net: Net::default(),
            etcd: Etcd::default(),
            wal: Wal::default(),
            members: (0..self.profile.members).map(member).collect(),
            sentinels: vec![None; 3],
            router: None,
            routes: None,
            clock_rates,
            oracle: Oracle::of(&self.profile, &self.spec),
            read: Default::default(),
            trace: Trace::of(self.keep_trace),
            counts: Counts::default(),
            moves: Default::default(),
            stir: Default::default(),
            profile: self.profile.clone(),
        }
    }

    fn outcome(&self, sim: &Sim, healed_in: Option<Micros>) -> Outcome {
        let (events, simulated, hash) = (sim.events(), sim.now(), sim.hash());
        let outcome = sim.with(|w| Outcome {
            violations: std::mem::take(&mut w.oracle.violations),
            refusals: w.oracle.refusals.iter().cloned().collect(),
            hash,
            events,
            simulated,
            counts: w.counts.clone(),
            lines: std::mem::take(&mut w.trace.lines),
            healed_in,
        });
        sim.tear_down();
        outcome
    }
}

fn begin(sim: &Sim) {
    let key = sim.with(|w| w.keys.spec());
    let value = encode(&sim.with(|w| w.spec.clone())).into_bytes();
    sim.with_etcd(|core| {
        let put = Operation::Put { key, value, lease: None };
        let _ = core.commit(Txn { when: vec![], then: vec![put] });
    });
    sim.start_etcd();
    for number in 0..3 {
        sim.sentinel_start(number);
    }
    for member in 0..sim.with(|w| w.members.len()) {
        sim.keeper_start(member);
    }
    sim.router_start();
    sim.clients_start();
    sim.backups_start();
    let watching = sim.clone();
    sim.on_the_wire(async move {
        loop {
            watching.sleep(100_000).await;
            watching.oracle_tick();
        }
    });
}

/// I13: runs until everything is in its place again; returns how long that took.
fn well(sim: &Sim, healed: Micros) -> Option<Micros> {
    let broken = |w: &mut World| !w.oracle.violations.is_empty();
    while sim.now() < healed + WELL_WITHIN {
        if sim.with(broken) {
            return None;
        }
        let missing = sim.with(|w| w.missing(healed));
        if missing.is_none() {
            return Some(sim.now() - healed);
        }
        sim.run_until(sim.now() + 250_000, broken);
    }
    let missing = sim.with(|w| w.missing(healed)).unwrap_or_default();
    let places = sim.with(|w| w.places());
    let seconds = WELL_WITHIN / 1_000_000;
    sim.violate("I13", format!("{seconds} s after the last fault: {missing}; {places}"));
    None
}

impl World {
    /// Returns where each member stands, for whoever asks why one does not come back.
    fn places(&self) -> String {
        let place = |m: &Member| {
            let complete = m.disk.files.as_ref().is_some_and(|f| f.complete);
            let held = m.disk.data.as_ref().map(|d| {
                let end = d.end(&self.wal);
                format!("holds {} of timeline {}", end.lsn, self.wal.branch(end.branch).tli)
            });
            let server = m.server.as_ref().map(|s| {
                let receiver = s.receiver.as_ref().map(|r| (r.streaming, r.timeline.0));
                format!("{:?} at {}, receiver {receiver:?}", s.phase, s.replay)
            });
            let text = |text: Option<String>| text.unwrap_or_else(|| "nothing".into());
            format!("{}: complete {complete}, {}, {}", m.name, text(held), text(server))
        };
        self.members.iter().map(place).collect::<Vec<_>>().join("; ")
    }

    /// Returns what is not as it should be; `None` when all is well.
    fn missing(&self, healed: Micros) -> Option<String> {
        let Some(state) = self.oracle.state() else { return Some("no state".into()) };
        if state.phase != Phase::Open || state.sealing.is_some() {
            return Some(format!("phase {:?}, sealing {:?}", state.phase, state.sealing));
        }
        if self.oracle.last_commit <= healed {
            return Some("no commit".into());
        }
        if let Some(lacks) = wishes::lacks(&self.spec, self.members.len(), &state.cfgs) {
            return Some(lacks);
        }
        self.members.iter().find_map(|m| {
            let leads = state.primary.as_ref() == Some(&m.name);
            let complete = m.disk.files.as_ref().is_some_and(|f| f.complete);
            let runs = m.server.as_ref().is_some_and(|s| match s.phase {
                Server::Primary => leads && s.lets_clients_in(),
                Server::Standby => !leads && s.receiver.as_ref().is_some_and(|r| r.streaming),
                Server::Starting => false,
            });
            (!complete || !runs)
                .then(|| format!("{}: complete {complete}, in its place {runs}", m.name))
        })
    }
}
