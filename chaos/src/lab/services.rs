//! What a service manager does in a deployed cluster: what has ended is started again.

use anyhow::Context;

use super::commands::{self, HaproxyFiles};
use super::{Lab, pgbouncer};

impl Lab {
    /// Starts every sentinel, proxy-config, HAProxy and PgBouncer that has ended again, with the files that are there. Returns their
    /// names.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn restart_services(&mut self) -> anyhow::Result<Vec<String>> {
        let is_service = |name: &str| {
            ["sentinel", "proxy-config", "haproxy", "pgbouncer"].iter().any(|s| name.starts_with(s))
        };
        let ended = |(name, pid): &&(String, i32)| {
            is_service(name) && self.home.spawner.ended(*pid).is_some()
        };
        let ended: Vec<(String, i32)> = self.others.iter().filter(ended).cloned().collect();
        self.others.retain(|one| !ended.contains(one));
        let names: Vec<String> = ended.into_iter().map(|(name, _)| name).collect();
        if names.iter().any(|name| name.starts_with("sentinel")) {
            self.start_sentinels()?;
        }
        if names.iter().any(|name| name == "proxy-config") {
            self.start_proxy_config()?;
        }
        if names.iter().any(|name| name == "haproxy") {
            let master = self.start_other("haproxy", commands::haproxy(&self.home.layout)?)?;
            let files = HaproxyFiles::of(&self.home.layout);
            std::fs::write(&files.pid, master.to_string()).context("note HAProxy's process id")?;
        }
        for index in 0..self.addresses.pgbouncers.len() {
            if names.contains(&pgbouncer::name(index)) {
                self.start_pgbouncer(index)?;
            }
        }
        Ok(names)
    }
}
