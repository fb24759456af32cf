//! Everything that needs a whole cluster, in one program: two of them run at any time, whatever suite they belong to.
//!
//! One suite alone: `cargo test -p pgdeputy-tests --test clusters isolation::`.

mod a_rejoin_fails;
mod all_is_stopped;
mod away_for_long;
mod bad_input;
mod calm;
mod copied_from_a_standby;
mod etcd_has_three_members;
mod etcd_is_away;
mod etcd_is_secured;
mod etcd_restored;
mod frozen;
mod isolation;
mod live_drills;
mod live_drills_apart;
mod many_times;
mod past_the_fork;
mod pgbouncer;
mod planned_by_operators;
mod readers;
mod reads;
mod reboots;
mod routers;
mod sentinels_are_lost;
mod standing_canary;
mod switchover;
mod the_demo;
mod the_keeper_is_lost;
mod the_primary_is_lost;
mod the_primary_is_unwell;
mod the_promise_cannot_be_switched_off;
mod the_voter_is_past_the_fork;
mod two_members;
mod what_operators_order;
mod who_may_become_what;
