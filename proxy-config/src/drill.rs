//! The drills of a proxy-config: it ends at once, or restarts its HAProxy and says when that serves again.

use std::time::Duration;

use proto::drill::{Drill, LiveFault};
use store::clock;
use store::drills::{Carries, die};
use tokio::process::Command;
use tokio::time::sleep;

use crate::config::{Drills, HaproxyConfig};
use crate::{install, push};

/// So often HAProxy is asked whether it is back.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is drilled on this host.
pub struct Drilled {
    pub drills: Drills,
    pub haproxy: Option<HaproxyConfig>,
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
                let Some(haproxy) = &self.haproxy else {
                    return Err(format!("{target} has no HAProxy"));
                };
                if self.drills.restart_haproxy.is_none() {
                    return Err(format!("{target} is not told how to restart HAProxy (--restart)"));
                }
                let running = push::running(&haproxy.socket).await;
                running.map(drop).map_err(|e| format!("HAProxy of {target}: {e}"))
            }
            _ => Err(format!("{fault} hits no proxy")),
        }
    }

    async fn strike(&self, drill: &Drill) -> Option<String> {
        match (drill.fault, &self.haproxy, &self.drills.restart_haproxy) {
            (LiveFault::Haproxy, Some(haproxy), Some(command)) => {
                restart(haproxy, command, drill.bound).await
            }
            _ => {
                die();
                None
            }
        }
    }
}

/// Restarts HAProxy, and returns how it came back, if it does within `bound`.
async fn restart(haproxy: &HaproxyConfig, command: &str, bound: Duration) -> Option<String> {
    let before = push::running(&haproxy.socket).await.ok()?;
    let begun = clock::now();
    if let Err(error) = install::run(Command::new("sh").arg("-c").arg(command)).await {
        tracing::warn!(error = format!("{error:#}"), "restart HAProxy");
    }
    loop {
        let waited = clock::now().since(begun);
        if let Ok(now) = push::running(&haproxy.socket).await
            && now.pid != before.pid
        {
            return Some(format!("HAProxy {} serves after {} ms", now.pid, waited.as_millis()));
        }
        if waited > bound {
            tracing::error!(?bound, "HAProxy is not back");
            return None;
        }
        sleep(LOOK_AGAIN).await;
    }
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
        Drilled { drills, haproxy: None }.judge(&drill).await
    }

    #[tokio::test]
    async fn a_proxy_config_ends_only_where_it_is_started_again_and_its_operator_lets_it() {
        let plain = Drills::default;
        let why = said(plain(), LiveFault::ProxyConfig).await.unwrap_err();
        assert!(why.contains("start proxy/p1 again"), "{why}");
        let why = said(plain(), LiveFault::Haproxy).await.unwrap_err();
        assert!(why.contains("has no HAProxy"), "{why}");
        assert!(said(plain(), LiveFault::Crash).await.unwrap_err().contains("hits no proxy"));
        let kept = Drills { restarted: true, ..plain() };
        assert_eq!(said(kept.clone(), LiveFault::ProxyConfig).await, Ok(()));
        let refused = BTreeSet::from([LiveFault::ProxyConfig]);
        let why = said(Drills { refused, ..kept }, LiveFault::ProxyConfig).await.unwrap_err();
        assert!(why.contains("--refuse-drills"), "{why}");
    }
}
