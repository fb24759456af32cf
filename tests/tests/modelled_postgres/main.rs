//! The simulator's PostgreSQL and a real one do the same steps and have to show the same: what is proven on the model is
//! worth what the two have in common.

#![allow(clippy::unwrap_used, reason = "a test may end where a fact does not hold")]

mod cases;
#[path = "../../../keeper/tests/pgfiles/cluster.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod cluster;
mod real;

use system_tests::sim::scripted::Modelled;

use cases::{Case, Step};
use real::Real;

/// Plays a case on the model and returns what it showed.
fn on_the_model(case: &Case) -> Vec<String> {
    let mut model = Modelled::start(case.names);
    let mut facts = Vec::new();
    for step in case.steps {
        match *step {
            Step::Names(member, names) => model.names(member, names),
            Step::CutOff(member) => model.cut_off(member),
            Step::Commit(number, member) | Step::CommitWithTimeout(number, member) => {
                model.commit(number, member);
            }
            Step::CallWithTimeout(number, member) => {
                model.commit(number, member);
                model.cancel(member);
            }
            Step::Cancel(member) => model.cancel(member),
            Step::Terminate(member) => model.terminate(member),
            Step::Stop(member, part) => model.stop(member, part),
            Step::GoOn(member, part) => model.go_on(member, part),
            Step::Crash(member) => model.crash(member),
            Step::StartAgain(member) => model.start_again(member),
            Step::Promote(member) => model.promote(member),
            Step::TryToStart(member) => model.start_again(member),
            Step::Follow(member, upstream) => model.follow(member, upstream),
            Step::Reserve(member, timelines) => model.reserve(member, timelines),
            Step::Told(number) => facts.push(format!("{step:?}: {:?}", model.told(number))),
            Step::Sees(number, member) => {
                facts.push(format!("{step:?}: {:?}", model.sees(number, member)));
            }
            Step::Holds(number, member) => {
                facts.push(format!("{step:?}: {:?}", model.holds(number, member)));
            }
            Step::Writes(member) => facts.push(format!("{step:?}: {:?}", model.writes(member))),
            Step::Senders(member) => facts.push(format!("{step:?}: {:?}", model.senders(member))),
            Step::Runs(member) => facts.push(format!("{step:?}: {}", model.runs(member))),
        }
    }
    facts
}

/// Plays it on a real one, which has to show `wanted`, each fact within a bound.
async fn on_a_real_one(case: &Case, wanted: &[String]) -> Result<(), String> {
    let mut real = Real::start(case.names).await;
    let mut wanted = wanted.iter();
    for step in case.steps {
        if !step.is_question() {
            real.does(step).await;
            continue;
        }
        let wanted = wanted.next().unwrap();
        let shows = real.shows(step, wanted).await;
        if shows != *wanted {
            return Err(format!("{}: the model shows {wanted}, PostgreSQL {shows}", case.name));
        }
    }
    Ok(())
}

#[test]
fn the_model_shows_by_itself_what_was_measured() {
    let mut wrong = Vec::new();
    for case in cases::all() {
        let facts = on_the_model(case);
        let is_missing = |fact: &&&str| !facts.contains(&(**fact).to_owned());
        wrong.extend(
            case.shows
                .iter()
                .filter(is_missing)
                .map(|fact| format!("{}: {fact} is not among {facts:?}", case.name)),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-long: five dozen real primaries, each with two standbys"]
async fn a_real_postgresql_shows_what_the_modelled_one_shows() {
    let mut differ = Vec::new();
    for case in cases::all() {
        if let Err(difference) = on_a_real_one(case, &on_the_model(case)).await {
            differ.push(difference);
        }
    }
    println!("modelled: cases={} differ={}", cases::all().count(), differ.len());
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// Two that differ are told apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-long: a real primary with two standbys"]
async fn a_difference_is_found() {
    let first = cases::all().next().unwrap();
    let wanted: Vec<String> =
        on_the_model(first).iter().map(|f| f.replace("Done", "Lost")).collect();
    assert!(on_a_real_one(first, &wanted).await.is_err());
}
