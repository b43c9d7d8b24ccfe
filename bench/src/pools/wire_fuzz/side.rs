//! One session by its script, past the router or through it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::frames::{Answer, Ended};
use super::script::{End, Round, Script, end_of_round, is_over};
use crate::pools::wire::{Message, startup, terminate};
use crate::stack::APP;

/// Nothing is waited for longer.
const LIMIT: Duration = Duration::from_secs(20);
/// The longest message that is believed, bytes.
const LONGEST: usize = 16 << 20;

/// Where a session goes.
#[derive(Clone, Debug)]
pub enum Side {
    /// To PostgreSQL, by its socket file.
    Direct(PathBuf),
    /// To a listener of the router, by its address.
    Routed(String),
}

/// A connection that takes what comes while it sends, or both sides would wait for one another.
struct Session {
    reader: Box<dyn AsyncRead + Unpin + Send>,
    writer: Box<dyn AsyncWrite + Unpin + Send>,
    /// The client's, where the router sees it.
    port: Option<u16>,
}

/// What became of a script: the log-in, each round, the end; and the port that the router knew it by.
pub async fn play(side: &Side, script: &Script) -> Result<(Vec<Answer>, Option<u16>)> {
    let session = Session::open(side).await?;
    let port = session.port;
    Ok((session.lead(script).await?, port))
}

impl Session {
    async fn open(side: &Side) -> Result<Self> {
        match side {
            Side::Direct(file) => {
                let (reader, writer) = UnixStream::connect(file).await?.into_split();
                Ok(Self {
                    reader: Box::new(reader),
                    writer: Box::new(writer),
                    port: None,
                })
            }
            Side::Routed(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let port = stream.local_addr()?.port();
                let (reader, writer) = stream.into_split();
                Ok(Self {
                    reader: Box::new(reader),
                    writer: Box::new(writer),
                    port: Some(port),
                })
            }
        }
    }

    async fn lead(mut self, script: &Script) -> Result<Vec<Answer>> {
        let mut answers = vec![self.log_in(script).await?];
        for round in &script.rounds {
            if answers.last().is_some_and(|answer| answer.end.is_some()) {
                return Ok(answers);
            }
            answers.push(self.round(round).await);
        }
        if answers.last().is_none_or(|answer| answer.end.is_none()) {
            answers.push(self.end(&script.end).await);
        }
        Ok(answers)
    }

    async fn log_in(&mut self, script: &Script) -> Result<Answer> {
        let mut parameters = vec![("user", APP), ("database", APP)];
        parameters.extend(&script.settings);
        self.writer.write_all(&startup(&parameters)).await?;
        let answer = read(&mut self.reader, |kinds| kinds.ends_with(b"Z")).await;
        if let Some(end) = &answer.end {
            bail!("nobody is let in: {end:?} {:?}", answer.lines);
        }
        Ok(answer)
    }

    async fn round(&mut self, round: &Round) -> Answer {
        let bytes = round.bytes();
        let writer = &mut self.writer;
        let send = async {
            let mut rest = bytes.as_slice();
            for piece in &round.pieces {
                let (piece, tail) = rest.split_at((*piece).min(rest.len()));
                writer.write_all(piece).await?;
                writer.flush().await?;
                // The piece is on its way before the next one is written.
                tokio::task::yield_now().await;
                rest = tail;
            }
            writer.write_all(rest).await?;
            writer.write_all(&end_of_round()).await
        };
        // Who has closed says why, if anything was to be said.
        let (_, answer) = tokio::join!(timeout(LIMIT, send), read(&mut self.reader, is_over));
        answer
    }

    async fn end(mut self, end: &End) -> Answer {
        let bytes = match end {
            End::Said => terminate(),
            End::Closed => return Answer::default(),
            End::Torn(bytes) => bytes.clone(),
            End::Breach(sent) => sent.bytes.clone(),
        };
        // It may have closed already.
        let _ = timeout(LIMIT, self.writer.write_all(&bytes)).await;
        match end {
            // What of it is answered depends on who is faster.
            End::Torn(_) | End::Closed => Answer::default(),
            End::Said | End::Breach(_) => read(&mut self.reader, |_| false).await,
        }
    }
}

/// Reads until the answer is over, or the session.
async fn read(reader: &mut (impl AsyncRead + Unpin), is_over: impl Fn(&[u8]) -> bool) -> Answer {
    let mut answer = Answer::default();
    let mut kinds = Vec::new();
    let mut fatal = None;
    loop {
        let message = match timeout(LIMIT, message(reader)).await {
            Ok(Ok(message)) => message,
            Ok(Err(_)) => {
                answer.end = Some(Ended::Closed(fatal));
                return answer;
            }
            Err(_) => {
                answer.end = Some(Ended::Hangs);
                return answer;
            }
        };
        if message.kind == b'E' && message.field(b'V') == "FATAL" {
            // Its words are those of who says it.
            fatal = Some(message.field(b'C'));
            continue;
        }
        if !matches!(message.kind, b'N' | b'A' | b'S') {
            kinds.push(message.kind);
        }
        answer.take(&message);
        if is_over(&kinds) {
            return answer;
        }
    }
}

async fn message(reader: &mut (impl AsyncRead + Unpin)) -> Result<Message> {
    let kind = reader.read_u8().await?;
    let length = usize::try_from(reader.read_u32().await?)?;
    if !(4..=LONGEST).contains(&length) {
        bail!("a message of {length} bytes: the stream has lost its framing");
    }
    let mut body = vec![0; length - 4];
    reader
        .read_exact(&mut body)
        .await
        .context("the session ends inside a message")?;
    Ok(Message { kind, body })
}
