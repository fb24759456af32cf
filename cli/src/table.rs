//! Text in columns, and the forms in which people read amounts.

use std::fmt;

/// Rows under headings; each column is as wide as its widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes a table with `headings` and no rows yet.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |i: usize| self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Returns a time such as `83 ms`, `1.25 s` or `4 min 10 s`.
pub fn milliseconds(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.2} s", ms as f64 / 1000.0),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// Returns an amount such as `512 B`, `16.0 MB`; the units are PostgreSQL's, powers of 1024.
pub fn bytes(amount: u64) -> String {
    let mut value = amount as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{amount} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TB")
}

/// What sentences are broken to: fits terminals of 100 columns.
const WIDTH: usize = 98;

/// Breaks `text` into lines of at most 98 characters where words allow it, the later ones indented.
pub fn wrapped(text: &str) -> String {
    broken(text, WIDTH)
}

fn broken(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        let times = [(83, "83 ms"), (1_250, "1.25 s"), (250_000, "4 min 10 s")];
        assert!(times.iter().all(|(ms, text)| milliseconds(*ms) == *text));
        let amounts = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 kB"),
            (16 << 20, "16.0 MB"),
            (u64::MAX, "16777216.0 TB"),
        ];
        assert!(amounts.iter().all(|(amount, text)| bytes(*amount) == *text));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let mut table = Table::new(&["a", "long", "z"]);
        table.row(["wide".into(), "x".into(), String::new()]);
        assert_eq!(table.to_string(), "a     long  z\nwide  x\n");
        assert_eq!(broken("one two three", 7), "one two\n  three");
    }
}
