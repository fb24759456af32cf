//! Money: whoever adds up all accounts in one statement finds what there was at the beginning.

use super::{Finding, Kind, Outcome, Record, What};

/// Checks every sum, and what the members hold.
pub fn check(record: &Record) -> Vec<Finding> {
    let mut found = Vec::new();
    for operation in &record.operations {
        if let What::Total(sum) = operation.what
            && operation.outcome == Outcome::Done
            && sum != record.money
        {
            let text = format!(
                "client {} found {sum} of {} at {:?}",
                operation.client, record.money, operation.invoked
            );
            found.push(Finding::new(Kind::Bank, text));
        }
    }
    for (member, held) in &record.members {
        if held.total != record.money {
            let text = format!("{member} holds {} of {}", held.total, record.money);
            found.push(Finding::new(Kind::Bank, text));
        }
    }
    found
}
