//! The lines that a person watches, with the time since the start or, after the fault, since the fault.

use std::io::Write;
use std::sync::{Arc, Mutex};

use proto::Moment;
use store::clock;

/// A printer of timed lines. Clones share the fault.
#[derive(Clone)]
pub struct Timeline {
    started: Moment,
    fault: Arc<Mutex<Option<Moment>>>,
    to_stderr: bool,
}

impl Timeline {
    /// Starts the clock. With `json` the lines go to stderr.
    pub fn start(json: bool) -> Self {
        Self { started: clock::now(), fault: Arc::default(), to_stderr: json }
    }

    /// Prints a line with the present time.
    pub fn say(&self, text: &str) {
        self.say_at(clock::now(), text);
    }

    /// Prints a line with the time of what it tells.
    pub fn say_at(&self, at: Moment, text: &str) {
        let fault = *self.fault.lock().expect("no holder of this lock panics");
        self.print(&line(self.started, fault, at, text));
    }

    /// Prints a line without a time.
    pub fn print(&self, text: &str) {
        if self.to_stderr {
            return eprintln!("{text}");
        }
        // A reader that has gone, as `| head` does, is no reason to stop half-way.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// From here on times count from the fault.
    pub fn fault_at(&self, at: Moment) {
        *self.fault.lock().expect("no holder of this lock panics") = Some(at);
    }
}

fn line(started: Moment, fault: Option<Moment>, at: Moment, text: &str) -> String {
    match fault.filter(|fault| at >= *fault) {
        Some(fault) => format!("{:>+9.0} ms  {text}", at.since(fault).as_secs_f64() * 1e3),
        None => format!("{:>10.1} s  {text}", at.since(started).as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_count_from_the_start_and_after_the_fault_from_the_fault() {
        let at = |ms| Moment::since_boot(Duration::from_millis(ms));
        assert_eq!(line(at(1000), None, at(3500), "x"), "       2.5 s  x");
        assert_eq!(line(at(1000), Some(at(4000)), at(4083), "x"), "      +83 ms  x");
        assert_eq!(line(at(1000), Some(at(4000)), at(3500), "x"), "       2.5 s  x");
    }
}
