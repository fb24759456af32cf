//! Asks, now and then, whether this member could come back by a rewind or a copy: itself, and every other member just as
//! a rewind would. What the answers mean is decided in `postgres::rewindable`.
//!
//! Rule: told is only what was found twice in a row, because members come and go; and nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use proto::report::Server;
use proto::{Epoch, MemberName, Moment};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::facts::{Process, Room};
use crate::postgres::rewindable::{Found, ask_other, ask_own, data_bytes, problems};
use crate::postgres::session::SqlError;
use crate::postgres::settings::REWIND_ROLE;
use crate::postgres::source::Source;
use crate::worker::{Worker, address};

/// Soon after a change, and for what is to be found a second time.
const SOON: Duration = Duration::from_secs(5);

/// What is asked about changes when people change it.
const EVERY: Duration = Duration::from_secs(60);

/// The size of the data is a sum over all its files.
const ROOM_EVERY: Duration = Duration::from_secs(900);

/// Asks until `stop`.
pub async fn follow(worker: Arc<Worker>, stop: CancellationToken) {
    tokio::select! {
        () = ask_again_and_again(&worker) => {}
        () = stop.cancelled() => {}
    }
}

async fn ask_again_and_again(worker: &Worker) {
    let mut asking = Asking::default();
    loop {
        sleep(SOON).await;
        if !asking.is_due(worker) {
            continue;
        }
        match asking.ask(worker).await {
            Ok(found) => asking.tell(worker, problems(&found, worker.spec().rejoin.copy)),
            Err(error) => {
                // Such as a PostgreSQL that has just been started: nothing was learnt, so it is asked again soon.
                asking.asked = None;
                tracing::debug!(%error, "whether this member could be rewound is not known");
            }
        }
    }
}

/// Who is asked: where one of these is another, all are asked soon.
#[derive(PartialEq, Eq)]
struct Asked {
    /// Of this member.
    process: Process,
    /// Whose primary would be the source of a rewind.
    epoch: Option<Epoch>,
    /// Those that ran.
    others: Vec<MemberName>,
}

/// What was asked before.
#[derive(Default)]
struct Asking {
    /// Whom, and when.
    asked: Option<(Asked, Moment)>,
    /// What was found the last time, told or not.
    found: BTreeSet<String>,
    room: Option<(Room, Moment)>,
}

impl Asking {
    /// Returns whether it is time: members have changed, something is to be found again, or long has passed.
    fn is_due(&mut self, worker: &Worker) -> bool {
        let local = worker.local();
        let process = local.process;
        if !matches!(process, Process::Running { .. }) {
            return false;
        }
        let now = store::clock::now();
        let epoch = worker.view.borrow().state.as_ref().map(|state| state.epoch);
        let asked = Asked { process, epoch, others: others(worker).into_keys().collect() };
        let is_settled = self.found == local.prerequisites;
        let same = self
            .asked
            .as_ref()
            .is_some_and(|(known, at)| *known == asked && now.since(*at) < EVERY);
        if same && is_settled {
            return false;
        }
        self.asked = Some((asked, now));
        true
    }

    async fn ask(&mut self, worker: &Worker) -> Result<Found, SqlError> {
        let session = worker.door.open().await?;
        let own = ask_own(&session).await?;
        let mut found = BTreeMap::new();
        for (member, source) in others(worker) {
            let answer = ask_other(&source, &worker.secrets.rewind).await;
            found.insert(member, answer.map_err(|error| format!("{error:#}")));
        }
        let now = store::clock::now();
        if self.room.is_none_or(|(_, at)| now.since(at) >= ROOM_EVERY)
            && let Ok(data) = data_bytes(&session).await
            && let Some(available) = available(worker)
        {
            self.room = Some((Room { data, available }, now));
        }
        Ok(Found { own, others: found, room: self.room.map(|(room, _)| room) })
    }

    /// Tells what was found this time and the time before; what is not found any more is told no more.
    fn tell(&mut self, worker: &Worker, now: BTreeSet<String>) {
        let told: BTreeSet<String> = now.intersection(&self.found).cloned().collect();
        self.found = now;
        if worker.local().prerequisites != told {
            tracing::warn!(?told, "what a rewind or copy of this member would need has changed");
            worker.update(|local| local.prerequisites = told);
        }
    }
}

/// Returns how many bytes are free beside the data directory.
pub fn available(worker: &Worker) -> Option<u64> {
    let found = statvfs(worker.place.data_dir.parent()?).ok()?;
    Some(found.blocks_available() * found.fragment_size())
}

/// Returns the other members whose PostgreSQL runs, each as the source that it would be.
fn others(worker: &Worker) -> BTreeMap<MemberName, Source> {
    let view = worker.view.borrow();
    let mut found = BTreeMap::new();
    for (member, report) in &view.reports {
        let runs = matches!(report.server, Server::Primary { .. } | Server::Standby { .. });
        if !runs || *member == worker.place.member {
            continue;
        }
        let Ok((host, port)) = address(report) else { continue };
        let source = Source {
            host,
            port,
            user: REWIND_ROLE.to_owned(),
            // The password is given beside it.
            passfile: worker.place.state_dir.join("none"),
            application_name: "pgdeputy-prerequisites".to_owned(),
            tls: worker.place.tls.clone(),
        };
        found.insert(member.clone(), source);
    }
    found
}
