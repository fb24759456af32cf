//! What happened, as lines with simulated times.

use std::fmt::Write as _;

use super::executor::Sim;

/// The lines, where somebody wants to read them.
pub struct Trace {
    pub keep: bool,
    pub lines: Vec<String>,
}

impl Trace {
    /// Begins a trace, which keeps its lines only if it is to.
    pub fn of(keep: bool) -> Self {
        Self { keep, lines: Vec::new() }
    }
}

impl Sim {
    /// Notes a line.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.with(|w| w.trace.keep) {
            let mut text = format!("{:9.3}  ", self.now() as f64 / 1e6);
            let _ = text.write_str(&line());
            self.with(|w| w.trace.lines.push(text));
        }
    }
}
