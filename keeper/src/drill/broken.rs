//! What has to be undone, and the note of it that outlives this keeper.

use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sys::signal::Signal;
use proto::{Document, RequestId, document};
use serde::{Deserialize, Serialize};

use crate::durable::{read_optional, remove_if_there, replace};
use crate::fencer::Process;

/// Processes that stand still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broken {
    pub drill: RequestId,
    /// By their pids and when they started, in clock ticks since boot.
    pub frozen: Vec<(u32, u64)>,
}

impl Document for Broken {
    const KIND: &'static str = "note of what a drill has broken";
}

fn note(state_dir: &Path) -> PathBuf {
    state_dir.join("drill.json")
}

impl Broken {
    /// Notes `processes` and stops them.
    pub fn freeze(
        drill: RequestId,
        processes: &[Process],
        state_dir: &Path,
    ) -> anyhow::Result<Self> {
        let frozen = processes.iter().map(|p| (p.pid, p.start_ticks)).collect();
        let broken = Self { drill, frozen };
        // Processes do not outlive the machine: the note need not either.
        replace(&note(state_dir), document::encode(&broken).as_bytes(), 0o600)
            .context("note what is broken")?;
        for process in processes {
            process.signal(Signal::SIGSTOP).context("stop a process")?;
        }
        Ok(broken)
    }

    /// Returns what an earlier keeper has left broken.
    pub fn left(state_dir: &Path) -> anyhow::Result<Option<Self>> {
        let Some(text) = read_optional(&note(state_dir))? else { return Ok(None) };
        Ok(Some(document::decode(&text)?))
    }

    /// Lets all that still stand go on, and removes the note.
    pub fn mend(&self, state_dir: &Path) -> anyhow::Result<()> {
        for (pid, start_ticks) in &self.frozen {
            let found = Process::with_pid(*pid).filter(|p| p.start_ticks == *start_ticks);
            if let Some(process) = found {
                process.signal(Signal::SIGCONT).context("let a process go on")?;
            }
        }
        remove_if_there(&note(state_dir)).context("remove the note")?;
        Ok(())
    }
}
