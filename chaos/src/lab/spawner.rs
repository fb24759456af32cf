//! Starts the lab's processes and reaps them.
//!
//! All are started by one thread that lives as long as the lab: the signal that ends a child with its parent
//! is bound to the *thread* that made the child, and threads of an async runtime come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::config::Lifetime;

/// How often ended children are looked for. Only zombies wait for it.
const REAP_EVERY: Duration = Duration::from_millis(20);

/// The handle of the spawning thread.
pub struct Spawner {
    orders: mpsc::Sender<Order>,
    ended: Arc<Mutex<BTreeMap<i32, String>>>,
}

enum Order {
    Start {
        command: Box<Command>,
        reply: mpsc::Sender<std::io::Result<i32>>,
    },
    /// Processes that lost their parent and came to us: they are reaped when they end.
    Adopt(Vec<i32>),
}

impl Spawner {
    /// Starts the thread. Orphans of the lab's processes become this process's children, so that their zombies
    /// do not depend on how diligent the machine's first process is.
    pub fn new(lifetime: Lifetime) -> anyhow::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true).context("become the reaper of orphans")?;
        let (orders, received) = mpsc::channel();
        let ended = Arc::default();
        let shared = Arc::clone(&ended);
        std::thread::Builder::new()
            .name("lab-spawner".into())
            .spawn(move || serve(&received, lifetime, &shared))
            .context("start the spawning thread")?;
        Ok(Self { orders, ended })
    }

    /// Starts `command` in a session of its own and returns its process id.
    pub fn start(&self, command: Command) -> anyhow::Result<i32> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (reply, answer) = mpsc::channel();
        let order = Order::Start { command: Box::new(command), reply };
        self.orders.send(order).context("the spawning thread has ended")?;
        let started = answer.recv().context("the spawning thread has ended")?;
        started.with_context(|| format!("start {program}: run `make deps` if it is not installed"))
    }

    /// Returns how the process ended, if it has.
    pub fn ended(&self, pid: i32) -> Option<String> {
        self.ended.lock().expect("no holder of this lock panics").get(&pid).cloned()
    }

    /// Has these processes reaped, should they be or become children of this one.
    pub fn adopt(&self, pids: Vec<i32>) {
        // Without the thread the lab is at its end, and zombies end with it.
        let _ = self.orders.send(Order::Adopt(pids));
    }
}

fn serve(orders: &mpsc::Receiver<Order>, lifetime: Lifetime, ended: &Mutex<BTreeMap<i32, String>>) {
    let mut children: Vec<Child> = Vec::new();
    let mut orphans: BTreeSet<i32> = BTreeSet::new();
    loop {
        match orders.recv_timeout(REAP_EVERY) {
            Ok(Order::Start { mut command, reply }) => {
                let started = spawn(&mut command, lifetime).map(|child| {
                    let pid = child.id().cast_signed();
                    children.push(child);
                    pid
                });
                // Who asked may have given up; the child is then ended with the lab.
                let _ = reply.send(started);
            }
            Ok(Order::Adopt(pids)) => orphans.extend(pids),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return reap_last(children),
        }
        children.retain_mut(|child| match child.try_wait() {
            Ok(Some(status)) => {
                let mut ended = ended.lock().expect("no holder of this lock panics");
                ended.insert(child.id().cast_signed(), status.to_string());
                false
            }
            Ok(None) | Err(_) => true,
        });
        let own: BTreeSet<i32> = children.iter().map(|child| child.id().cast_signed()).collect();
        orphans.retain(|pid| !own.contains(pid) && !is_reaped(*pid));
    }
}

fn spawn(command: &mut Command, lifetime: Lifetime) -> std::io::Result<Child> {
    // SAFETY: setsid and prctl are async-signal-safe, and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // A session of its own: Ctrl-C at the terminal is for the lab, which ends the others in order.
            nix::unistd::setsid()?;
            if lifetime == Lifetime::Tied {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Returns whether nothing is left to do about this orphan: it was reaped here, or is gone for good.
fn is_reaped(pid: i32) -> bool {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
        Ok(nix::sys::wait::WaitStatus::StillAlive) => false,
        Ok(_) => true,
        // Not (yet) our child: it may become one when its parent dies.
        Err(_) => !std::path::Path::new(&format!("/proc/{pid}")).exists(),
    }
}

/// The lab has ended its processes by now; this collects what they left, and never blocks on a survivor.
fn reap_last(mut children: Vec<Child>) {
    for child in &mut children {
        let _ = child.try_wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_in_its_own_session_and_its_end_is_noted() {
        let spawner = Spawner::new(Lifetime::Tied).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        let pid = spawner.start(command).unwrap();
        let deadline = store::clock::now() + Duration::from_secs(10);
        while spawner.ended(pid).is_none() && store::clock::now() < deadline {
            std::thread::yield_now();
        }
        assert!(spawner.ended(pid).unwrap().contains('7'));
        let mut sleeper = Command::new("sleep");
        sleeper.arg("60");
        let pid = Pid::from_raw(spawner.start(sleeper).unwrap());
        assert_eq!(nix::unistd::getsid(Some(pid)), Ok(pid));
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_program_that_is_missing_is_named_with_the_remedy() {
        let spawner = Spawner::new(Lifetime::Tied).unwrap();
        let error = spawner.start(Command::new("/nonexistent/etcd")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/etcd: run `make deps`"), "{error:#}");
    }
}
