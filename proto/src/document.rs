//! The envelope of every stored document: JSON with a `format_version` that is looked at before anything else.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The newest format this binary writes and understands.
pub const FORMAT_VERSION: u32 = 1;

/// A document that is stored in etcd or beside a data directory.
pub trait Document: Serialize + DeserializeOwned {
    /// The word for it in errors and logs.
    const KIND: &'static str;
}

/// Why a stored text is not a document that this binary may act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The writer is newer than this binary: stand by, and never write over it.
    #[error(
        "{kind} has format_version {found}, this pgdeputy understands up to {known}: upgrade pgdeputy on this host"
    )]
    NewerFormat { kind: &'static str, found: u64, known: u32 },
    /// The text is damaged, or has fields that this format does not know.
    #[error("{kind} cannot be read: {problem}")]
    Malformed { kind: &'static str, problem: String },
}

/// Returns the document as one line of JSON with its `format_version` first.
pub fn encode<D: Document>(document: &D) -> String {
    #[derive(Serialize)]
    struct Envelope<'a, D> {
        format_version: u32,
        #[serde(flatten)]
        document: &'a D,
    }
    serde_json::to_string(&Envelope { format_version: FORMAT_VERSION, document })
        .expect("documents have string keys and finite numbers only")
}

/// How stored texts become documents: anew each time, or by somebody who remembers what they were made of.
pub trait Reader {
    /// Returns the document that stands under `key`, as `decode` does.
    fn read<D: Document + Clone + 'static>(
        &mut self,
        key: &str,
        text: &[u8],
    ) -> Result<D, DecodeError>;
}

/// Reads every text anew.
pub struct Anew;

impl Reader for Anew {
    fn read<D: Document + Clone + 'static>(
        &mut self,
        _: &str,
        text: &[u8],
    ) -> Result<D, DecodeError> {
        decode(text)
    }
}

/// How `encode` begins each document of this version, before its first field.
const BEGINNING: &[u8] = b"{\"format_version\":1,\"";

const _: () = assert!(FORMAT_VERSION == 1 && BEGINNING[18] == b'1', "BEGINNING names the version");

/// Reads a document. The version is judged first, so that a newer format is never taken for a damaged one.
pub fn decode<D: Document>(text: &[u8]) -> Result<D, DecodeError> {
    as_written(text).map_or_else(|| decode_any(text), Ok)
}

/// Reads what `encode` has written, in one pass; `None` for any other text. A text is judged by `decode_any`, whatever is
/// wrong with it.
fn as_written<D: Document>(text: &[u8]) -> Option<D> {
    let fields = text.strip_prefix(BEGINNING)?;
    let mut own = Vec::with_capacity(text.len());
    own.extend_from_slice(b"{\"");
    own.extend_from_slice(fields);
    serde_json::from_slice(&own).ok()
}

fn decode_any<D: Document>(text: &[u8]) -> Result<D, DecodeError> {
    let malformed = |problem: String| DecodeError::Malformed { kind: D::KIND, problem };
    let mut value: serde_json::Value =
        serde_json::from_slice(text).map_err(|e| malformed(e.to_string()))?;
    let fields =
        value.as_object_mut().ok_or_else(|| malformed("it is not a JSON object".into()))?;
    let found = fields
        .remove("format_version")
        .and_then(|v| v.as_u64())
        .ok_or_else(|| malformed("format_version is missing".into()))?;
    if found > u64::from(FORMAT_VERSION) {
        return Err(DecodeError::NewerFormat { kind: D::KIND, found, known: FORMAT_VERSION });
    }
    serde_json::from_value(value).map_err(|e| malformed(e.to_string()))
}
