//! Clients that ask all the time while a driver takes its steps, on the same servers: each must hear its own answers.

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Entrance;
use super::rust::connect;

/// Them, until they are ended.
pub(super) struct Neighbours {
    clients: JoinSet<Result<u64>>,
    is_over: watch::Sender<bool>,
}

/// Lets them begin.
pub(super) async fn begin(entrance: &Entrance) -> Result<Neighbours> {
    let (is_over, over) = watch::channel(false);
    let mut clients = JoinSet::new();
    for number in 0..entrance.neighbours {
        let client = connect(entrance).await?;
        let over = over.clone();
        clients.spawn(async move {
            let own = format!("neighbour {number}");
            // The same text for all: on a server they share the statement.
            let named = client.prepare("SELECT $1::text, pg_sleep(0.001)").await?;
            let mut count = 0;
            while !*over.borrow() {
                let row = client.query_one(&named, &[&own]).await?;
                if row.get::<_, &str>(0) != own {
                    bail!("{own} was told {:?}", row.get::<_, &str>(0));
                }
                count += 1;
            }
            Ok(count)
        });
    }
    Ok(Neighbours { clients, is_over })
}

impl Neighbours {
    /// Ends them; fails if one of them was disturbed.
    pub(super) async fn end(mut self) -> Result<()> {
        self.is_over.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            let asked = ended?.context("a neighbour was disturbed")?;
            if asked == 0 {
                bail!("a neighbour was never answered");
            }
        }
        Ok(())
    }
}
