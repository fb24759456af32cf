//! The product's documents behind the numbers of the state vector: each distinct value is kept once.
//!
//! What tells apart states that behave alike is taken out before a value is kept: the state's number (a write is guarded by
//! the value it was decided on) and all times.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use proto::state::{Admitted, EpochRecord, Floor};
use proto::{
    Cfg, CfgId, ClusterSpec, ClusterState, Epoch, Incarnation, Lsn, MemberName, MemberReport,
    Phase, StateNumber, SystemIdentifier, Timeline,
};
use serde_json::to_string;

use super::state::MEMBERS;

/// The id of the one etcd cluster.
pub const STORE: &str = "1";
pub const SYSTEM: SystemIdentifier = SystemIdentifier(7_574_891_230_112_233_445);
/// The position up to which all members hold the WAL at the beginning.
pub const BEGIN: u8 = 1;

/// More than any bound that can be exhausted here makes: the numbers have 16 bits.
const SLOTS: usize = 1 << 16;

/// Values that are kept once each, under small numbers.
pub struct Kept<T> {
    slots: Box<[OnceLock<T>]>,
    numbers: Mutex<HashMap<String, u16>>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        let slots = (0..SLOTS).map(|_| OnceLock::new()).collect();
        Self { slots, numbers: Mutex::default() }
    }
}

impl<T> Kept<T> {
    pub fn get(&self, number: u16) -> &T {
        self.slots[number as usize].get().expect("a number is given out for what is kept")
    }

    /// Returns the number of the value whose text is `text`, made by `make` where it is new.
    pub fn number(&self, text: String, make: impl FnOnce() -> T) -> u16 {
        let mut numbers = lock(&self.numbers);
        let next = u16::try_from(numbers.len()).expect("fewer documents than numbers");
        *numbers.entry(text).or_insert_with(|| {
            let _ = self.slots[next as usize].set(make());
            next
        })
    }

    /// Returns all values that are kept now.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().map_while(OnceLock::get)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A check that panicked has failed already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mixes small numbers: questions are made of many, and nobody chooses them to collide.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
}

type Shard<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// Answers that are worked out once.
pub struct Memory<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
}

impl<K: Hash + Eq, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self { shards: (0..64).map(|_| Mutex::default()).collect() }
    }
}

impl<K: Hash + Eq + Copy, V: Clone> Memory<K, V> {
    pub fn answer(&self, question: K, work_out: impl FnOnce() -> V) -> V {
        let mut hasher = Mixer::default();
        question.hash(&mut hasher);
        let shard = &self.shards[(hasher.finish() >> 40) as usize % self.shards.len()];
        if let Some(known) = lock(shard).get(&question) {
            return known.clone();
        }
        let answer = work_out();
        lock(shard).entry(question).or_insert(answer).clone()
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

/// What of a Cfg the properties need, in small numbers.
#[derive(Debug, Clone)]
pub struct SmallCfg {
    pub number: u8,
    pub id: u64,
    pub epoch: u8,
    pub leader: usize,
    /// One bit for each member.
    pub voters: u8,
    pub k: usize,
}

/// An agreed state, and what of it is asked for all the time.
pub struct Agreed {
    pub state: Arc<ClusterState>,
    pub epoch: u8,
    pub primary: usize,
    pub sealing: Option<u8>,
    pub cfgs: Vec<SmallCfg>,
    /// The primary of each epoch.
    pub primaries: BTreeMap<u8, usize>,
}

/// All documents of one check.
pub struct Documents {
    pub spec: ClusterSpec,
    pub names: [MemberName; MEMBERS],
    pub agreed: Kept<Agreed>,
    pub reports: Kept<Arc<MemberReport>>,
    pub cfgs: Kept<Cfg>,
}

impl Default for Documents {
    fn default() -> Self {
        Self {
            spec: spec(),
            names: ["a", "b", "c"].map(|name| name.parse().expect("a letter is a name")),
            agreed: Kept::default(),
            reports: Kept::default(),
            cfgs: Kept::default(),
        }
    }
}

/// No duration is longer than the one step of the model's clock, so that each timer has run out or has not begun, as the
/// checker chooses.
fn spec() -> ClusterSpec {
    let short = Duration::from_millis(1);
    ClusterSpec {
        isolation_grace: short,
        seal_patience: short,
        promote_patience: short,
        settle: short,
        unresponsive_after: short,
        ..ClusterSpec::default()
    }
}

impl Documents {
    pub fn index_of(&self, name: &MemberName) -> usize {
        self.names.iter().position(|n| n == name).expect("a member of the model")
    }

    /// Returns the number of an agreed state, without its own number.
    pub fn agree(&self, mut state: ClusterState) -> u16 {
        state.number = StateNumber(1);
        let text = to_string(&state).expect("a state is JSON");
        let cfgs: Vec<SmallCfg> = state.cfgs.iter().map(|cfg| self.small(cfg)).collect();
        self.agreed.number(text, || self.agreed(state, cfgs))
    }

    fn agreed(&self, state: ClusterState, cfgs: Vec<SmallCfg>) -> Agreed {
        let primary = state.primary.as_ref().expect("the model begins after the founding");
        let primaries =
            state.epochs.iter().map(|r| (r.epoch.0 as u8, self.index_of(&r.primary))).collect();
        Agreed {
            epoch: state.epoch.0 as u8,
            primary: self.index_of(primary),
            sealing: state.sealing.map(|e| e.0 as u8),
            cfgs,
            primaries,
            state: Arc::new(state),
        }
    }

    fn small(&self, cfg: &Cfg) -> SmallCfg {
        SmallCfg {
            number: self.cfg(cfg),
            id: cfg.id.0,
            epoch: cfg.epoch.0 as u8,
            leader: self.index_of(&cfg.leader),
            voters: self.bits(&cfg.voters),
            k: cfg.k,
        }
    }

    pub fn cfg(&self, cfg: &Cfg) -> u8 {
        let text = to_string(cfg).expect("a Cfg is JSON");
        u8::try_from(self.cfgs.number(text, || cfg.clone())).expect("fewer than 256 Cfgs")
    }

    pub fn report(&self, report: MemberReport) -> u16 {
        let text = to_string(&report).expect("a report is JSON");
        self.reports.number(text, || Arc::new(report))
    }

    /// Returns the members of a set as bits.
    pub fn bits(&self, members: &BTreeSet<MemberName>) -> u8 {
        members.iter().map(|m| 1 << self.index_of(m)).sum()
    }

    pub fn members(&self, bits: u8) -> BTreeSet<MemberName> {
        let named = self.names.iter().enumerate();
        named.filter(|(i, _)| bits >> i & 1 == 1).map(|(_, name)| name.clone()).collect()
    }

    /// Returns the incarnation of a member: its files are never lost here.
    pub fn incarnation(&self, member: usize) -> Incarnation {
        Incarnation(self.names[member].to_string())
    }

    /// The state with which each run begins: a is the primary, and any one of b and c acknowledges.
    pub fn first(&self) -> ClusterState {
        let [a, b, c] = self.names.clone();
        let cfg = Cfg {
            id: CfgId(2),
            epoch: Epoch(1),
            leader: a.clone(),
            voters: [b, c].into(),
            k: 1,
            round: 0,
        };
        let floor = Some(Floor { epoch: Epoch(1), lsn: Lsn(BEGIN.into()) });
        let admitted = |member| Admitted { incarnation: self.incarnation(member), floor };
        let members = self.names.iter().cloned().zip((0..MEMBERS).map(admitted)).collect();
        let epoch = EpochRecord {
            epoch: Epoch(1),
            timeline: Timeline(1),
            primary: a.clone(),
            parent: None,
            start_lsn: Some(Lsn(0)),
            with_loss: false,
        };
        ClusterState {
            number: StateNumber(1),
            etcd_cluster_id: STORE.to_owned(),
            system_identifier: Some(SYSTEM),
            epoch: Epoch(1),
            phase: Phase::Open,
            primary: Some(a),
            sealing: None,
            last_cfg: cfg.id,
            cfgs: vec![cfg],
            timeline: Timeline(1),
            highest_timeline: Timeline(1),
            chosen: None,
            open_at_once: false,
            epochs: vec![epoch],
            members,
            restart: None,
            answered: None,
            adopted: None,
            requests: Vec::new(),
            orders: Default::default(),
        }
    }
}
