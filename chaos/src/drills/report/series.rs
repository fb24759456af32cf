//! Numbers over the time of a run, in steps of equal length.

use std::time::Duration;

use proto::Moment;

/// The length of a step.
pub const STEP: Duration = Duration::from_millis(250);

/// Returns how many of these moments fall into each step, as a rate per second.
pub fn rates(from: Moment, until: Moment, moments: impl Iterator<Item = Moment>) -> Vec<f64> {
    let mut counts = vec![0.0; steps(from, until)];
    for at in moments.filter(|at| *at >= from) {
        if let Some(count) = counts.get_mut(step(from, at)) {
            *count += 1.0 / STEP.as_secs_f64();
        }
    }
    counts
}

/// Returns the 99th percentile of the times that ended in each step, in milliseconds; none where nothing ended.
pub fn latencies(
    from: Moment,
    until: Moment,
    times: impl Iterator<Item = (Moment, Duration)>,
) -> Vec<Option<f64>> {
    let mut all: Vec<Vec<Duration>> = vec![Vec::new(); steps(from, until)];
    for (at, took) in times.filter(|(at, _)| *at >= from) {
        if let Some(times) = all.get_mut(step(from, at)) {
            times.push(took);
        }
    }
    let p99 = |mut times: Vec<Duration>| {
        times.sort();
        let rank = (times.len() * 99).div_ceil(100);
        times.get(rank.checked_sub(1)?).map(|took| took.as_secs_f64() * 1e3)
    };
    all.into_iter().map(p99).collect()
}

fn steps(from: Moment, until: Moment) -> usize {
    step(from, until) + 1
}

fn step(from: Moment, at: Moment) -> usize {
    usize::try_from(at.since(from).as_millis() / STEP.as_millis()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::since_boot(Duration::from_millis(ms))
    }

    #[test]
    fn rates_and_latencies_are_of_the_step_in_which_something_ended() {
        let moments = [990, 1000, 1100, 1249, 1250, 9000].map(at);
        assert_eq!(rates(at(1000), at(1500), moments.into_iter()), [12.0, 4.0, 0.0]);
        let times = [(at(1000), Duration::from_millis(3)), (at(1100), Duration::from_millis(8))];
        let p99 = latencies(at(1000), at(1500), times.into_iter());
        assert_eq!(p99, [Some(8.0), None, None]);
    }
}
