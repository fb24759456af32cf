//! A lab in network namespaces: each member, each etcd and each sentinel is a host of its own, with its own address, behind
//! one switch that the lab can make lose packets. Clients, observers and proxies stay in the machine's own network.
//!
//! The one rule: nothing of a lab's network outlives it. Its number is noted in the lab's directory before anything is
//! made, and whoever ends the lab removes all that bears that number.

mod claim;
pub mod cut;
pub mod flaw;
mod late;
mod probe;
pub mod relay;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};
use proto::MemberName;

pub use claim::{Claim, KEPT};
use cut::Cut;
use flaw::Flaw;
use relay::Relay;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// The file of the lab's directory that holds the number of its network.
const NUMBER: &str = "network";

/// Whether the lab's hosts share the machine's loopback, or each have a network of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    Loopback,
    /// Needs root. The only one in which members can be cut off.
    Namespaces,
}

/// A host of the lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// The machine's own network: load, observers, HAProxy and the lab itself.
    Clients,
    /// Counted from 0.
    Etcd(usize),
    /// Counted from 0.
    Sentinel(usize),
    Member(MemberName),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Clients => f.write_str("clients"),
            Site::Etcd(index) => write!(f, "etcd{}", index + 1),
            Site::Sentinel(index) => write!(f, "sentinel{}", index + 1),
            Site::Member(name) => write!(f, "member-{name}"),
        }
    }
}

/// Where a site is.
#[derive(Debug, Clone)]
pub struct Place {
    pub address: Ipv4Addr,
    namespace: Arc<File>,
}

impl Place {
    /// Has `command` run at this place.
    pub fn enter(&self, command: &mut Command) {
        let namespace = Arc::clone(&self.namespace);
        // SAFETY: setns is a plain system call, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(move || Ok(setns(namespace.as_ref(), CloneFlags::CLONE_NEWNET)?));
        }
    }
}

/// The network of one lab.
pub struct Network {
    number: u8,
    places: BTreeMap<Site, Place>,
    cuts: Vec<Cut>,
    flaws: Vec<Flaw>,
    relays: BTreeMap<Site, Relay>,
}

impl Network {
    /// Makes the switch, and the machine's own connection to it.
    pub fn make(number: u8) -> anyhow::Result<Self> {
        let switch = switch(number);
        add_namespace(&switch)?;
        ip(&["-n", &switch, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "switch", "up"])?;
        let link = link(number);
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "clients", "netns", &switch])?;
        ip(&["-n", &switch, "link", "set", "clients", "master", "switch", "up"])?;
        let address = Ipv4Addr::new(198, 18, number, 1);
        ip(&["addr", "add", &format!("{address}/24"), "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        let own = File::open("/proc/self/ns/net").context("open the machine's own network")?;
        let clients = Place { address, namespace: Arc::new(own) };
        let places = BTreeMap::from([(Site::Clients, clients)]);
        Ok(Self { number, places, cuts: Vec::new(), flaws: Vec::new(), relays: BTreeMap::new() })
    }

    /// Adds a host with a namespace and an address of its own; finds it if it is there.
    pub fn add(&mut self, site: &Site) -> anyhow::Result<&Place> {
        if !self.places.contains_key(site) {
            let place = self.make_host(site).with_context(|| format!("make host {site}"))?;
            self.places.insert(site.clone(), place);
        }
        self.place(site)
    }

    /// Returns where a site is.
    pub fn place(&self, site: &Site) -> anyhow::Result<&Place> {
        self.places.get(site).with_context(|| format!("the lab's network has no host {site}"))
    }

    fn make_host(&self, site: &Site) -> anyhow::Result<Place> {
        let taken = self.places.len();
        let last = u8::try_from(taken).ok().filter(|n| *n < 250).context("too many hosts")? + 1;
        let address = Ipv4Addr::new(198, 18, self.number, last);
        let (host, switch) = (namespace(self.number, site), switch(self.number));
        // Names of links have at most 15 letters; those of members are longer.
        let port = format!("port{last}");
        add_namespace(&host)?;
        ip(&[
            "link", "add", "eth0", "netns", &host, "type", "veth", "peer", "name", &port, "netns",
            &switch,
        ])?;
        ip(&["-n", &switch, "link", "set", &port, "master", "switch", "up"])?;
        ip(&["-n", &host, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", &host, "link", "set", "lo", "up"])?;
        ip(&["-n", &host, "link", "set", "eth0", "up"])?;
        let file = Path::new(NAMES).join(&host);
        let opened = File::open(&file).with_context(|| format!("open {}", file.display()))?;
        Ok(Place { address, namespace: Arc::new(opened) })
    }
}

/// Returns the address of a host, made if it is new: the loopback's where there is no network.
pub fn host(network: Option<&mut Network>, site: &Site) -> anyhow::Result<Ipv4Addr> {
    network.map_or(Ok(Ipv4Addr::LOCALHOST), |network| Ok(network.add(site)?.address))
}

/// Notes in the lab's directory which network is its own, for whoever ends the lab.
pub fn note(root: &Path, number: u8) -> anyhow::Result<()> {
    std::fs::write(root.join(NUMBER), number.to_string()).context("note the lab's network")
}

/// Removes the network of the lab at `root`, if it has one. Its processes have ended before.
pub fn remove_of(root: &Path) -> anyhow::Result<()> {
    let file = root.join(NUMBER);
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    let number = text.trim().parse().with_context(|| format!("read {}", file.display()))?;
    remove(number)
}

/// Removes everything that bears this number.
fn remove(number: u8) -> anyhow::Result<()> {
    let link = link(number);
    if Path::new("/sys/class/net").join(&link).exists() {
        ip(&["link", "delete", &link])?;
    }
    let prefix = format!("{}-", prefix(number));
    let Ok(entries) = std::fs::read_dir(NAMES) else { return Ok(()) };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| name.starts_with(&prefix)) {
        ip(&["netns", "delete", &name])?;
    }
    Ok(())
}

fn prefix(number: u8) -> String {
    format!("pgdeputy-lab-{number}")
}

fn namespace(number: u8, site: &Site) -> String {
    format!("{}-{site}", prefix(number))
}

fn switch(number: u8) -> String {
    format!("{}-switch", prefix(number))
}

fn link(number: u8) -> String {
    format!("pgdlab{number}")
}

fn add_namespace(name: &str) -> anyhow::Result<()> {
    ip(&["netns", "add", name])
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments), "")
}

/// Runs a program of the system with this input; its own words are the error.
pub(super) fn run(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("start {program}: run `make deps` if it is not installed"))?;
    let mut stdin = child.stdin.take().context("its input was just asked for")?;
    // One that refuses its arguments has closed its input, and says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), said.trim());
    Ok(())
}

#[cfg(test)]
mod tests;
