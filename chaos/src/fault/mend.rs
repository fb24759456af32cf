//! How each fault is undone, and how that is seen.

use std::time::Duration;

use anyhow::{Context, ensure};
use proto::MemberName;
use store::clock;

use super::strike::go_on;
use super::{Fault, Injury};
use crate::lab::Lab;
use crate::lab::freeze::is_stopped;
use crate::session::Session;

/// A signal, an exit and a login take milliseconds; this is for a machine under load.
const UNDONE: Duration = Duration::from_secs(10);

impl Fault {
    /// Does what `remedy` says, and proves that it is undone.
    pub async fn mend(
        self,
        lab: &mut Lab,
        victim: &MemberName,
        injury: Injury,
    ) -> anyhow::Result<()> {
        match self {
            Fault::Crash
            | Fault::CrashTwice
            | Fault::Backend
            | Fault::Walsender
            | Fault::Walreceiver
            | Fault::Switchover
            | Fault::Flapping
            | Fault::EtcdCompaction
            | Fault::CrashBehind
            | Fault::Haproxy => Ok(()),
            Fault::Member
            | Fault::Standby
            | Fault::Stop
            | Fault::RejoinCrash
            | Fault::CfgCrash
            | Fault::CopyCrash => start_again(lab, victim).await,
            Fault::SwitchoverTarget => {
                start_again(lab, injury.killed.as_ref().unwrap_or(victim)).await
            }
            Fault::Freeze
            | Fault::StandbyFreeze
            | Fault::KeeperFreeze
            | Fault::PostmasterFreeze => thaw(lab, victim).await,
            Fault::Partition
            | Fault::CutOff
            | Fault::CutPeers
            | Fault::CutEtcd
            | Fault::Mute
            | Fault::Deaf
            | Fault::Resets
            | Fault::StandbyCut => lab.heal().await.map(drop),
            Fault::Keeper => lab.keeper_back(victim).await,
            Fault::Fencer => start_after_its_end(lab, victim).await,
            Fault::Loss | Fault::MtuHole | Fault::StandbyMtuHole | Fault::Narrow => {
                lab.repair().await
            }
            Fault::Clock => lab.set_clock_right(victim).await,
            Fault::Delay | Fault::Stall => lab.let_go().await,
            Fault::DiskSlow => injury.stutter.context("its disk is not slow")?.end().await,
            Fault::DiskErrors => start_on_a_checked_disk(lab, victim).await,
            Fault::Processor => lab.feed(victim).await,
            Fault::Memory => feed(lab, victim).await,
            Fault::DiskFull => lab.make_room(victim),
            Fault::DiskHung => lab.unhang_disk(victim),
            Fault::Etcd | Fault::EtcdMember | Fault::EtcdLeader | Fault::EtcdQuorum => {
                start_etcd_again(lab).await
            }
            Fault::EtcdLeaderFreeze | Fault::EtcdFreeze => thaw_etcd(lab).await,
            Fault::EtcdFull => lab.empty_etcd().await,
            Fault::EtcdRestored => lab.adopt_store().await,
            Fault::SentinelAndMember => {
                lab.start_sentinels()?;
                start_again(lab, victim).await
            }
            Fault::Sentinel | Fault::Sentinels => lab.start_sentinels().map(drop),
            Fault::SentinelFreeze => {
                let frozen = lab.sentinels().into_iter().filter(|s| is_stopped(s.pid));
                frozen.map(|s| s.pid).try_for_each(go_on)
            }
            Fault::Pgbouncer => lab.start_pgbouncer(0),
            Fault::ProxyConfig => lab.start_proxy_config(),
            Fault::Stranger => lab.kill_other("stranger").await.map(drop),
            Fault::Connections => {
                drop(injury.crowd);
                sessions_again(lab, victim).await
            }
        }
    }
}

async fn start_etcd_again(lab: &mut Lab) -> anyhow::Result<()> {
    lab.start_etcd().await?;
    lab.etcd_is_whole(UNDONE).await
}

async fn thaw_etcd(lab: &mut Lab) -> anyhow::Result<()> {
    lab.thaw_etcd()?;
    lab.etcd_is_whole(UNDONE).await
}

async fn start_again(lab: &mut Lab, victim: &MemberName) -> anyhow::Result<()> {
    lab.member_gone(victim).await?;
    lab.start_member(victim)
}

/// As a host does that found its disk broken.
async fn start_on_a_checked_disk(lab: &mut Lab, victim: &MemberName) -> anyhow::Result<()> {
    lab.kill_member(victim)?;
    lab.member_gone(victim).await?;
    lab.check_disk(victim)?;
    lab.start_member(victim)
}

/// The kernel may have chosen the keeper to be killed.
async fn feed(lab: &mut Lab, victim: &MemberName) -> anyhow::Result<()> {
    lab.feed(victim).await?;
    lab.keeper_back(victim).await
}

/// A keeper cannot go on without its fencer, and ends; a service manager starts it again.
async fn start_after_its_end(lab: &mut Lab, victim: &MemberName) -> anyhow::Result<()> {
    keeper_ends(lab, victim).await?;
    lab.start_member(victim)
}

/// Whoever has started it.
async fn keeper_ends(lab: &Lab, victim: &MemberName) -> anyhow::Result<()> {
    let deadline = clock::now() + UNDONE;
    while lab.keeper_process(victim).is_some() {
        ensure!(clock::now() < deadline, "the keeper of {victim} runs on without its fencer");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// What was frozen alone may have been ended by its fencer meanwhile.
async fn thaw(lab: &mut Lab, victim: &MemberName) -> anyhow::Result<()> {
    let frozen = |lab: &Lab| lab.processes_of(victim).iter().any(|p| is_stopped(p.pid));
    let deadline = clock::now() + UNDONE;
    while frozen(lab) {
        ensure!(clock::now() < deadline, "processes of {victim} stay frozen");
        // It may end between the two looks.
        let _ = lab.thaw(victim);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn sessions_again(lab: &Lab, victim: &MemberName) -> anyhow::Result<()> {
    let deadline = clock::now() + UNDONE;
    loop {
        let opened = Session::open(&lab.application_at(victim)?, UNDONE).await;
        match opened {
            Ok(_) => return Ok(()),
            Err(error) => {
                let late = clock::now() >= deadline;
                ensure!(!late, "{victim} takes no session: {error:#}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
