//! How each fault is struck, and how it is seen to have bitten.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use proto::{MemberName, Phase};

use super::{Fault, Injury};
use crate::lab::network::Site;
use crate::lab::network::cut::{Cut, Others, Way};
use crate::lab::network::flaw::{Flaw, Kind};
use crate::lab::network::relay::Late;
use crate::lab::{Lab, Part, ServerProcess, Struck};

/// etcd elects within two seconds, and sentinels within one; this is for a machine under load.
const ELECTED: Duration = Duration::from_secs(30);

/// A switchover or a way back begins within a second; this is for a machine under load.
const BEGUN: Duration = Duration::from_secs(30);

/// One way, as between two continents' near coasts. A login takes some round trips, and clients give it half a second.
const FAR: Duration = Duration::from_millis(25);

/// A link that comes and goes: cut for less than silence takes, and whole for long enough to be heard again.
const FLAPS: [(Duration, Duration); 4] =
    [(Duration::from_millis(600), Duration::from_millis(700)); 4];

impl Fault {
    /// Breaks `victim`, and proves that it is broken; returns when it was, and what the undoing needs.
    pub async fn strike(self, lab: &mut Lab, victim: &MemberName) -> anyhow::Result<Injury> {
        let isolated = Cut::isolated(victim);
        let struck = match self {
            Fault::Member | Fault::Standby => lab.kill_member(victim)?,
            Fault::Freeze | Fault::StandbyFreeze => lab.freeze(victim, Part::Member).await?,
            Fault::PostmasterFreeze => lab.freeze(victim, Part::Postmaster).await?,
            Fault::KeeperFreeze => freeze_keeper(lab, victim).await?,
            Fault::Crash | Fault::CrashTwice => lab.kill_postgres(victim)?,
            Fault::Backend => lab.kill_server_process(victim, ServerProcess::Session).await?,
            Fault::Walsender => lab.kill_server_process(victim, ServerProcess::Walsender).await?,
            Fault::Walreceiver => {
                lab.kill_server_process(victim, ServerProcess::Walreceiver).await?
            }
            Fault::Keeper => lab.kill_keeper(victim).await?,
            Fault::Fencer => lab.kill_fencer(victim).await?,
            Fault::Partition | Fault::StandbyCut => lab.partition(&isolated).await?,
            Fault::CutOff => lab.partition(&Cut::between(victim, Others::Everybody)).await?,
            Fault::CutPeers => lab.partition(&Cut::between(victim, Others::Members)).await?,
            Fault::CutEtcd => lab.partition(&Cut::between(victim, Others::Etcd)).await?,
            Fault::Mute => lab.partition(&isolated.way(Way::Out)).await?,
            Fault::Deaf => lab.partition(&isolated.way(Way::In)).await?,
            Fault::Resets => lab.partition(&isolated.reset()).await?,
            Fault::Flapping => flap(lab, &isolated).await?,
            Fault::DiskFull => lab.fill_disk(victim).await?,
            Fault::DiskHung => lab.hang_disk(victim).await?,
            Fault::Etcd => lab.kill_etcd()?,
            Fault::EtcdMember => kill_etcd_follower(lab).await?,
            Fault::EtcdLeader => kill_etcd_leader(lab).await?,
            Fault::EtcdLeaderFreeze => freeze_etcd_leader(lab).await?,
            Fault::EtcdQuorum => kill_etcd_quorum(lab).await?,
            Fault::EtcdFreeze => freeze_etcd(lab).await?,
            Fault::EtcdFull => lab.fill_etcd().await?,
            Fault::EtcdCompaction => lab.compact_etcd().await?,
            Fault::EtcdRestored => lab.set_etcd_back().await?,
            Fault::SentinelAndMember => lab.kill_leader_with(victim).await?,
            Fault::Sentinel => kill_leading_sentinel(lab).await?,
            Fault::SentinelFreeze => freeze_leading_sentinel(lab).await?,
            Fault::Sentinels => kill_sentinels(lab).await?,
            Fault::Haproxy => lab.restart_haproxy().await?,
            Fault::Pgbouncer => lab.kill_other("pgbouncer1").await?,
            Fault::ProxyConfig => lab.kill_other("proxy-config").await?,
            Fault::Switchover => lab.ask_for_switchover(None).await?.0,
            Fault::Stop => lab.stop_member(victim)?,
            Fault::Stranger => lab.start_stranger(victim).await?,
            Fault::Connections => {
                let (struck, crowd) = lab.exhaust(victim).await?;
                return Ok(Injury { crowd, ..struck.into() });
            }
            Fault::SwitchoverTarget => return kill_target(lab).await,
            Fault::RejoinCrash => kill_while_it_comes_back(lab, victim).await?,
            Fault::CrashBehind => lab.crash_ahead_of_a_standby(victim).await?,
            Fault::Loss | Fault::MtuHole | Fault::StandbyMtuHole | Fault::Narrow => {
                lab.impair(&self.flaw(victim)).await?
            }
            Fault::Delay | Fault::Stall => lab.hold_up(victim, self.lateness()).await?,
            Fault::CfgCrash => lab.crash_in_a_change_of_voters(victim).await?,
            Fault::CopyCrash => lab.crash_in_a_copy(victim).await?,
            Fault::Clock => lab.skew_clock(victim).await?,
            Fault::DiskSlow => {
                let (struck, stutter) = lab.slow_disk(victim).await?;
                return Ok(Injury { stutter: Some(stutter), ..struck.into() });
            }
            Fault::DiskErrors => lab.break_disk(victim)?,
            Fault::Processor => lab.starve(victim).await?,
            Fault::Memory => lab.exhaust_memory(victim).await?,
        };
        Ok(struck.into())
    }

    fn lateness(self) -> Late {
        if self == Fault::Delay { Late::By(FAR) } else { Late::Held }
    }

    /// Which bad link it is, for the faults that are one.
    fn flaw(self, victim: &MemberName) -> Flaw {
        let (to, kind) = match self {
            Fault::Loss => (Others::Everybody, Kind::Loss(10)),
            Fault::Narrow => (Others::Everybody, Kind::Narrow(400)),
            // As behind a tunnel with the smallest MTU that IPv4 asks for.
            _ => (Others::Cluster, Kind::LongLost(576)),
        };
        Flaw { site: Site::Member(victim.clone()), to, kind }
    }
}

async fn freeze_keeper(lab: &Lab, victim: &MemberName) -> anyhow::Result<Struck> {
    let keeper = lab.keeper_process(victim).context("its keeper does not run")?;
    lab.freeze_process(keeper).await
}

/// Kills the member that is to take over once the handing over has begun.
async fn kill_target(lab: &mut Lab) -> anyhow::Result<Injury> {
    lab.ask_for_switchover(None).await?;
    let begun = lab.await_cluster("a switchover is under way", BEGUN, |cluster| {
        match &cluster.state.as_ref()?.phase {
            Phase::Switchover(switchover) => Some(switchover.target.clone()),
            Phase::Open | Phase::Founding { .. } | Phase::Promoting | Phase::Restarting => None,
        }
    });
    let target = begun.await?;
    let struck = lab.kill_member(&target)?;
    Ok(Injury { killed: Some(target), ..struck.into() })
}

async fn kill_while_it_comes_back(lab: &mut Lab, victim: &MemberName) -> anyhow::Result<Struck> {
    let epoch = lab.cluster().await?.epoch();
    let struck = lab.kill_postgres(victim)?;
    let begun = lab.await_cluster("it comes back", BEGUN, |cluster| {
        let rejoin = cluster.reports.get(victim)?.rejoin.as_ref()?;
        (rejoin.epoch > epoch).then_some(())
    });
    begun.await?;
    lab.kill_member(victim)?;
    Ok(struck)
}

async fn kill_etcd_follower(lab: &mut Lab) -> anyhow::Result<Struck> {
    let leads = lab.etcd_leader(&[], ELECTED).await?;
    lab.kill_etcd_member(usize::from(leads == 0))
}

async fn kill_etcd_leader(lab: &mut Lab) -> anyhow::Result<Struck> {
    let leads = lab.etcd_leader(&[], ELECTED).await?;
    let struck = lab.kill_etcd_member(leads)?;
    lab.etcd_leader(&[leads], ELECTED).await.map(|_| struck)
}

async fn freeze_etcd_leader(lab: &mut Lab) -> anyhow::Result<Struck> {
    let leads = lab.etcd_leader(&[], ELECTED).await?;
    let struck = lab.freeze_etcd_member(leads).await?;
    lab.etcd_leader(&[leads], ELECTED).await.map(|_| struck)
}

async fn kill_etcd_quorum(lab: &mut Lab) -> anyhow::Result<Struck> {
    let leads = lab.etcd_leader(&[], ELECTED).await?;
    let struck = lab.kill_etcd_member(leads)?;
    lab.kill_etcd_member(usize::from(leads == 0))?;
    etcd_is_silent(lab).await.map(|()| struck)
}

async fn freeze_etcd(lab: &Lab) -> anyhow::Result<Struck> {
    let struck = lab.freeze_etcd().await?;
    etcd_is_silent(lab).await.map(|()| struck)
}

async fn etcd_is_silent(lab: &Lab) -> anyhow::Result<()> {
    ensure!(lab.store().read(lab.keys().prefix()).await.is_err(), "etcd answers as before");
    Ok(())
}

async fn kill_leading_sentinel(lab: &mut Lab) -> anyhow::Result<Struck> {
    let leader = lab.leading_sentinel().await?.context("no sentinel leads")?;
    let struck = lab.kill_sentinel(&leader).await?;
    lab.led_by_another(&[leader], ELECTED).await.map(|_| struck)
}

async fn freeze_leading_sentinel(lab: &mut Lab) -> anyhow::Result<Struck> {
    let leader = lab.leading_sentinel().await?.context("no sentinel leads")?;
    let struck = lab.freeze_process(leader.pid).await?;
    lab.led_by_another(&[leader], ELECTED).await.map(|_| struck)
}

async fn kill_sentinels(lab: &mut Lab) -> anyhow::Result<Struck> {
    let mut struck = None;
    for sentinel in lab.sentinels() {
        let at = lab.kill_sentinel(&sentinel).await?;
        struck.get_or_insert(at);
    }
    ensure!(lab.sentinels().is_empty(), "a sentinel still runs");
    struck.context("no sentinel runs")
}

async fn flap(lab: &mut Lab, cut: &Cut) -> anyhow::Result<Struck> {
    let mut struck = None;
    for (away, back) in FLAPS {
        let at = lab.partition(cut).await?;
        struck.get_or_insert(at);
        tokio::time::sleep(away).await;
        lab.heal().await?;
        tokio::time::sleep(back).await;
    }
    struck.context("the link was cut at least once")
}

/// Thaws a process that was frozen by its id.
pub(super) fn go_on(pid: i32) -> anyhow::Result<()> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT)
        .with_context(|| format!("let process {pid} go on"))
}
