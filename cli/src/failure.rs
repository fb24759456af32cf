//! Why a command did not do what was asked, in one line and one exit status.

use std::process::ExitCode;

/// `EX_USAGE` of sysexits.h: what was given cannot be, and nothing was begun.
pub const USAGE_STATUS: u8 = 64;

/// Why a command ended without success.
#[derive(Debug)]
pub enum Failure {
    /// A bad value, found before anything was begun.
    Usage(String),
    /// Something that failed on the way.
    Runtime(anyhow::Error),
}

impl Failure {
    /// Makes a complaint about what was given.
    pub fn usage(problem: impl Into<String>) -> Self {
        Self::Usage(problem.into())
    }

    /// Returns the one line that a person reads.
    pub fn line(&self) -> String {
        let text = match self {
            Self::Usage(problem) => problem.clone(),
            Self::Runtime(error) => format!("{error:#}"),
        };
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        format!("pgdeputy: {}", lines.join(" "))
    }

    /// Prints the line and returns the exit status.
    pub fn report(&self) -> ExitCode {
        eprintln!("{}", self.line());
        ExitCode::from(self.status())
    }

    /// Returns the exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE_STATUS,
            Self::Runtime(_) => 1,
        }
    }
}

/// A bad value that is found on the way of a command, still before anything was begun.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadValue(pub String);

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<BadValue>() {
            Ok(BadValue(problem)) => Self::Usage(problem),
            Err(error) => Self::Runtime(error),
        }
    }
}

impl From<BadValue> for Failure {
    fn from(BadValue(problem): BadValue) -> Self {
        Self::Usage(problem)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_failure_is_one_line_that_holds_the_whole_chain() {
        let chain = Err::<(), _>(std::io::Error::other("no\nroute\n")).context("connect to etcd");
        assert_eq!(Failure::from(chain.unwrap_err()).line(), "pgdeputy: connect to etcd: no route");
        assert_eq!(Failure::usage("--member is missing").line(), "pgdeputy: --member is missing");
        let bad = Failure::from(anyhow::Error::from(BadValue("--etcd-key is missing".into())));
        assert_eq!(bad.status(), USAGE_STATUS);
    }
}
