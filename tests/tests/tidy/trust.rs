//! Finds access rules of PostgreSQL that ask for no password: lines of `pg_hba.conf` with the method `trust`, and
//! options of initdb and images that make such lines.
//!
//! The one rule: it looks for the shape of a rule and not for the word, so that prose may speak of trust; and code
//! that refuses such a rule, or a test that shows the refusal, may hold one if it says so within a few lines.
//! The planted texts of the tests are put together from pieces, because this file is looked at too.

const METHOD: &str = "trust";

/// First words of a rule, and the fewest and most words between them and the method.
const LOCAL: (usize, usize) = (2, 4);
const HOST: (usize, usize) = (3, 6);

/// Words that stand in rules and hardly in prose.
const OF_RULES: [&str; 6] = ["all", "replication", "samehost", "samenet", "sameuser", "samerole"];

const OPTIONS: [&str; 6] =
    ["-A", "--auth", "--auth-local", "--auth-host", "POSTGRES_HOST_AUTH_METHOD", "auth_method"];

/// Words by which code and tests say that they refuse.
const REFUSALS: [&str; 4] = ["refus", "is_err", "unwrap_err", "expect_err"];
/// How far from the rule that may be said: a loop over bad rules fits.
const NEAR: usize = 8;

/// Returns the rules in this text that let somebody in without a password.
pub fn check(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if line.contains(METHOD) && lets_in(line) && !refused_near(&lines, number) {
            findings.push(format!(
                "{path}:{}: lets in without a password: {}",
                number + 1,
                line.trim()
            ));
        }
    }
    findings
}

fn lets_in(line: &str) -> bool {
    let words: Vec<&str> = line
        .split(|c: char| !(c.is_alphanumeric() || "_-./:{}+$".contains(c)))
        .filter(|word| !word.is_empty())
        .collect();
    let methods = words.iter().enumerate().filter(|(_, word)| **word == METHOD);
    methods.into_iter().any(|(at, _)| {
        let option = at > 0 && OPTIONS.contains(&words[at - 1]);
        option || (0..at).any(|start| is_rule(&words[start..at]))
    })
}

/// Judges the words of a rule up to its method.
fn is_rule(words: &[&str]) -> bool {
    let (fewest, most) = match words[0] {
        "local" => LOCAL,
        "host" | "hostssl" | "hostnossl" | "hostgssenc" | "hostnogssenc" => HOST,
        _ => return false,
    };
    let between = &words[1..];
    (fewest..=most).contains(&between.len()) && between.iter().any(|word| belongs_to_rules(word))
}

fn belongs_to_rules(word: &str) -> bool {
    let network = word.contains('/') && word.starts_with(|c: char| c.is_ascii_digit() || c == ':');
    OF_RULES.contains(&word) || word.starts_with('{') || word.starts_with('$') || network
}

fn refused_near(lines: &[&str], number: usize) -> bool {
    let near = &lines[number.saturating_sub(NEAR)..(number + NEAR + 1).min(lines.len())];
    near.iter().any(|line| REFUSALS.iter().any(|word| line.to_lowercase().contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> bool {
        !check("a.rs", &text.replace("OPEN", METHOD)).is_empty()
    }

    #[test]
    fn rules_and_options_that_let_in_are_found() {
        for bad in [
            "local all all OPEN",
            "local   replication   all   OPEN  # for backups",
            "host all all 127.0.0.1/32 OPEN",
            "host all all 127.0.0.1 255.255.255.255 OPEN",
            "hostssl replication repl ::1/128 OPEN",
            "format!(\"host all {user} {address} OPEN\\n\")",
            "[\"host\", \"all\", \"all\", \"0.0.0.0/0\", \"OPEN\"]",
            "echo \"host all $USER samenet OPEN\" >> pg_hba.conf",
            "initdb -A OPEN -D x",
            "initdb --auth=OPEN",
            ".args([\"--auth-local\", \"OPEN\"])",
            "POSTGRES_HOST_AUTH_METHOD=OPEN",
        ] {
            assert!(found(bad), "not found: {bad}");
        }
    }

    #[test]
    fn prose_other_methods_and_refusals_are_no_findings() {
        for good in [
            "no OPEN anywhere, also not in the demo",
            "the local operator must not OPEN the clock of a host",
            "host all all all scram-sha-256",
            "if method == \"OPEN\" { return bad(line); }",
            "fn rules_without_password_are_refused() {\n    for line in [\n        \"local all all OPEN\",\n    ] {}\n}",
            "let error = spec_with(\"host all all all OPEN\")\n    .check()\n    .unwrap_err();",
        ] {
            assert!(!found(good), "{good}");
        }
    }

    #[test]
    fn a_refusal_far_away_excuses_nothing() {
        assert!(found(&format!("// refused\n{}local all all OPEN", "\n".repeat(NEAR))));
    }
}
