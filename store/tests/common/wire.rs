//! A wire between a client and an etcd that a test can hang or cut, as a network does.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::etcd::own_address;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Fine,
    /// Connections are accepted and nothing gets through, as behind a firewall that drops.
    Hanging,
    /// What the client sends gets through, and what etcd answers does not.
    Deaf,
    /// Connections are closed.
    Cut,
}

/// Forwards a port of its own to `to`.
pub struct Wire {
    address: SocketAddr,
    condition: Arc<watch::Sender<Condition>>,
    acceptor: JoinHandle<()>,
}

impl Wire {
    pub async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let condition = Arc::new(watch::Sender::new(Condition::Fine));
        let watched = Arc::clone(&condition);
        let acceptor = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(forward(near, to, watched.subscribe()));
            }
        });
        Self { address, condition, acceptor }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn hang(&self) {
        self.condition.send_replace(Condition::Hanging);
    }

    pub fn lose_answers(&self) {
        self.condition.send_replace(Condition::Deaf);
    }

    pub fn cut(&self) {
        self.condition.send_replace(Condition::Cut);
    }

    pub fn mend(&self) {
        self.condition.send_replace(Condition::Fine);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

/// A connection that was not fine once stays dead after the wire is mended; only new ones get through.
async fn forward(mut near: TcpStream, to: SocketAddr, mut condition: watch::Receiver<Condition>) {
    let mut far = TcpStream::connect(to).await.ok();
    if let Some(far) = &mut far {
        tokio::select! {
            biased;
            _ = condition.wait_for(|now| *now != Condition::Fine) => {}
            _ = copy_bidirectional(&mut near, far) => return,
        }
        if *condition.borrow() == Condition::Deaf {
            tokio::select! {
                _ = condition.wait_for(|now| *now != Condition::Deaf) => {}
                _ = copy(&mut near, far) => return,
            }
        }
    }
    // Both ends are kept open: neither must see that anything happened.
    let _ = condition.wait_for(|now| *now == Condition::Cut).await;
}
