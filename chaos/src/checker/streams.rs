//! Streams: each client inserts its next number only after the last one was acknowledged, so what is held of a stream is
//! its beginning, as long as was acknowledged, and one longer at most.

use std::collections::BTreeMap;

use super::{Final, Finding, Kind, Operation, Outcome, What};

/// Checks every stream.
pub fn check(operations: &[Operation], held: &Final) -> Vec<Finding> {
    // Per stream: acknowledged, and begun.
    let mut told: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for operation in operations {
        let What::Next { stream, number } = operation.what else { continue };
        let (acknowledged, begun) = told.entry(stream).or_default();
        match operation.outcome {
            Outcome::Done => (*acknowledged, *begun) = (number.max(*acknowledged), number),
            Outcome::Unknown => *begun = number,
            Outcome::Refused => {}
        }
    }
    let mut found = Vec::new();
    for (stream, numbers) in &held.streams {
        let (acknowledged, begun) = told.get(stream).copied().unwrap_or_default();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        let length = i64::try_from(sorted.len()).unwrap_or(i64::MAX);
        if sorted.iter().zip(1..).any(|(number, expected)| *number != expected) {
            found.push(Finding::new(Kind::Hole, format!("stream {stream} holds {sorted:?}")));
        }
        if length < acknowledged {
            let text = format!("stream {stream} ends at {length}; {acknowledged} was acknowledged");
            found.push(Finding::new(Kind::Lost, text));
        }
        if length > begun {
            let text = format!("stream {stream} goes to {length}; {begun} was begun last");
            found.push(Finding::new(Kind::Phantom, text));
        }
    }
    let missing = told.iter().filter(|(stream, (acknowledged, _))| {
        *acknowledged > 0 && !held.streams.contains_key(stream)
    });
    found.extend(missing.map(|(stream, (acknowledged, _))| {
        let text = format!("stream {stream} is not there; {acknowledged} was acknowledged");
        Finding::new(Kind::Lost, text)
    }));
    found
}
