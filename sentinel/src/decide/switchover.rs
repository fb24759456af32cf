//! A planned change of primary.

use proto::MemberName;
use proto::request::Request;

use super::Inputs;
use super::requests::Answer;

/// Answers the request for a switchover.
pub(crate) fn begin(_inputs: &Inputs, _request: &Request, _to: Option<&MemberName>) -> Answer {
    Answer::Refused("this version cannot do it yet".into())
}
