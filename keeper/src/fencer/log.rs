//! The fencer's own log. Lines are kept in memory until it is a good moment to write them: a write can wait for a
//! hung disk, and a fence must not.

use std::fs::File;
use std::io::Write;

/// Far more than one fence says; what a disk does not take for so long is dropped.
const KEPT_LINES: usize = 1000;

pub struct Log {
    file: File,
    kept: Vec<String>,
}

impl Log {
    /// Logs to `file`, which was opened for appending.
    pub fn to(file: File) -> Self {
        Self { file, kept: Vec::new() }
    }

    /// Keeps one line, with the time of this call.
    pub fn note(&mut self, text: impl AsRef<str>) {
        if self.kept.len() < KEPT_LINES {
            self.kept.push(format!("{} {}\n", store::clock::wall(), text.as_ref()));
        }
    }

    /// Writes what was kept. A log that cannot be written is no reason to stop watching PostgreSQL.
    pub fn write(&mut self) {
        if !self.kept.is_empty() {
            let _ = self.file.write_all(self.kept.concat().as_bytes());
            self.kept.clear();
        }
    }
}
