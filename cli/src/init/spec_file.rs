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
    let value = match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => toml::from_str(&text).map_err(|e| toml_problem(&text, &e)),
        Some("json") => serde_json::from_str(&text).map_err(|e| e.to_string()),
        Some(_) | None => Err("the name must end in .toml or .json".to_owned()),
    };
    value.and_then(spec).map_err(about)
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
    let spec: ClusterSpec = serde_json::from_value(value).map_err(|e| e.to_string())?;
    spec.check().map_err(|e| e.0)?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
