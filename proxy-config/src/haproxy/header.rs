//! The comments at the head of HAProxy's file: all that its routes were made of.

use std::fmt::Write as _;

use proto::{ClusterName, size};

use crate::header::{Comment, list, opening};
use crate::route::Routes;

pub(super) fn header(cluster: &ClusterName, routes: &Routes) -> String {
    let mark = Comment::Haproxy.mark();
    let mut text = opening(Comment::Haproxy, cluster, routes);
    let _ = writeln!(text, "{mark} fresh{}", list(&routes.fresh));
    for (pool, members) in &routes.pools {
        let _ = writeln!(text, "{mark} pool {pool}{}", list(members));
    }
    let limits = &routes.limits;
    let (time, drain) = (proto::time::show(limits.time), proto::time::show(limits.drain));
    let _ = writeln!(text, "{mark} limits {} {time} {drain}", size::show(limits.bytes));
    for (name, at) in &routes.members {
        let pool: String = at.pool.iter().map(|pool| format!(" {pool}")).collect();
        let _ = writeln!(text, "{mark} member {name} {} {}{pool}", at.postgres, at.http);
    }
    text
}
