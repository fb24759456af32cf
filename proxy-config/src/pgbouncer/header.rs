//! The comments at the head of PgBouncer's file: what its databases were made of, and no more, so that it is not loaded
//! again for what does not concern it.

use std::fmt::Write as _;

use proto::ClusterName;

use crate::header::{Comment, opening};
use crate::route::Routes;

/// Returns the marked lines.
pub(super) fn header(cluster: &ClusterName, routes: &Routes) -> String {
    let mut text = opening(Comment::Pgbouncer, cluster, routes);
    for (name, at) in &routes.members {
        let _ = writeln!(
            text,
            "{} member {name} {} {}",
            Comment::Pgbouncer.mark(),
            at.postgres,
            at.http
        );
    }
    text
}
