//! The lab's etcd without space, without its past, and whether all of it is there again.

use std::time::Duration;

use anyhow::{Context, ensure};
use store::{Operation, StoreError, Txn, clock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Lab, Struck};

impl Lab {
    /// Raises etcd's alarm NOSPACE, as etcd itself does when its quota is used up: it takes no put and no new lease until the
    /// alarm is disarmed. Proves it by a put.
    pub async fn fill_etcd(&self) -> anyhow::Result<Struck> {
        let url = self.etcd_urls().into_iter().next().context("the lab has an etcd")?;
        let address = url.strip_prefix("http://").context("this etcd speaks TLS")?;
        let body = r#"{"action":"ACTIVATE","memberID":"0","alarm":"NOSPACE"}"#;
        let struck = Struck::now();
        let mut etcd = TcpStream::connect(address).await.context("reach etcd")?;
        let request = format!(
            "POST /v3/maintenance/alarm HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        etcd.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        etcd.read_to_string(&mut answer).await.context("read etcd's answer")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "etcd raises no alarm: {answer}");
        let refused = self.put_into_etcd().await;
        ensure!(
            matches!(&refused, Err(StoreError::Refused(why)) if why.contains("alarm disarm")),
            "etcd is not full: {refused:?}"
        );
        Ok(struck)
    }

    /// Disarms the alarm, and proves by a put that there is space again.
    pub async fn empty_etcd(&self) -> anyhow::Result<()> {
        ensure!(self.etcdctl_does(&["alarm", "disarm"]).await?, "etcd's alarm is not disarmed");
        self.put_into_etcd().await.context("etcd is full though its alarm is disarmed")
    }

    /// Puts something beside all that pgdeputy reads.
    pub async fn put_into_etcd(&self) -> Result<(), StoreError> {
        let key = format!("{}test", self.keys().prefix());
        let put = Operation::Put { key, value: Vec::new(), lease: None };
        self.store().commit(Txn { when: vec![], then: vec![put] }).await.map(drop)
    }

    /// Has etcd forget all revisions but the present one, and proves it by reading an older one.
    pub async fn compact_etcd(&self) -> anyhow::Result<Struck> {
        self.put_into_etcd().await?;
        let revision = self.cluster().await?.revision;
        let struck = Struck::now();
        let compacted = self.etcdctl_does(&["compaction", &revision.to_string()]).await?;
        ensure!(compacted, "etcd does not forget what was before {revision}");
        let before = (revision - 1).to_string();
        let read = self.etcdctl_does(&["get", "--rev", &before, self.keys().prefix()]).await?;
        ensure!(!read, "etcd still knows revision {before}");
        Ok(struck)
    }

    /// Waits until every etcd member answers by itself.
    pub async fn etcd_is_whole(&self, bound: Duration) -> anyhow::Result<()> {
        let deadline = clock::now() + bound;
        while !self.etcdctl_does(&["endpoint", "health"]).await? {
            ensure!(clock::now() < deadline, "an etcd member does not answer: see etcdctl.log");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Returns whether etcd's own tool says that it has done it. The load runs in this process and does not wait for it.
    async fn etcdctl_does(&self, words: &[&str]) -> anyhow::Result<bool> {
        let mut command = self.etcdctl("etcdctl")?;
        command.args(words).args(["--dial-timeout", "1s", "--command-timeout", "1s"]);
        let status = tokio::process::Command::from(command).status().await;
        Ok(status.context("start etcdctl: run `make deps`")?.success())
    }
}
