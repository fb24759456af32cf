//! `pause` and `resume`: a time in which people work on the cluster by hand.

use std::time::Duration;

use clap::Args;
use proto::orders::{LONGEST_PAUSE, SHORTEST_PAUSE};
use proto::request::Wanted;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::members::ask;
use crate::target::Target;

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Why, for whoever looks at the cluster meanwhile
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// For how long, such as 30m; then it ends by itself
    #[arg(long = "for", value_name = "DURATION", value_parser = lasting)]
    lasting: Duration,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `pause`.
pub fn pause(args: PauseArgs) -> Result<u8, Failure> {
    let wanted = Wanted::Pause { reason: args.reason, lasting: args.lasting };
    ask(args.target, wanted, args.output)
}

/// Runs `resume`.
pub fn resume(args: ResumeArgs) -> Result<u8, Failure> {
    ask(args.target, Wanted::Resume, args.output)
}

fn reason(given: &str) -> Result<String, String> {
    match given.trim() {
        "" => Err("say why, for whoever looks at the cluster meanwhile".into()),
        reason => Ok(reason.to_owned()),
    }
}

fn lasting(given: &str) -> Result<Duration, String> {
    let lasting =
        humantime::parse_duration(given).map_err(|e| format!("{e}: write it as 90s, 30m or 2h"))?;
    match (SHORTEST_PAUSE..=LONGEST_PAUSE).contains(&lasting) {
        true => Ok(lasting),
        false => Err(format!(
            "a pause lasts from {} to {}",
            humantime::format_duration(SHORTEST_PAUSE),
            humantime::format_duration(LONGEST_PAUSE)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_a_length_that_a_person_can_mean() {
        assert_eq!(lasting("30m"), Ok(Duration::from_secs(1800)));
        for (given, words) in [
            ("0s", "from 5s to 7days"),
            ("8d", "from 5s to 7days"),
            ("soon", "90s, 30m or 2h"),
            ("-5m", "90s, 30m or 2h"),
        ] {
            let error = lasting(given).unwrap_err();
            assert!(error.contains(words), "{given}: {error}");
        }
        assert!(reason("  ").is_err());
    }
}
