//! What `pgdeputy drill` may break beside a role's process, as every role's flags say it.

use std::collections::BTreeSet;

use clap::Args;
use proto::drill::LiveFault;

/// The flags about drills that each role has.
#[derive(Debug, Clone, Default, Args)]
pub struct DrillableArgs {
    /// What no `pgdeputy drill` may break here, divided by commas; all: nothing at all
    #[arg(long, value_name = "DRILLS", value_delimiter = ',', value_parser = refused_drill)]
    refuse_drills: Vec<Refused>,
}

impl DrillableArgs {
    /// Returns what is refused.
    pub fn refused(self) -> BTreeSet<LiveFault> {
        self.refuse_drills.into_iter().flat_map(|refused| refused.0).collect()
    }
}

/// What one word of `--refuse-drills` means.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused(Vec<LiveFault>);

fn refused_drill(given: &str) -> Result<Refused, String> {
    match given {
        "all" => Ok(Refused(LiveFault::ALL.to_vec())),
        name => name.parse().map(|fault| Refused(vec![fault])),
    }
}

/// Returns whether a service manager has started process `pid`, and so starts it again. systemd names the process that
/// it started since version 248; what that one starts inherits the variable. supervisord says no more than that it is
/// there.
pub fn has_service_manager(pid: u32, variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("SYSTEMD_EXEC_PID") == Some(pid.to_string())
        || variable("SUPERVISOR_ENABLED").is_some()
}

/// The same for this process.
pub fn is_managed() -> bool {
    has_service_manager(std::process::id(), |name| std::env::var(name).ok())
}
