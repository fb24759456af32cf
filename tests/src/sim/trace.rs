//! What happened, as lines with simulated times; and one number that stands for all of them.

use std::fmt::Write as _;

use super::executor::Sim;

/// The lines, kept only where somebody wants to read them, and their hash.
pub struct Trace {
    pub keep: bool,
    pub lines: Vec<String>,
    hash: u64,
}

impl Trace {
    /// Begins a trace, which keeps its lines only if it is to.
    pub fn of(keep: bool) -> Self {
        Self { keep, lines: Vec::new(), hash: 0xcbf2_9ce4_8422_2325 }
    }

    fn add(&mut self, line: String) {
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.keep {
            self.lines.push(line);
        }
    }

    /// Returns what stands for all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl Sim {
    /// Notes a line.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        let now = self.now();
        let mut text = format!("{:9.3}  ", now as f64 / 1e6);
        let _ = text.write_str(&line());
        self.with(|w| w.trace.add(text));
    }
}
