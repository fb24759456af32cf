//! `explain`: the leader's own reason for what it does or waits for. Nothing is computed anew here.

use std::fmt;

use clap::Args;
use proto::explanation::Explanation;
use proto::{ClusterName, StateNumber};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::read::Documents;
use crate::table::wrapped;
use crate::target::Target;
use crate::{output, read, runtime};

#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

/// The leader's explanation, or why there is none.
#[derive(Debug, Serialize)]
struct Explained {
    cluster: ClusterName,
    explanation: Option<Explanation>,
    /// What a reader must know of it: that there is none, or that it is of an earlier state.
    note: Option<String>,
}

/// Runs the command.
pub fn run(args: ExplainArgs) -> Result<u8, Failure> {
    let documents = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        read::documents(&store, &args.target).await
    })?;
    output::show(&explained(args.target.cluster, documents), args.output).map(|()| 0)
}

fn explained(cluster: ClusterName, documents: Documents) -> Explained {
    let note = note(&documents);
    Explained { cluster, explanation: documents.explanation, note }
}

fn note(documents: &Documents) -> Option<String> {
    let now = documents.state.as_ref().map_or(StateNumber(0), |s| s.number);
    match (&documents.explanation, &documents.leader) {
        (Some(of), _) if of.state == now => None,
        (Some(of), _) => Some(format!("this explains state {}; the state is now {now}, ask again", of.state)),
        (None, Some(leader)) => Some(format!("sentinel {} leads and has not explained itself yet", leader.id)),
        (None, None) => {
            Some("no sentinel leads this cluster, so nobody decides and there is no explanation: start one with \
                  `pgdeputy sentinel`".to_owned())
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<String> = self.note.iter().map(|note| format!("note: {note}")).collect();
        if let Some(e) = &self.explanation {
            let names: Vec<&str> = e.promotable.iter().map(|m| m.as_str()).collect();
            let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            lines.push(format!(
                "cluster {}, epoch {}, state {}, says sentinel {}",
                self.cluster, e.epoch, e.state, e.leader
            ));
            lines.push(format!("now: {}", e.verdict));
            lines.push(format!("primary: {}", e.primary));
            lines.push(format!("could take over without loss: {names} ({})", e.promotable_reason));
            lines.extend(e.rejected.iter().map(|r| format!("not {}: {}", r.member, r.reason)));
            lines.extend(e.warnings.iter().map(|w| format!("warning: {w}")));
        }
        for line in lines {
            writeln!(f, "{}", wrapped(&line))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proto::explanation::Rejection;
    use proto::{Epoch, LeaderKey};

    use super::*;

    fn explanation() -> Explanation {
        Explanation {
            leader: "s1".into(),
            state: StateNumber(12),
            epoch: Epoch(3),
            verdict: "waiting for a change: all is as it should be".into(),
            primary: "b was chosen with 0/5000148".into(),
            promotable: vec!["a".parse().unwrap()],
            promotable_reason: "a alone holds every acknowledged commit".into(),
            rejected: vec![Rejection {
                member: "c".parse().unwrap(),
                reason: "it is silent".into(),
            }],
            warnings: vec!["c has been away for long".into()],
        }
    }

    #[test]
    fn the_leaders_words_are_printed_as_they_are() {
        let explained = Explained {
            cluster: "demo".parse().unwrap(),
            explanation: Some(explanation()),
            note: None,
        };
        let expected = "\
cluster demo, epoch 3, state 12, says sentinel s1
now: waiting for a change: all is as it should be
primary: b was chosen with 0/5000148
could take over without loss: a (a alone holds every acknowledged commit)
not c: it is silent
warning: c has been away for long
";
        assert_eq!(explained.to_string(), expected);
    }

    #[test]
    fn a_missing_or_old_explanation_is_said_to_be_so() {
        let mut documents = Documents::default();
        assert!(note(&documents).unwrap().contains("no sentinel leads"));
        let key = LeaderKey {
            id: "s1".into(),
            host: "h".into(),
            listen: None,
            echo: Some("10.0.0.4:40123".into()),
            pgdeputy_version: "0".into(),
        };
        documents.leader = Some(key);
        assert!(note(&documents).unwrap().contains("s1 leads and has not explained"));
        documents.explanation = Some(explanation());
        assert!(note(&documents).unwrap().contains("this explains state 12; the state is now 0"));
    }
}
