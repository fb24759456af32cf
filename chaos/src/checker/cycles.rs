//! A graph of what depends on what, and the circles in it, by the algorithm of Tarjan without recursion.

use std::collections::{BTreeSet, VecDeque};

use super::{Finding, Kind};

/// How one transaction depends on another, which came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// It wrote after the other had.
    WriteWrite,
    /// It read what the other had written.
    WriteRead,
    /// It overwrote what the other had read.
    ReadWrite,
}

/// Transactions by their index.
pub struct Graph {
    names: Vec<String>,
    edges: Vec<BTreeSet<(usize, Edge)>>,
}

impl Graph {
    /// A graph without edges.
    pub fn new(names: Vec<String>) -> Self {
        let edges = vec![BTreeSet::new(); names.len()];
        Self { names, edges }
    }

    /// Adds that `later` comes after `earlier`. None comes after itself.
    pub fn add(&mut self, earlier: usize, later: usize, how: Edge) {
        if earlier != later {
            self.edges[earlier].insert((later, how));
        }
    }

    /// Returns a finding for each set of transactions that come after each other.
    pub fn cycles(&self) -> Vec<Finding> {
        let circles = self.components().into_iter().filter(|all| all.len() > 1);
        circles.map(|all| self.finding(&all)).collect()
    }

    fn finding(&self, all: &BTreeSet<usize>) -> Finding {
        let kind = if self.has_cycle(all, &[Edge::WriteWrite]) {
            Kind::G0
        } else if self.has_cycle(all, &[Edge::WriteWrite, Edge::WriteRead]) {
            Kind::G1c
        } else if self.has_single(all) {
            Kind::GSingle
        } else {
            Kind::G2
        };
        let names: Vec<&str> = all.iter().take(4).map(|at| self.names[*at].as_str()).collect();
        let text = format!("{} transactions in a circle: {}", all.len(), names.join(", "));
        Finding::new(kind, text)
    }

    /// Returns whether there is a circle within `all` by edges of these kinds alone.
    fn has_cycle(&self, all: &BTreeSet<usize>, kinds: &[Edge]) -> bool {
        all.iter().any(|at| {
            let next =
                self.edges[*at].iter().filter(|(to, how)| all.contains(to) && kinds.contains(how));
            next.into_iter().any(|(to, _)| self.leads(*to, *at, all, kinds))
        })
    }

    /// Returns whether a circle has just one edge from a read to what overwrote it.
    fn has_single(&self, all: &BTreeSet<usize>) -> bool {
        let kinds = [Edge::WriteWrite, Edge::WriteRead];
        all.iter().any(|at| {
            let over = self.edges[*at].iter().filter(|(_, how)| *how == Edge::ReadWrite);
            over.into_iter().any(|(to, _)| all.contains(to) && self.leads(*to, *at, all, &kinds))
        })
    }

    fn leads(&self, from: usize, to: usize, within: &BTreeSet<usize>, kinds: &[Edge]) -> bool {
        let (mut open, mut seen) = (VecDeque::from([from]), BTreeSet::from([from]));
        while let Some(at) = open.pop_front() {
            if at == to {
                return true;
            }
            for (next, how) in &self.edges[at] {
                if within.contains(next) && kinds.contains(how) && seen.insert(*next) {
                    open.push_back(*next);
                }
            }
        }
        false
    }

    /// The strongly connected components.
    fn components(&self) -> Vec<BTreeSet<usize>> {
        let mut search = Search::new(self.names.len());
        for root in 0..self.names.len() {
            if search.number[root].is_none() {
                search.visit(self, root);
            }
        }
        search.found
    }
}

struct Search {
    number: Vec<Option<usize>>,
    lowest: Vec<usize>,
    on_path: Vec<bool>,
    path: Vec<usize>,
    next: usize,
    found: Vec<BTreeSet<usize>>,
}

impl Search {
    fn new(count: usize) -> Self {
        let (number, lowest, on_path) = (vec![None; count], vec![0; count], vec![false; count]);
        Self { number, lowest, on_path, path: Vec::new(), next: 0, found: Vec::new() }
    }

    fn enter(&mut self, at: usize) {
        (self.number[at], self.lowest[at]) = (Some(self.next), self.next);
        self.next += 1;
        self.path.push(at);
        self.on_path[at] = true;
    }

    fn visit(&mut self, graph: &Graph, root: usize) {
        self.enter(root);
        let edges = |at: usize| graph.edges[at].iter().map(|(to, _)| *to);
        let mut open: Vec<(usize, Vec<usize>)> = vec![(root, edges(root).collect())];
        while let Some((at, left)) = open.last_mut() {
            let at = *at;
            if let Some(to) = left.pop() {
                match self.number[to] {
                    None => {
                        self.enter(to);
                        open.push((to, edges(to).collect()));
                    }
                    Some(number) if self.on_path[to] => {
                        self.lowest[at] = self.lowest[at].min(number);
                    }
                    Some(_) => {}
                }
                continue;
            }
            open.pop();
            if let Some((parent, _)) = open.last() {
                self.lowest[*parent] = self.lowest[*parent].min(self.lowest[at]);
            }
            if self.number[at] == Some(self.lowest[at]) {
                self.leave(at);
            }
        }
    }

    fn leave(&mut self, root: usize) {
        let mut component = BTreeSet::new();
        while let Some(at) = self.path.pop() {
            self.on_path[at] = false;
            component.insert(at);
            if at == root {
                break;
            }
        }
        self.found.push(component);
    }
}
