//! Reads an operator's spec from a file: TOML or JSON by its ending. Unknown fields, impossible relations and
//! newer formats are refused, each with its name.

use std::path::Path;

use proto::ClusterSpec;
use proto::document::FORMAT_VERSION;

use crate::failure::Failure;
use crate::layers::toml_problem;

/// Returns the checked spec in the file at `path`.
pub fn read(path: &Path) -> Result<ClusterSpec, Failure> {
    let about = |problem: String| Failure::usage(format!("--spec {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| about(e.to_string()))?;
    let parsed = match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => toml_spec(&text),
        Some("json") => json_spec(&text),
        Some(_) | None => Err("the name must end in .toml or .json".to_owned()),
    };
    parsed.map_err(about)
}

/// Only the text itself knows its lines, so a spec without `format_version` is read straight from it.
fn toml_spec(text: &str) -> Result<ClusterSpec, String> {
    let about = |e: toml::de::Error| toml_problem(text, &e);
    let value: serde_json::Value = toml::from_str(text).map_err(about)?;
    match value.get("format_version") {
        Some(_) => spec(value),
        None => checked(toml::from_str(text).map_err(about)?),
    }
}

fn json_spec(text: &str) -> Result<ClusterSpec, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    match value.get("format_version") {
        None if value.is_object() => {
            checked(serde_json::from_str(text).map_err(|e| e.to_string())?)
        }
        _ => spec(value),
    }
}

fn checked(spec: ClusterSpec) -> Result<ClusterSpec, String> {
    spec.check().map_err(|e| e.0)?;
    Ok(spec)
}

/// Reads a document that may carry the `format_version` with which specs are stored.
fn spec(mut value: serde_json::Value) -> Result<ClusterSpec, String> {
    let fields = value.as_object_mut().ok_or("it is not a table of settings")?;
    if let Some(found) = fields.remove("format_version") {
        match found.as_u64() {
            Some(found) if found > u64::from(FORMAT_VERSION) => {
                return Err(format!(
                    "format_version {found}, this pgdeputy understands up to {FORMAT_VERSION}: upgrade pgdeputy"
                ));
            }
            Some(1..) => {}
            Some(0) | None => return Err(format!("format_version {found} is none")),
        }
    }
    checked(serde_json::from_value(value).map_err(|e| e.to_string())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_its_line() {
        let toml = "[postgres.parameters]\nwork_mem = \"8MB\"\nmax_connections = 200\n";
        let problem = toml_spec(toml).unwrap_err();
        assert!(problem.contains("line 3") && problem.contains("expected a string"), "{problem}");
        let problem = json_spec("{\n\"lease_ttl\": 4}").unwrap_err();
        assert!(problem.contains("line 2"), "{problem}");
        assert_eq!(
            toml_spec("format_version = 1\nlease_ttl = \"5s\"\n"),
            toml_spec("lease_ttl = \"5s\"\n")
        );
    }

    #[test]
    fn what_is_wrong_with_a_spec_is_named() {
        for (given, named) in [
            (json!({"lease_tll": "4s"}), "lease_tll"),
            (json!({"members": {"a": {"prio": 1}}}), "prio"),
            (json!({"lease_ttl": "4 parsecs"}), "4 parsecs"),
            (json!({"lease_ttl": "1s"}), "etcd grants no less than 2s"),
            (json!({"synchronous": {"count": 0}}), "synchronous.count"),
            (json!({"postgres": {"parameters": {"fsync": "off"}}}), "fsync is pgdeputy's own"),
            (json!({"format_version": 2, "new": 1}), "upgrade pgdeputy"),
            (json!({"format_version": "1"}), "format_version"),
            (json!([]), "table"),
        ] {
            let problem = spec(given).unwrap_err();
            assert!(problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn the_shipped_example_is_a_spec() {
        let text = include_str!("../../../deploy/examples/spec.toml");
        spec(toml::from_str(text).unwrap()).unwrap();
    }

    #[test]
    fn toml_and_stored_json_are_read_alike() {
        let written =
            toml::from_str("lease_ttl = \"6s\"\n[members.c]\npromote = \"never\"").unwrap();
        let spec = spec(written).unwrap();
        assert_eq!(spec.lease_ttl.as_secs(), 6);
        let stored = serde_json::from_str(&proto::document::encode(&spec)).unwrap();
        assert_eq!(super::spec(stored), Ok(spec));
    }
}
