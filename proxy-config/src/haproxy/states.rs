//! The server states that a starting HAProxy takes over, so that nobody gets writes by being new.

use std::fmt::Write as _;

use super::{Kind, backends};
use crate::HaproxyConfig;
use crate::route::Routes;

/// The columns are those of `show servers state` in version 1 of that format.
const STATE_COLUMNS: &str = "\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr \
srv_agent_addr srv_agent_port
";

const UP: u8 = 2;
const DOWN: u8 = 0;

pub(super) fn states(config: &HaproxyConfig, routes: &Routes) -> String {
    let all = backends(config);
    // HAProxy counts its proxies from 1, which is the runtime socket's own, frontends first.
    let first = 2 + all.len();
    let mut text = STATE_COLUMNS.to_owned();
    for (id, backend) in (first..).zip(&all) {
        for (number, (member, at)) in (1..).zip(backend.servers(routes)) {
            let (up, weight) = match &backend.kind {
                Kind::Write if routes.write.as_ref() == Some(member) => (UP, 1),
                Kind::Fresh if routes.fresh.contains(member) => (UP, 1),
                Kind::Write | Kind::Fresh => (DOWN, 1),
                Kind::Read(pool) => {
                    (UP, u8::from(routes.readers_of(pool.as_ref()).contains(member)))
                }
            };
            let _ = writeln!(
                text,
                "{id} {} {number} {member} - {up} 0 {weight} 1 0 1 0 0 6 0 0 0 - {} - 0 0 - - 0",
                backend.name, at.postgres.port
            );
        }
    }
    text
}
