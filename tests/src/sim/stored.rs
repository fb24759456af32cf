//! Faults and whole runs as text: a run that once broke a promise is kept in a file and always runs.
//!
//! The one rule: what was written reads back as the same run.

use std::fmt;
use std::str::FromStr;

use super::cells::Phase;
use super::faults::{Fault, Kind, Who};
use super::profiles::Profile;
use super::run::Plan;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.who {
            Who::Primary => "primary".to_owned(),
            Who::Standby(number) => format!("standby:{number}"),
            Who::Member(number) => format!("member:{number}"),
        };
        let aim = self.aim.map_or("at-once", Phase::name);
        let (at, lasts) = (self.at as f64 / 1e6, self.lasts as f64 / 1e6);
        write!(f, "{at:.6} {:?} {who} {lasts:.6} {:x} {aim}", self.kind, self.other)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [at, kind, who, lasts, other, aim] = words[..] else {
            return Err(format!("{text:?}: expected at, kind, who, lasts, other, aim"));
        };
        let seconds = |word: &str| {
            word.parse::<f64>()
                .map(|s| (s * 1e6).round() as u64)
                .map_err(|e| format!("{word}: {e}"))
        };
        let number = |n: &str| n.parse().map_err(|e| format!("{who}: {e}"));
        let known = Kind::ALL.iter().find(|k| format!("{k:?}") == kind);
        Ok(Self {
            at: seconds(at)?,
            aim: match aim {
                "at-once" => None,
                name => Some(Phase::named(name).ok_or_else(|| format!("{name}: no such phase"))?),
            },
            kind: *known.ok_or_else(|| format!("{kind}: no such kind of fault"))?,
            who: match who.split_once(':') {
                None if who == "primary" => Who::Primary,
                Some(("standby", n)) => Who::Standby(number(n)?),
                Some(("member", n)) => Who::Member(number(n)?),
                _ => return Err(format!("{who}: expected primary, standby:N or member:N")),
            },
            lasts: seconds(lasts)?,
            other: u64::from_str_radix(other, 16).map_err(|e| format!("{other}: {e}"))?,
        })
    }
}

/// Reads a run: comments, one line `seed N profile P`, with `pace N` behind it where it has one, then its faults, one a line.
pub fn read(text: &str) -> Result<Plan, String> {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let head: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let (seed, profile, pace) = match head[..] {
        ["seed", seed, "profile", profile] => (seed, profile, None),
        ["seed", seed, "profile", profile, "pace", pace] => (seed, profile, Some(pace)),
        _ => return Err("expected `seed N profile P [pace N]`".into()),
    };
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    let (seed, pace) = (number(seed)?, pace.map(number).transpose()?);
    let profile = Profile::named(profile).ok_or_else(|| format!("{profile}: no such profile"))?;
    let faults: Result<Vec<Fault>, String> = lines.map(str::parse).collect();
    Ok(Plan { faults: Some(faults?), ..Plan::at_pace(seed, profile, pace) })
}

/// Writes a run so that `read` finds it again.
pub fn write(plan: &Plan) -> String {
    let faults: Vec<String> = plan.faults().iter().map(|fault| format!("{fault}\n")).collect();
    let pace = plan.profile.pace.map_or(String::new(), |pace| format!(" pace {pace}"));
    format!("seed {} profile {}{pace}\n{}", plan.seed, plan.profile.name, faults.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_written_reads_back() {
        for name in ["heavy", "aimed", "orders"] {
            let plan = Plan::new(7, Profile::named(name).expect("a profile of the list"));
            let again = read(&write(&plan)).expect("it was just written");
            assert_eq!((again.seed, again.profile.name), (plan.seed, plan.profile.name));
            assert_eq!(again.faults(), plan.faults());
        }
    }
}
