//! Keeps what is published complete in itself: no pointers to places that readers do not have, no dead links.
//!
//! The planted texts of the tests are put together from pieces, because this file is published too.

use std::collections::BTreeSet;

/// Words before `issue` that make a reference of it.
const WHICH: [&str; 6] = ["later", "next", "earlier", "previous", "own", "another"];

/// Returns the references to directories of our own machines and to tickets.
pub fn references(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let what = private_directory(line).or_else(|| ticket(line));
        findings.extend(what.map(|what| format!("{path}:{}: refers to {what}", number + 1)));
    }
    findings
}

fn private_directory(line: &str) -> Option<String> {
    let outside = [concat!("../", "shared"), concat!("/tmp/", "brief")];
    if let Some(found) = outside.into_iter().find(|directory| line.contains(directory)) {
        return Some(found.to_owned());
    }
    let root = concat!("/", "work");
    line.match_indices(root)
        .find(|&(at, _)| stands_alone(line, at, at + root.len()))
        .map(|_| root.to_owned())
}

/// `/dir` as the start of a path, and neither the end of `some/dir` or `{}/dir` nor the start of `/directory`.
fn stands_alone(line: &str, start: usize, end: usize) -> bool {
    let before = line[..start].chars().next_back();
    let after = line[end..].chars().next();
    let joins = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    !before.is_some_and(|c| joins(c) || matches!(c, '.' | '}' | ')' | ']' | '>' | '~' | '*'))
        && !after.is_some_and(joins)
}

fn ticket(line: &str) -> Option<String> {
    let lower = line.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !(c.is_alphanumeric() || c == '#'))
        .filter(|word| !word.is_empty())
        .collect();
    words.windows(2).find_map(|pair| {
        let numbered =
            pair[1].trim_start_matches('#').chars().next().is_some_and(|c| c.is_ascii_digit());
        let named = matches!(pair[0], "issue" | "issues") && (numbered || pair[1] == "show");
        let which = WHICH.contains(&pair[0]) && matches!(pair[1], "issue" | "issues");
        let closed =
            matches!(pair[0], "fixes" | "closes" | "see") && pair[1].starts_with('#') && numbered;
        (named || which || closed).then(|| format!("a ticket: {} {}", pair[0], pair[1]))
    })
}

/// Returns the links of a Markdown document to files that are not there, and names of documents in its text.
pub fn broken_links(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let linked = links(line).map(|target| resolve(directory, target));
        let named = named_documents(line).map(str::to_owned);
        // Link text often repeats the target's name: once is enough.
        let targets: BTreeSet<String> = linked.chain(named).collect();
        let broken = targets.into_iter().filter(|target| !exists(target));
        findings
            .extend(broken.map(|target| format!("{path}:{}: {target} is not there", number + 1)));
    }
    findings
}

/// The targets of `[text](target)` that are files, without their `#section`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', ' ', '#']).next().unwrap_or("");
        (!target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
            .then_some(target)
    })
}

/// Documents that the text names from the root, such as `docs/safety.md`.
fn named_documents(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || "/._-".contains(c)))
        .filter(|word| word.starts_with("docs/") && word.ends_with(".md"))
}

fn resolve(directory: &str, target: &str) -> String {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> usize {
        references("a.md", text).len()
    }

    #[test]
    fn places_outside_the_repository_are_found() {
        let root = concat!("/", "work");
        for bad in [
            format!("see {root}/main"),
            format!("`{root}`"),
            format!("cd {root}"),
            format!("\"{root}/x\""),
            format!("see ..{}", "/shared/design.md"),
            format!("in /tmp/{}/x", "brief"),
        ] {
            assert_eq!(found(&bad), 1, "{bad}");
        }
        for good in
            ["net/work", "/workspace", "{}/work", "keeper/src/worker.rs", "$dir/work", "~/work"]
        {
            assert_eq!(found(good), 0, "{good}");
        }
    }

    #[test]
    fn tickets_are_found_and_the_word_is_not() {
        let word = "issue";
        for bad in [
            format!("as {word} 2 says"),
            format!("{word} #12"),
            format!("{word}s show"),
            format!("comes in the next {word}"),
            format!("in a Later {word}."),
            format!("{} #7", "Fixes"),
        ] {
            assert_eq!(found(&bad), 1, "{bad}");
        }
        for good in [
            "open an issue",
            "issues a CHECKPOINT",
            "the issue is that 2 of 3 fail",
            "colour #fff",
            "#1 of 3",
        ] {
            assert_eq!(found(good), 0, "{good}");
        }
    }

    #[test]
    fn findings_name_file_and_line() {
        let found = references("docs/x.md", &format!("a\nan {} 12", "issue"));
        assert_eq!(found, [format!("docs/x.md:2: refers to a ticket: {} 12", "issue")]);
    }

    #[test]
    fn dead_links_are_found_whatever_they_start_from() {
        let exists = |path: &str| ["docs/safety.md", "README.md", "docs/decisions"].contains(&path);
        for bad in [
            "[a](docs/none.md)",
            "[a](safety.md)",
            "see `docs/none.md`",
            "[a](docs/safety.md), [b](docs/x#y)",
        ] {
            assert_eq!(broken_links("README.md", bad, exists).len(), 1, "{bad}");
        }
        assert_eq!(
            broken_links("docs/a.md", "[a](../none.md)", exists),
            ["docs/a.md:1: none.md is not there"]
        );
        for good in [
            "[a](safety.md#i1)",
            "[a](../README.md)",
            "[a](https://x/y)",
            "[a](#here)",
            "[a](./decisions/)",
        ] {
            assert_eq!(broken_links("docs/a.md", good, exists), Vec::<String>::new(), "{good}");
        }
    }
}
