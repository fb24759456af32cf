//! Holds the whole repository to the rules that no compiler checks.
//!
//! The one rule of these tests: each rule is a function from texts to findings, and each has planted bad texts
//! that it must find. A rule that finds nothing because it looks at nothing fails.

#[path = "tidy/closure.rs"]
mod closure;
#[path = "tidy/crates.rs"]
mod crates;
#[path = "tidy/purity.rs"]
mod purity;
#[path = "tidy/repository.rs"]
mod repository;
#[path = "tidy/rust_code.rs"]
mod rust_code;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/texts.rs"]
mod texts;
#[path = "tidy/trust.rs"]
mod trust;

#[test]
fn deciders_renderers_and_documents_cannot_do_anything() {
    let findings = purity::files()
        .into_iter()
        .flat_map(|path| match repository::read(&path) {
            Some(text) => purity::check(&path, &text),
            None => vec![format!(
                "{path}: is not there; if it moved, name its new place in tidy/purity.rs"
            )],
        })
        .collect();
    expect_none(
        findings,
        "decide in a function that cannot do anything: take values, return values",
    );
}

#[test]
fn what_deciders_lean_on_is_pure_too() {
    expect_none(
        closure::check_all(),
        "take the value as an argument, or move what is pure into a file of its own and name it in tidy/purity.rs",
    );
}

#[test]
fn crates_depend_one_way() {
    expect_none(
        crates::check_workspace(),
        "proto <- store <- sentinel, keeper, proxy-config, chaos <- cli <- tests",
    );
}

#[test]
fn source_files_are_short_enough_to_read_in_one_go() {
    let (findings, warnings) = sizes::check(&repository::sources());
    for warning in warnings {
        println!("{warning}");
    }
    expect_none(findings, "split the file by what its parts answer");
}

#[test]
fn nothing_refers_to_what_readers_of_this_repository_do_not_have() {
    let findings = repository::tracked_texts()
        .iter()
        .flat_map(|(path, text)| texts::references(path, text))
        .collect();
    expect_none(findings, "restate what readers need instead of pointing outside");
}

#[test]
fn nobody_is_let_in_without_a_password() {
    let findings = repository::tracked_texts()
        .iter()
        .flat_map(|(path, text)| trust::check(path, text))
        .collect();
    expect_none(findings, "use scram-sha-256, also in demos and tests");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let documents = repository::documents();
    assert!(documents.iter().any(|(path, _)| path == "README.md"), "README.md is not there");
    let findings = documents
        .iter()
        .flat_map(|(path, text)| texts::broken_links(path, text, repository::exists))
        .collect();
    expect_none(findings, "correct the link, or add the file that it promises");
}

fn expect_none(findings: Vec<String>, remedy: &str) {
    assert!(
        findings.is_empty(),
        "{} findings; {remedy}\n  {}",
        findings.len(),
        findings.join("\n  ")
    );
}
