//! The drills of a proxy-config: it ends at once, or restarts its HAProxy or a PgBouncer and says when that serves again.

use std::time::Duration;

use proto::drill::{Drill, LiveFault};
use store::clock;
use store::drills::{Carries, die};
use tokio::process::Command;
use tokio::time::sleep;

use crate::config::{Drills, HaproxyConfig};
use crate::pgbouncer::console::Console;
use crate::pgbouncer::instance;
use crate::{install, push};

/// So often it is asked whether it is back.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is drilled on this host.
pub struct Drilled {
    pub drills: Drills,
    pub haproxy: Option<HaproxyConfig>,
    /// The consoles of its PgBouncers.
    pub pgbouncers: Vec<tokio_postgres::Config>,
}

#[async_trait::async_trait]
impl Carries for Drilled {
    async fn judge(&self, drill: &Drill) -> Result<(), String> {
        let (fault, target) = (drill.fault, &drill.target);
        if self.drills.refused.contains(&fault) {
            return Err(format!("the operator of {target} refuses {fault} (--refuse-drills)"));
        }
        match fault {
            LiveFault::ProxyConfig if self.drills.restarted => Ok(()),
            LiveFault::ProxyConfig => Err(format!(
                "nobody is known to start {target} again: run it under systemd or supervisord"
            )),
            LiveFault::Haproxy => {
                let haproxy = self.haproxy.as_ref().ok_or(format!("{target} has no HAProxy"))?;
                if self.drills.restart_haproxy.is_none() {
                    return Err(format!("{target} is not told how to restart HAProxy (--restart)"));
                }
                let running = push::running(&haproxy.socket).await;
                running.map(drop).map_err(|e| format!("HAProxy of {target}: {e}"))
            }
            LiveFault::Pgbouncer => {
                let at = self.chosen(drill).ok_or(format!("{target} has no PgBouncer"))?;
                if self.drills.restart_pgbouncer.is_none() {
                    return Err(format!(
                        "{target} is not told how to restart PgBouncer (--pgbouncer-restart)"
                    ));
                }
                let name = instance::name(at);
                Console::open(at).await.map(drop).map_err(|e| format!("PgBouncer {name}: {e}"))
            }
            _ => Err(format!("{fault} hits no proxy")),
        }
    }

    async fn strike(&self, drill: &Drill) -> Option<String> {
        match drill.fault {
            LiveFault::Haproxy => {
                let haproxy = self.haproxy.as_ref()?;
                let pid = push::running(&haproxy.socket).await.ok()?.pid;
                let command = shell(self.drills.restart_haproxy.as_ref()?);
                restart(Before::Haproxy { haproxy, pid }, command, drill.bound).await
            }
            LiveFault::Pgbouncer => {
                let at = self.chosen(drill)?;
                let session = Console::open(at).await.ok()?;
                let mut command = shell(self.drills.restart_pgbouncer.as_ref()?);
                command.env("PGDEPUTY_PGBOUNCER", instance::name(at));
                restart(Before::Pgbouncer { at, session }, command, drill.bound).await
            }
            _ => {
                die();
                None
            }
        }
    }
}

impl Drilled {
    /// Returns the PgBouncer that `drill` hits: its id decides, so the same one is judged and struck.
    fn chosen(&self, drill: &Drill) -> Option<&tokio_postgres::Config> {
        let drawn: usize = drill.id.0.bytes().map(usize::from).sum();
        self.pgbouncers.get(drawn.checked_rem(self.pgbouncers.len())?)
    }
}

/// What served before it was restarted.
enum Before<'a> {
    Haproxy {
        haproxy: &'a HaproxyConfig,
        pid: i32,
    },
    /// A session of before that is gone, and one that is answered, tell that it is another process.
    Pgbouncer {
        at: &'a tokio_postgres::Config,
        session: Console,
    },
}

impl Before<'_> {
    /// Returns what serves again, once it does.
    async fn back(&self) -> Option<String> {
        match self {
            Self::Haproxy { haproxy, pid } => {
                let now = push::running(&haproxy.socket).await.ok()?.pid;
                (now != *pid).then(|| format!("HAProxy {now}"))
            }
            Self::Pgbouncer { at, session } => {
                let answers = session.is_closed() && Console::open(at).await.is_ok();
                answers.then(|| format!("PgBouncer {}", instance::name(at)))
            }
        }
    }
}

/// Runs `command`, and returns how it came back, if it does within `bound`.
async fn restart(before: Before<'_>, mut command: Command, bound: Duration) -> Option<String> {
    let begun = clock::now();
    if let Err(error) = install::run(&mut command).await {
        tracing::warn!(error = format!("{error:#}"), "the command that restarts it");
    }
    loop {
        let waited = clock::now().since(begun);
        if let Some(what) = before.back().await {
            return Some(format!("{what} serves after {} ms", waited.as_millis()));
        }
        if waited > bound {
            tracing::error!(?bound, "what was restarted is not back");
            return None;
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command);
    shell
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::drill::DrillTarget;
    use proto::{Epoch, RequestId};

    use super::*;

    async fn said(drills: Drills, fault: LiveFault) -> Result<(), String> {
        let drill = Drill {
            id: RequestId::from_random(1),
            fault,
            target: DrillTarget::Proxy("p1".into()),
            by: "ann@north".into(),
            epoch: Epoch(2),
            bound: Duration::from_secs(5),
        };
        Drilled { drills, haproxy: None, pgbouncers: Vec::new() }.judge(&drill).await
    }

    #[tokio::test]
    async fn a_proxy_config_ends_only_where_it_is_started_again_and_its_operator_lets_it() {
        let plain = Drills::default;
        let why = said(plain(), LiveFault::ProxyConfig).await.unwrap_err();
        assert!(why.contains("start proxy/p1 again"), "{why}");
        let why = said(plain(), LiveFault::Haproxy).await.unwrap_err();
        assert!(why.contains("has no HAProxy"), "{why}");
        let why = said(plain(), LiveFault::Pgbouncer).await.unwrap_err();
        assert!(why.contains("has no PgBouncer"), "{why}");
        assert!(said(plain(), LiveFault::Crash).await.unwrap_err().contains("hits no proxy"));
        let kept = Drills { restarted: true, ..plain() };
        assert_eq!(said(kept.clone(), LiveFault::ProxyConfig).await, Ok(()));
        let refused = BTreeSet::from([LiveFault::ProxyConfig]);
        let why = said(Drills { refused, ..kept }, LiveFault::ProxyConfig).await.unwrap_err();
        assert!(why.contains("--refuse-drills"), "{why}");
    }
}
