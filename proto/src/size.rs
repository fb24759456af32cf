//! Amounts of bytes as PostgreSQL writes them: `512kB`, `16MB`, `1GB`, in powers of 1024. Use in documents with
//! `#[serde(with = "proto::size")]`.

use serde::{Deserialize, Deserializer, Serializer};

const UNITS: [(&str, u64); 4] =
    [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];

/// Reads an amount: a plain number of bytes, or one with a unit, whose B may be left out.
pub fn parse(given: &str) -> Result<u64, String> {
    let error = || format!("{given:?} is not an amount such as 1048576, 512kB, 10MB or 1GB");
    let digits = given.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = given.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" | "k" => 1 << 10,
        "MB" | "M" => 1 << 20,
        "GB" | "G" => 1 << 30,
        "TB" | "T" => 1 << 40,
        _ => return Err(error()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(error)
}

/// Returns the amount with the largest unit that keeps it whole.
pub fn show(bytes: u64) -> String {
    let whole = UNITS.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    whole.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// Writes an amount as text.
pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&show(*value))
}

/// Reads an amount from text.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_postgresql_means_them_and_shown_as_they_are_read() {
        for (text, bytes) in
            [("16MB", 16 << 20), ("512kB", 512 << 10), ("3", 3), ("1TB", 1 << 40), ("0", 0)]
        {
            assert_eq!(parse(text), Ok(bytes));
            assert_eq!(show(bytes), text);
        }
        assert_eq!(parse("10M"), Ok(10 << 20));
        for bad in ["", "ten", "10 m", "99999999999999999999", "99999999999TB", "-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
