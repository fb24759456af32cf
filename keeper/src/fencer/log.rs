//! The fencer's own log. While PostgreSQL may serve only until a given time, lines stay in memory: a write can wait
//! for a hung disk, and the fence must not. So a primary's lines appear once it is fenced, stopped or a standby.

use std::fs::File;
use std::io::Write;

/// A primary causes a line for each keeper that connects and each refusal; what comes after so many is dropped.
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
