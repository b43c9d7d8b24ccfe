//! tokio-postgres, in this process.

use std::future::Future;
use std::io::Cursor;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio::task::JoinSet;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::{Entrance, Seen, Went};
use crate::stack::{APP, APP_PASSWORD};

/// As of the programs.
const STEP_LIMIT: Duration = Duration::from_secs(30);
const STATEMENTS: i32 = 300;
const MEGABYTE: usize = 1 << 20;
/// How long a query runs before it is cancelled.
const BEFORE_CANCEL: Duration = Duration::from_millis(500);
/// What this program was built with.
const LOCK: &str = include_str!("../../../../Cargo.lock");
const INSERT: &str = "INSERT INTO driver_rows VALUES ($1, $2)";

/// Takes every step.
pub(super) async fn steps(entrance: &Entrance, who: &str) -> Seen {
    let mut seen = Seen {
        version: version().unwrap_or_default().to_owned(),
        ..Seen::default()
    };
    take(&mut seen, "connect", connects(entrance)).await;
    take(&mut seen, "wrong password", wrong_password(entrance)).await;
    take(&mut seen, "simple query", simple(entrance)).await;
    take(&mut seen, "parameters", parameters(entrance)).await;
    take(&mut seen, "prepared", prepared(entrance)).await;
    take(&mut seen, "many prepared", many(entrance)).await;
    take(&mut seen, "pipeline", pipeline(entrance)).await;
    take(&mut seen, "transaction", transaction(entrance, who)).await;
    take(&mut seen, "error", error(entrance)).await;
    take(&mut seen, "copy", copy(entrance, who)).await;
    take(&mut seen, "large", large(entrance)).await;
    take(&mut seen, "cancel", cancel(entrance)).await;
    take(&mut seen, "reconnect", reconnect(entrance)).await;
    seen
}

fn version() -> Option<&'static str> {
    let (_, after) = LOCK.split_once("name = \"tokio-postgres\"\nversion = \"")?;
    after.split('"').next()
}

async fn take(seen: &mut Seen, name: &str, step: impl Future<Output = Result<()>>) {
    let went = match tokio::time::timeout(STEP_LIMIT, step).await {
        Ok(Ok(())) => Went::Well,
        Ok(Err(error)) => Went::Failed(format!("{error:#}")),
        Err(_) => Went::Failed(format!("not over after {STEP_LIMIT:?}")),
    };
    seen.steps.insert(name.to_owned(), went);
}

/// A session there.
pub(super) async fn connect(entrance: &Entrance) -> Result<Client> {
    log_in(entrance, APP_PASSWORD).await.map_err(Into::into)
}

async fn log_in(entrance: &Entrance, password: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config
        .host(&entrance.host)
        .port(entrance.port)
        .user(APP)
        .dbname(entrance.database)
        .password(password);
    let Some(tls) = &entrance.tls else {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        return Ok(client);
    };
    config.ssl_mode(SslMode::Require);
    let (client, connection) = config.connect(tls.clone()).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn number(client: &Client, sql: &str, value: i32) -> Result<i32, tokio_postgres::Error> {
    Ok(client.query_one(sql, &[&value]).await?.get(0))
}

/// Fails by this state.
async fn fails<T>(
    what: impl Future<Output = Result<T, tokio_postgres::Error>>,
    state: &SqlState,
) -> Result<()> {
    match what.await {
        Err(error) if error.code() == Some(state) => Ok(()),
        Err(error) => Err(error).context("not the expected error"),
        Ok(_) => bail!("no error {}", state.code()),
    }
}

async fn connects(entrance: &Entrance) -> Result<()> {
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(connect(entrance).await?);
    }
    for client in &open {
        ensure!(number(client, "SELECT $1::int", 1).await? == 1);
    }
    Ok(())
}

async fn wrong_password(entrance: &Entrance) -> Result<()> {
    fails(log_in(entrance, "wrong"), &SqlState::INVALID_PASSWORD).await
}

async fn simple(entrance: &Entrance) -> Result<()> {
    let client = connect(entrance).await?;
    let told = client.simple_query("SELECT 1; SELECT 2").await?;
    let rows = told.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    ensure!(rows.collect::<Vec<_>>() == ["1", "2"], "{told:?}");
    Ok(())
}

async fn parameters(entrance: &Entrance) -> Result<()> {
    let client = connect(entrance).await?;
    ensure!(number(&client, "SELECT $1::int + 1", 41).await? == 42);
    let row = client.query_one("SELECT $1::text", &[&"é"]).await?;
    ensure!(row.get::<_, &str>(0) == "é");
    Ok(())
}

async fn prepared(entrance: &Entrance) -> Result<()> {
    let client = connect(entrance).await?;
    let own = client.prepare("SELECT $1::int * 2").await?;
    for n in 0..10 {
        ensure!(client.query_one(&own, &[&n]).await?.get::<_, i32>(0) == n * 2);
    }
    Ok(())
}

async fn many(entrance: &Entrance) -> Result<()> {
    let mut clients = JoinSet::new();
    for at in 0..3 {
        let client = connect(entrance).await?;
        clients.spawn(async move {
            let mut held = Vec::new();
            for n in 0..STATEMENTS {
                held.push(client.prepare(&format!("SELECT $1::int + {n}")).await?);
            }
            for (n, own) in (0..).zip(&held) {
                let told: i32 = client.query_one(own, &[&at]).await?.get(0);
                ensure!(told == at + n, "{told} for {at} and {n}");
            }
            Ok(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn pipeline(entrance: &Entrance) -> Result<()> {
    let client = Arc::new(connect(entrance).await?);
    let mut asked = JoinSet::new();
    for n in 0..100 {
        let client = client.clone();
        asked.spawn(async move {
            let divided = number(&client, "SELECT 100 / ($1::int % 10)", n).await;
            match divided {
                Ok(told) if n % 10 != 0 => ensure!(told == 100 / (n % 10)),
                Err(error) if n % 10 == 0 => {
                    ensure!(error.code() == Some(&SqlState::DIVISION_BY_ZERO));
                }
                other => bail!("{n}: {other:?}"),
            }
            Ok(())
        });
    }
    while let Some(ended) = asked.join_next().await {
        ended??;
    }
    Ok(())
}

async fn transaction(entrance: &Entrance, who: &str) -> Result<()> {
    let mut client = connect(entrance).await?;
    if entrance.mode == "statement" {
        let refused = client.batch_execute("BEGIN").await;
        let told = refused.err().context("a transaction block was let in")?;
        let told = told.as_db_error().context("the connection was cut")?;
        ensure!(told.message().contains("transaction block"), "{told}");
        return Ok(());
    }
    let first = client.transaction().await?;
    first.execute(INSERT, &[&who, &1]).await?;
    first.commit().await?;
    let undone = client.transaction().await?;
    undone.execute(INSERT, &[&who, &2]).await?;
    undone.rollback().await?;
    let mut last = client.transaction().await?;
    last.execute(INSERT, &[&who, &3]).await?;
    let inside = last.savepoint("a").await?;
    inside.execute(INSERT, &[&who, &4]).await?;
    fails(inside.query("SELECT 1/0", &[]), &SqlState::DIVISION_BY_ZERO).await?;
    inside.rollback().await?;
    // Rows by pieces, from a portal of its own.
    let portal = last.bind("SELECT generate_series(1, 200)", &[]).await?;
    let mut count = 0;
    while let rows @ 1.. = last.query_portal(&portal, 50).await?.len() {
        count += rows;
    }
    ensure!(count == 200, "{count} rows");
    last.commit().await?;
    let all = "SELECT n FROM driver_rows WHERE who = $1 ORDER BY n";
    let rows = client.query(all, &[&who]).await?;
    let rows: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(rows == [1, 3], "{rows:?}");
    Ok(())
}

async fn error(entrance: &Entrance) -> Result<()> {
    let client = connect(entrance).await?;
    for _ in 0..2 {
        let failing = number(&client, "SELECT $1::int / 0", 1);
        fails(failing, &SqlState::DIVISION_BY_ZERO).await?;
        ensure!(number(&client, "SELECT $1::int", 1).await? == 1);
    }
    Ok(())
}

async fn copy(entrance: &Entrance, who: &str) -> Result<()> {
    let client = connect(entrance).await?;
    let rows: String = (1000..2000).map(|n| format!("{who}\t{n}\n")).collect();
    let into = "COPY driver_rows FROM STDIN";
    let mut sink = pin!(client.copy_in::<_, Cursor<Vec<u8>>>(into).await?);
    sink.send(Cursor::new(rows.into_bytes())).await?;
    ensure!(sink.finish().await? == 1000);
    let from = "COPY (SELECT n FROM driver_rows WHERE n >= 1000 AND who = ";
    let mut out = pin!(
        client
            .copy_out(&format!("{from}'{who}') TO STDOUT"))
            .await?
    );
    let mut lines = 0;
    while let Some(piece) = out.next().await {
        lines += piece?.iter().filter(|b| **b == b'\n').count();
    }
    ensure!(lines == 1000, "{lines} lines");
    let mut sink = pin!(client.copy_in::<_, Cursor<Vec<u8>>>(into).await?);
    sink.send(Cursor::new(b"no number\tx\n".to_vec())).await?;
    fails(sink.finish(), &SqlState::INVALID_TEXT_REPRESENTATION).await?;
    ensure!(number(&client, "SELECT $1::int", 1).await? == 1);
    Ok(())
}

async fn large(entrance: &Entrance) -> Result<()> {
    let client = connect(entrance).await?;
    let text = "x".repeat(MEGABYTE);
    let row = client.query_one("SELECT $1::text", &[&text]).await?;
    ensure!(row.get::<_, &str>(0) == text);
    let size = i32::try_from(MEGABYTE)?;
    let row = client.query_one("SELECT repeat('y', $1)", &[&size]).await?;
    ensure!(row.get::<_, &str>(0).len() == MEGABYTE);
    Ok(())
}

async fn cancel(entrance: &Entrance) -> Result<()> {
    let client = connect(entrance).await?;
    let token = client.cancel_token();
    let sleeping = client.query("SELECT pg_sleep(20)", &[]);
    let cancelling = async {
        tokio::time::sleep(BEFORE_CANCEL).await;
        match &entrance.tls {
            Some(tls) => token.cancel_query(tls.clone()).await,
            None => token.cancel_query(NoTls).await,
        }
    };
    let (asked, cancelled) = tokio::join!(sleeping, cancelling);
    cancelled?;
    fails(async { asked }, &SqlState::QUERY_CANCELED).await?;
    ensure!(number(&client, "SELECT $1::int", 1).await? == 1);
    Ok(())
}

async fn reconnect(entrance: &Entrance) -> Result<()> {
    for n in 0..10 {
        let client = connect(entrance).await?;
        ensure!(number(&client, "SELECT $1::int", n).await? == n);
    }
    Ok(())
}
