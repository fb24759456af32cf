//! What one process makes of `synchronous_standby_names`, read with a parser of its own.

/// `ANY k (...)` or `FIRST k (...)`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub first: bool,
    pub k: usize,
    pub names: Vec<String>,
}

impl Rule {
    /// Reads the setting; an empty one asks for nobody.
    pub fn parse(text: &str) -> Self {
        let Some((head, list)) = text.split_once('(') else { return Self::default() };
        let mut words = head.split_whitespace();
        let first = words.next() == Some("FIRST");
        let k = words.next().and_then(|k| k.parse().ok()).unwrap_or(1);
        let names = list.trim_end_matches(')').split(',');
        let names = names.map(|n| n.trim().trim_matches('"').to_owned()).collect();
        Self { first, k, names }
    }

    /// Returns what `sync_priority` shows for `name`.
    pub fn priority(&self, name: &str) -> i32 {
        match self.names.iter().position(|n| n == name) {
            None => 0,
            Some(_) if !self.first => 1,
            Some(index) => index as i32 + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_priorities_are_postgresqls() {
        let any = Rule::parse("ANY 1 (\"b.e7\", \"c.e7\")");
        assert_eq!((any.k, any.priority("c.e7"), any.priority("d.e7")), (1, 1, 0));
        let first = Rule::parse("FIRST 2 (\"x\", \"b.e7\", \"c.e7\")");
        assert_eq!((first.k, first.priority("b.e7"), first.priority("c.e7")), (2, 2, 3));
        assert_eq!(Rule::parse(""), Rule::default());
    }
}
