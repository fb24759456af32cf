//! Lists that serializable transactions append to and read. Values are used once, so a list tells in which order it was
//! written, and who has read what of it: what depends on what follows, and must not go in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::cycles::{Edge, Graph};
use super::{Finding, Kind, Operation, Outcome, Step, What};

/// Checks all transactions against the lists that are held at the end.
pub fn check(operations: &[Operation], held: &BTreeMap<i64, Vec<i64>>) -> Vec<Finding> {
    let transactions: Vec<Transaction<'_>> =
        operations.iter().filter_map(Transaction::of).collect();
    let (orders, mut found) = orders(&transactions, held);
    let writers = writers(&transactions);
    found.extend(written_by_nobody(&orders, &writers, &transactions));
    found.extend(lost(&transactions, held));
    for transaction in &transactions {
        found.extend(transaction.blind());
        found.extend(halves(transaction, &writers, &transactions));
    }
    found.extend(graph(&transactions, &orders, &writers).cycles());
    found
}

struct Transaction<'a> {
    operation: &'a Operation,
    steps: &'a [Step],
}

/// Which transaction has written a value.
type Writers = BTreeMap<i64, usize>;

/// The values of each key in the order in which they were written.
type Orders = BTreeMap<i64, Vec<i64>>;

impl<'a> Transaction<'a> {
    fn of(operation: &'a Operation) -> Option<Self> {
        match &operation.what {
            What::Lists(steps) => Some(Self { operation, steps }),
            What::Newest(_) | What::Next { .. } | What::Transfer | What::Total(_) => None,
        }
    }

    fn is(&self, outcome: Outcome) -> bool {
        self.operation.outcome == outcome
    }

    fn appends(&self) -> impl Iterator<Item = (i64, i64)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Append { key, value } => Some((*key, *value)),
            Step::Read { .. } => None,
        })
    }

    fn reads(&self) -> impl Iterator<Item = (i64, &'a [i64])> {
        self.steps.iter().filter_map(|step| match step {
            Step::Read { key, values } => Some((*key, values.as_slice())),
            Step::Append { .. } => None,
        })
    }

    /// A read shows everything that the transaction has appended before it.
    fn blind(&self) -> Option<Finding> {
        let mut own: BTreeSet<(i64, i64)> = BTreeSet::new();
        for step in self.steps {
            match step {
                Step::Append { key, value } => drop(own.insert((*key, *value))),
                Step::Read { key, values } => {
                    let mine = own.iter().filter(|(of, _)| of == key).map(|(_, value)| *value);
                    if let Some(value) = mine.into_iter().find(|value| !values.contains(value)) {
                        let text = format!("{} does not see its own {value}", self.name());
                        return Some(Finding::new(Kind::Internal, text));
                    }
                }
            }
        }
        None
    }

    fn name(&self) -> String {
        format!("client {}'s transaction of {:?}", self.operation.client, self.operation.invoked)
    }
}

/// The longest list that anybody has seen of each key is its order; every other one is the beginning of it.
fn orders(
    transactions: &[Transaction<'_>],
    held: &BTreeMap<i64, Vec<i64>>,
) -> (Orders, Vec<Finding>) {
    let mut orders: Orders = held.clone();
    let told = || transactions.iter().filter(|t| t.is(Outcome::Done));
    for (key, values) in told().flat_map(Transaction::reads) {
        let longest = orders.entry(key).or_default();
        if values.len() > longest.len() {
            *longest = values.to_vec();
        }
    }
    let mut found = Vec::new();
    for transaction in told() {
        for (key, values) in
            transaction.reads().filter(|(key, seen)| !orders[key].starts_with(seen))
        {
            let text = format!(
                "{} read {values:?} of list {key}, which is {:?}",
                transaction.name(),
                orders[&key]
            );
            found.push(Finding::new(Kind::Forked, text));
        }
    }
    for (key, values) in held.iter().filter(|(key, values)| !orders[key].starts_with(values)) {
        let text = format!("list {key} is {values:?} and was read as {:?}", orders[key]);
        found.push(Finding::new(Kind::Forked, text));
    }
    for (key, values) in &orders {
        if values.iter().collect::<BTreeSet<_>>().len() < values.len() {
            let text = format!("list {key} holds a value twice: {values:?}");
            found.push(Finding::new(Kind::Forked, text));
        }
    }
    (orders, found)
}

fn writers(transactions: &[Transaction<'_>]) -> Writers {
    let all = transactions.iter().enumerate();
    all.flat_map(|(at, t)| t.appends().map(move |(_, value)| (value, at))).collect()
}

fn written_by_nobody(
    orders: &Orders,
    writers: &Writers,
    transactions: &[Transaction<'_>],
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (key, value) in orders.iter().flat_map(|(key, values)| values.iter().map(move |v| (key, v)))
    {
        match writers.get(value).map(|at| &transactions[*at]) {
            None => {
                let text = format!("list {key} holds {value}, which nobody wrote");
                found.push(Finding::new(Kind::Phantom, text));
            }
            Some(writer) if writer.is(Outcome::Refused) => {
                let text = format!("list {key} shows {value} of {}, refused", writer.name());
                found.push(Finding::new(Kind::G1a, text));
            }
            Some(_) => {}
        }
    }
    found
}

fn lost(transactions: &[Transaction<'_>], held: &BTreeMap<i64, Vec<i64>>) -> Vec<Finding> {
    let held: BTreeSet<i64> = held.values().flatten().copied().collect();
    let told = transactions.iter().filter(|t| t.is(Outcome::Done));
    told.flat_map(|t| t.appends().map(move |(key, value)| (t, key, value)))
        .filter(|(_, _, value)| !held.contains(value))
        .map(|(t, key, value)| {
            let text = format!("{} appended {value} to list {key}: gone", t.name());
            Finding::new(Kind::Lost, text)
        })
        .collect()
}

/// A read that ends with one of several values that another transaction has appended to the list, and not the last.
fn halves(
    reader: &Transaction<'_>,
    writers: &Writers,
    transactions: &[Transaction<'_>],
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (key, values) in reader.reads().filter(|_| reader.is(Outcome::Done)) {
        let Some(last) = values.last() else { continue };
        let Some(writer) = writers.get(last).map(|at| &transactions[*at]) else { continue };
        if std::ptr::eq(writer.operation, reader.operation) {
            continue;
        }
        let own = writer.appends().filter(|(of, _)| *of == key).last();
        if own.is_some_and(|(_, value)| value != *last) {
            let text = format!("{} read a half of {}", reader.name(), writer.name());
            found.push(Finding::new(Kind::G1b, text));
        }
    }
    found
}

fn graph(transactions: &[Transaction<'_>], orders: &Orders, writers: &Writers) -> Graph {
    let mut graph = Graph::new(transactions.iter().map(Transaction::name).collect());
    let writer = |value: Option<&i64>| value.and_then(|value| writers.get(value).copied());
    for values in orders.values() {
        for pair in values.windows(2) {
            if let (Some(one), Some(next)) = (writer(pair.first()), writer(pair.last())) {
                graph.add(one, next, Edge::WriteWrite);
            }
        }
    }
    for (at, transaction) in transactions.iter().enumerate() {
        for (key, values) in transaction.reads().filter(|_| transaction.is(Outcome::Done)) {
            // What it has appended itself it would see whatever others have done.
            let foreign = values.iter().position(|value| writers.get(value) == Some(&at));
            let seen = foreign.unwrap_or(values.len());
            if let Some(wrote) = writer(seen.checked_sub(1).and_then(|last| values.get(last))) {
                graph.add(wrote, at, Edge::WriteRead);
            }
            if let Some(over) = writer(orders.get(&key).and_then(|order| order.get(seen))) {
                graph.add(at, over, Edge::ReadWrite);
            }
        }
    }
    graph
}
