//! What is looked at: the repository's files, with paths relative to its root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates' directories, which are the workspace's members.
pub const CRATES: [&str; 8] =
    ["proto", "store", "sentinel", "keeper", "proxy-config", "chaos", "cli", "tests"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
        .to_owned()
}

pub fn read(path: &str) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

pub fn exists(path: &str) -> bool {
    root().join(path).exists()
}

/// Returns the Rust files of all crates, without those that hold only tests.
pub fn sources() -> Vec<(String, String)> {
    let files: Vec<_> =
        CRATES.iter().flat_map(|name| files_below(&format!("{name}/src"))).collect();
    let rust = files.into_iter().filter(|path| path.ends_with(".rs") && !holds_only_tests(path));
    let sources = with_texts(rust);
    assert!(sources.len() > 20, "only {} source files were found", sources.len());
    sources
}

/// Returns whether the file is one that `#[cfg(test)] mod tests;` names, or below such a module.
pub fn holds_only_tests(path: &str) -> bool {
    path.ends_with("/tests.rs")
        || path.contains("/src/") && path.split("/src/").any(|part| part.contains("tests/"))
}

/// Returns all files below a directory, in order; none if it is not there.
pub fn files_below(directory: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut names: Vec<String> = fs::read_dir(root().join(directory))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    for name in names {
        let path = format!("{directory}/{name}");
        if root().join(&path).is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Returns what git would give away. Without git (an unpacked archive) that is everything but the build's output.
pub fn tracked_texts() -> Vec<(String, String)> {
    let listed = Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output();
    let paths: Vec<String> = match listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
        _ => top_level()
            .into_iter()
            .filter(|name| name != "target" && name != ".git")
            .flat_map(below_or_itself)
            .collect(),
    };
    let texts = with_texts(paths.into_iter().filter(|path| path != "Cargo.lock"));
    assert!(texts.len() > 40, "only {} files were found", texts.len());
    texts
}

fn top_level() -> Vec<String> {
    let entries = fs::read_dir(root()).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn below_or_itself(name: String) -> Vec<String> {
    if root().join(&name).is_dir() { files_below(&name) } else { vec![name] }
}

/// Returns the documents for readers, which link to each other.
pub fn documents() -> Vec<(String, String)> {
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned);
    with_texts(top.into_iter().chain(files_below("docs")).filter(|path| path.ends_with(".md")))
}

/// Reads the files that are there and are text.
fn with_texts(paths: impl Iterator<Item = String>) -> Vec<(String, String)> {
    paths.filter_map(|path| read(&path).map(|text| (path, text))).collect()
}
