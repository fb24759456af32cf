//! What the whole-system tests share: a cluster of their own, and programs started wrongly on purpose.
//!
//! The program under test is the one that PGDEPUTY_BIN names, else the one beside the tests' own build. Make it
//! with `make build` or `cargo build`: `cargo test` alone does not build it anew.

pub mod attempt;
pub mod model;
pub mod mutants;
pub mod sim;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use chaos::demo::{Config, Report, Timeline, play};
use chaos::evidence::Watchers;
use chaos::fault::Fault;
use chaos::lab::{Lab, LabConfig, Service};
use chaos::verdict::{Verdict, judge};
use proto::{MemberName, Moment};
use store::clock;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::config::Host;

/// Clusters at a time in one test program: more of them would measure the machine and not pgdeputy.
const AT_ONCE: u32 = 2;
static CLUSTERS: Semaphore = Semaphore::const_new(AT_ONCE as usize);

/// Forming a cluster takes some seconds; this is for a machine under load.
const BOUND: Duration = Duration::from_secs(120);

/// A running cluster of a test's own. Everything of it ends with this value, also when the test fails.
pub struct Scene {
    pub lab: Lab,
    _turn: SemaphorePermit<'static>,
}

/// Starts a cluster, changed from the usual three members as `change` says.
pub async fn scene(change: impl FnOnce(&mut LabConfig)) -> Scene {
    start(turn().await, change).await
}

/// The same beside which no other runs: for a test that uses up the machine.
pub async fn scene_alone(change: impl FnOnce(&mut LabConfig)) -> Scene {
    let turns = CLUSTERS.acquire_many(AT_ONCE).await.expect("nobody closes the semaphore");
    start(turns, change).await
}

async fn start(turn: SemaphorePermit<'static>, change: impl FnOnce(&mut LabConfig)) -> Scene {
    let mut config = LabConfig::new(pgdeputy());
    config.narrate = std::sync::Arc::new(|line| eprintln!("{line}"));
    change(&mut config);
    let lab = Lab::start(config).await.expect("start a cluster");
    Scene { lab, _turn: turn }
}

/// Waits for the turn of a test that starts its cluster by itself.
pub async fn turn() -> SemaphorePermit<'static> {
    CLUSTERS.acquire().await.expect("nobody closes the semaphore")
}

impl Scene {
    /// Breaks the cluster under load, waits until it is redundant, and demands that the promise was kept.
    pub async fn survives(&mut self, fault: Fault) -> Report {
        self.survives_as(Config { fault, ..Config::default() }).await
    }

    /// The same, with other times.
    pub async fn survives_as(&mut self, config: Config) -> Report {
        let played = play(&config, &mut self.lab, &Timeline::start(true)).await;
        let report = played.unwrap_or_else(|error| panic!("{error:#}"));
        eprintln!("{}", report.text());
        assert_eq!((report.lost, report.dual), (0, 0), "{:?}", report.violations);
        assert!(report.good, "{:?}", report.inconclusive);
        report
    }
}

/// Returns the number in this environment variable, or `usual` where it is not set.
///
/// # Panics
/// When it is set to something that is no such number.
pub fn number_of<T: FromStr>(variable: &str, usual: T) -> T {
    let Ok(text) = std::env::var(variable) else { return usual };
    text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}: use a number"))
}

/// Returns how long a long test takes: the minutes in this environment variable, or `full`.
pub fn minutes(variable: &str, full: f64) -> Duration {
    Duration::from_secs_f64(60.0 * number_of(variable, full))
}

/// Returns the program under test.
pub fn pgdeputy() -> PathBuf {
    if let Some(named) = std::env::var_os("PGDEPUTY_BIN") {
        // Programs of a lab are started in directories of their own.
        return std::path::absolute(named).expect("PGDEPUTY_BIN is not empty");
    }
    let own = std::env::current_exe().expect("a process has a program");
    let profile = own.ancestors().nth(2).expect("tests lie in target/<profile>/deps");
    let program = profile.join("pgdeputy");
    assert!(
        program.is_file(),
        "{} does not exist: run `make build` or `cargo build` first",
        program.display()
    );
    program
}

/// Returns `config` as a text that libpq takes.
///
/// # Panics
/// Where it is not one host by TCP with user, password and database.
pub fn dsn(config: &tokio_postgres::Config) -> String {
    let [Host::Tcp(host)] = config.get_hosts() else { panic!("one host by TCP") };
    let password = config.get_password().map(String::from_utf8_lossy).expect("a password");
    let (user, name) =
        (config.get_user().expect("a user"), config.get_dbname().expect("a database"));
    let port = config.get_ports()[0];
    format!("host={host} port={port} user={user} dbname={name} password='{password}'")
}

/// A cluster under load, from before the first fault on.
pub struct UnderLoad {
    pub scene: Scene,
    pub watchers: Watchers,
    /// When the load ran steadily, before the first fault.
    steady: (Moment, Moment),
}

impl UnderLoad {
    /// Starts a cluster as `scene` does, and returns once it is redundant and `commits` are acknowledged.
    pub async fn start(change: impl FnOnce(&mut LabConfig), commits: usize) -> Self {
        let scene = scene(change).await;
        scene.lab.wait_redundant(BOUND).await.expect("form the cluster");
        let watchers = Watchers::start(&scene.lab, 4).await.expect("start the load");
        let from = clock::now();
        watchers.load.acknowledged_count(commits, BOUND).await.expect("the load commits");
        Self { scene, watchers, steady: (from, clock::now()) }
    }

    /// Returns what is served, and by whom.
    pub async fn served(&self) -> (Service, MemberName) {
        self.scene.lab.cluster().await.expect("read the cluster").service().expect("it is served")
    }

    /// Ends the load, and judges what clients were told by what all members hold.
    pub async fn verdict(self) -> Verdict {
        let finished = self.watchers.finish(&self.scene.lab, self.steady).await;
        let (evidence, _) = finished.expect("read all members");
        judge(&evidence)
    }
}
