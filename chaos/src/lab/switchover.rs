//! Planned changes of primary, as an operator or a service manager brings them about.

use std::time::Duration;

use anyhow::bail;
use nix::sys::signal::Signal;
use proto::MemberName;
use proto::request::{Answered, Request, RequestId, Terms, Wanted};
use store::clock;
use store::requests::{Asked, Standing, ask};

use super::{Lab, Struck};

/// As the command's default.
const VALID_FOR: Duration = Duration::from_secs(30);

impl Lab {
    /// Asks for a switchover to `to`, or to the best standby.
    pub async fn ask_for_switchover(
        &self,
        to: Option<&MemberName>,
    ) -> anyhow::Result<(Struck, Asked)> {
        let struck = Struck::now();
        let request = Request {
            id: RequestId::from_random(rand::random()),
            by: "the lab".into(),
            asked: struck.wall,
            valid_for: VALID_FOR,
            wanted: Wanted::Switchover(Terms::to(to.cloned())),
        };
        let asked = ask(self.store.as_ref(), &self.keys, &request).await?;
        Ok((struck, asked))
    }

    /// Waits until nothing more comes of what was asked.
    pub async fn answer(&self, asked: &Asked, bound: Duration) -> anyhow::Result<Answered> {
        let deadline = clock::now() + bound;
        loop {
            match asked.standing(self.store.as_ref(), &self.keys).await? {
                Standing::Answered(answered) if answered.outcome.is_final() => return Ok(answered),
                standing if clock::now() >= deadline => bail!("no end of it: {standing:?}"),
                Standing::Gone => bail!("the request ended unanswered"),
                Standing::Answered(_) | Standing::Waiting => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Asks the keeper of `name` to stop, as a service manager does; its PostgreSQL and its fencer end with it.
    pub fn stop_member(&mut self, name: &MemberName) -> anyhow::Result<Struck> {
        let struck = self.signal_keeper(name, Signal::SIGTERM)?;
        Ok(struck)
    }
}
