//! Keeps dependencies between the crates pointing one way, and the documents' crate free of anything that acts.

use std::collections::BTreeSet;

use super::repository::{CRATES, read};

/// Who may use whom. `tests` sees all.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("proto", &[]),
    ("store", &["proto"]),
    ("sentinel", &["proto", "store"]),
    ("keeper", &["proto", "store"]),
    ("proxy-config", &["proto", "store"]),
    ("chaos", &["proto", "store"]),
    ("cli", &["proto", "store", "sentinel", "keeper", "proxy-config", "chaos"]),
    ("tests", &["proto", "store", "sentinel", "keeper", "proxy-config", "chaos", "cli"]),
];

/// What the documents' crate never needs.
const NOT_IN_PROTO: [&str; 6] =
    ["tokio", "tracing", "rand", "nix", "etcd-client", "tokio-postgres"];

/// Checks the manifests of the workspace.
pub fn check_workspace() -> Vec<String> {
    let members = workspace_members(&read("Cargo.toml").expect("the workspace has a manifest"));
    let known: BTreeSet<String> = CRATES.iter().map(|name| (*name).to_owned()).collect();
    let mut findings = Vec::new();
    if members != known {
        findings.push(format!(
            "Cargo.toml: members are {members:?}, tidy knows {known:?}: say who may use whom"
        ));
    }
    for name in CRATES {
        match read(&format!("{name}/Cargo.toml")) {
            Some(manifest) => findings.extend(check(name, &manifest)),
            None => findings.push(format!("{name}/Cargo.toml: is not there")),
        }
    }
    findings
}

/// Returns what this crate may not depend on but does, for whatever purpose.
pub fn check(name: &str, manifest: &str) -> Vec<String> {
    let allowed =
        MAY_USE.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, allowed)| allowed);
    let mut findings = Vec::new();
    for dependency in dependencies(manifest) {
        let ours = CRATES.contains(&dependency.name.as_str());
        if ours && !allowed.contains(&dependency.name.as_str()) {
            findings.push(format!("{name}/Cargo.toml: {name} may not use {}", dependency.name));
        }
        if name == "proto"
            && !dependency.for_tests
            && NOT_IN_PROTO.contains(&dependency.name.as_str())
        {
            findings.push(format!("{name}/Cargo.toml: documents do not need {}", dependency.name));
        }
    }
    findings
}

struct Dependency {
    name: String,
    for_tests: bool,
}

/// Reads the dependency tables, in the forms `a.workspace = true`, `a = ...` and `[dependencies.a]`. A crate of
/// ours that is renamed is known by its package name, `pgdeputy-<directory>`, or `pgdeputy` for cli.
fn dependencies(manifest: &str) -> Vec<Dependency> {
    let mut found = Vec::new();
    let mut section = String::new();
    for line in manifest.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
            if let Some((table, name)) = section.rsplit_once('.')
                && table.ends_with("dependencies")
            {
                found
                    .push(Dependency { name: our_name(name), for_tests: table.starts_with("dev") });
            }
        } else if section.ends_with("dependencies")
            && let Some((key, value)) = line.split_once('=')
        {
            let name = key.split('.').next().unwrap_or(key).trim().trim_matches('"');
            let package = value.split_once("package").and_then(|(_, rest)| rest.split('"').nth(1));
            let for_tests = section.starts_with("dev");
            found.push(Dependency { name: our_name(package.unwrap_or(name)), for_tests });
        }
    }
    found
}

fn our_name(name: &str) -> String {
    match name {
        "pgdeputy" => "cli".to_owned(),
        other => other.strip_prefix("pgdeputy-").unwrap_or(other).to_owned(),
    }
}

fn workspace_members(manifest: &str) -> BTreeSet<String> {
    let list = manifest
        .split_once("members")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or("", |(list, _)| list);
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_against_the_direction_is_found_in_every_form() {
        for manifest in [
            "[dependencies]\nkeeper.workspace = true\n",
            "[dependencies]\nkeeper = { path = \"../keeper\" }\n",
            "[dependencies]\nk = { package = \"pgdeputy-keeper\", path = \"../keeper\" }\n",
            "[dependencies.keeper]\nworkspace = true\n",
            "[dev-dependencies]\npgdeputy-keeper = \"0.1\"\n",
            "[target.'cfg(unix)'.dependencies]\nkeeper.workspace = true\n",
        ] {
            assert_eq!(
                check("sentinel", manifest),
                ["sentinel/Cargo.toml: sentinel may not use keeper"],
                "{manifest}"
            );
            assert_eq!(check("cli", manifest), Vec::<String>::new());
        }
        assert!(!check("chaos", "[dependencies]\npgdeputy = { path = \"../cli\" }").is_empty());
        assert!(
            !check("store", "[dependencies]\nstore-x = \"1\"\nchaos.workspace = true").is_empty()
        );
    }

    #[test]
    fn documents_need_no_runtime() {
        let found = check(
            "proto",
            "[build-dependencies]\ntonic-prost-build = \"1\"\n[dependencies]\ntokio.workspace = true",
        );
        assert_eq!(found, ["proto/Cargo.toml: documents do not need tokio"]);
        assert!(
            check("proto", "[package]\nname = \"tokio\"\n[dev-dependencies]\ntokio = \"1\"")
                .is_empty()
        );
    }

    #[test]
    fn members_are_read_over_several_lines() {
        let members =
            workspace_members("[workspace]\nmembers = [\n  \"a\",\n  \"b\",\n]\n[x]\ny = [\"c\"]");
        assert_eq!(members.into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
