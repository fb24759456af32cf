//! `GET /health` and `GET /metrics` over plain HTTP/1.0, for service managers and graphs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use proto::ClusterName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What is counted of each cluster.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub leading: bool,
    pub commits: u64,
    pub refused: u64,
}

/// The counts of all clusters, shared by their tasks.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters(Arc<Mutex<BTreeMap<ClusterName, Counts>>>);

impl Counters {
    pub(super) fn update(&self, cluster: &ClusterName, change: impl FnOnce(&mut Counts)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(cluster.clone()).or_default());
    }

    fn metrics(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (cluster, counts) in all.iter() {
            for (name, value) in [
                ("leading", u64::from(counts.leading)),
                ("commits_total", counts.commits),
                ("refused_total", counts.refused),
            ] {
                text += &format!("pgdeputy_sentinel_{name}{{cluster=\"{cluster}\"}} {value}\n");
            }
        }
        text
    }
}

/// Binds `address`; the returned future answers until `stop`.
pub(super) async fn serve(
    address: &str,
    counters: Counters,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address}: choose another --listen or stop what uses the port")
    })?;
    Ok(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            if let Ok((stream, _)) = accepted {
                // One slow reader must not hold up the next; each is bounded by its deadline.
                let counters = counters.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(Duration::from_secs(2), answer(stream, &counters))
                        .await;
                });
            }
        }
    })
}

async fn answer(mut stream: TcpStream, counters: &Counters) -> std::io::Result<()> {
    // The request line is all that is asked of a request, and it fits into the first segment.
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await?;
    let line = String::from_utf8_lossy(&request[..length]);
    let (status, body) = match line.split_whitespace().nth(1) {
        Some("/health") => ("200 OK", "ok\n".to_owned()),
        Some("/metrics") => ("200 OK", counters.metrics()),
        Some(_) | None => ("404 Not Found", "use /health or /metrics\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
