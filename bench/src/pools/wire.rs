//! A client that speaks the protocol message by message: the same names as others, batches cut anywhere, an end in the
//! middle. Drivers do none of this.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Nothing that is asked takes longer, waits for a server included.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Protocol 3.0.
const VERSION: u32 = 196_608;
/// Of a CancelRequest.
const CANCEL: u32 = 80_877_102;
/// The longest message that is believed, bytes.
const LONGEST: usize = 16 << 20;

/// One session.
#[derive(Debug)]
pub struct Wire {
    stream: BufReader<TcpStream>,
    address: String,
    /// Process and secret, as a cancel names them.
    key: Vec<u8>,
}

/// One message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its kind.
    pub kind: u8,
    /// What follows its length.
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an error or a notice: `C` its code, `M` its text.
    pub fn field(&self, code: u8) -> String {
        let fields = self.body.split(|byte| *byte == 0);
        let mut fields = fields.filter_map(|field| field.split_first());
        let found = fields.find(|(first, _)| **first == code);
        found.map_or(String::new(), |(_, text)| {
            String::from_utf8_lossy(text).into_owned()
        })
    }

    /// The columns of a row, as text; NULL is empty.
    pub fn columns(&self) -> Vec<String> {
        let mut rest = self.body.get(2..).unwrap_or_default();
        let mut columns = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            let (text, after) = after.split_at(length.min(after.len()));
            columns.push(String::from_utf8_lossy(text).into_owned());
            rest = after;
        }
        columns
    }
}

/// A message of a client.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&length(body.len() + 4));
    bytes.extend_from_slice(body);
    bytes
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// A start-up packet.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = VERSION.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    [&length(body.len() + 4)[..], &body].concat()
}

/// A simple query.
pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// A statement under a name.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// A statement with one parameter, as text, to a portal.
pub fn bind(portal: &str, statement: &str, parameter: Option<&str>) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0").into_bytes();
    body.extend_from_slice(&[0, 0]);
    match parameter {
        None => body.extend_from_slice(&[0, 0]),
        Some(text) => {
            body.extend_from_slice(&[0, 1]);
            body.extend_from_slice(&length(text.len()));
            body.extend_from_slice(text.as_bytes());
        }
    }
    body.extend_from_slice(&[0, 0]);
    message(b'B', &body)
}

/// The unnamed statement, without parameters, to the unnamed portal.
pub fn bind_nothing() -> Vec<u8> {
    message(b'B', &[0; 8])
}

/// So many rows of a portal; 0: all.
pub fn execute(portal: &str, rows: u32) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.extend_from_slice(&rows.to_be_bytes());
    message(b'E', &body)
}

/// The description of a statement (`S`) or a portal (`P`).
pub fn describe(what: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[what], name.as_bytes(), &[0]].concat())
}

/// The end of a statement.
pub fn close(name: &str) -> Vec<u8> {
    message(b'C', &[b"S", name.as_bytes(), &[0]].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// Flush.
pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// Terminate.
pub fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

impl Wire {
    /// Logs in where nobody is asked for a password.
    pub async fn connect(address: &str, parameters: &[(&str, &str)]) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut own = Self {
            stream: BufReader::new(stream),
            address: address.to_owned(),
            key: Vec::new(),
        };
        own.send(&startup(parameters)).await?;
        loop {
            let message = own.message().await?;
            match message.kind {
                b'K' => own.key = message.body,
                b'E' => bail!("refused: {} {}", message.field(b'C'), message.field(b'M')),
                b'Z' => return Ok(own),
                b'R' if message.body != [0; 4] => bail!("a password is asked for"),
                _ => {}
            }
        }
    }

    /// Sends these bytes, whatever they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = timeout(LIMIT, self.stream.write_all(bytes)).await;
        sent.context("nobody reads what is sent")?
            .context("cannot send")
    }

    /// The next message.
    pub async fn message(&mut self) -> Result<Message> {
        let read = async {
            let kind = self.stream.read_u8().await?;
            let length = self.stream.read_u32().await? as usize;
            if !(4..=LONGEST).contains(&length) {
                bail!("a message of {length} bytes: the stream has lost its framing");
            }
            let mut body = vec![0; length - 4];
            self.stream.read_exact(&mut body).await?;
            let message = Message { kind, body };
            if kind == b'E' && message.field(b'V') == "FATAL" {
                bail!("FATAL {}: {}", message.field(b'C'), message.field(b'M'));
            }
            Ok(message)
        };
        let read = timeout(LIMIT, read).await;
        read.with_context(|| format!("no answer within {LIMIT:?}"))?
    }

    /// Sends, and reads up to ReadyForQuery, which is the last of the answer.
    pub async fn ask(&mut self, bytes: &[u8]) -> Result<Vec<Message>> {
        self.send(bytes).await?;
        self.answer().await
    }

    /// Reads up to ReadyForQuery.
    pub async fn answer(&mut self) -> Result<Vec<Message>> {
        let mut all = Vec::new();
        loop {
            let message = self.message().await?;
            let is_last = message.kind == b'Z';
            all.push(message);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Whether the beginning of an answer comes within this time.
    pub async fn is_answered(&mut self, within: Duration) -> Result<bool> {
        match timeout(within, self.stream.fill_buf()).await {
            Ok(begun) => match begun? {
                [] => bail!("the connection is closed"),
                _ => Ok(true),
            },
            Err(_) => Ok(false),
        }
    }

    /// Asks over a connection of its own that what this session runs be ended.
    pub async fn cancel(&self) -> Result<()> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let body = [&CANCEL.to_be_bytes()[..], &self.key].concat();
        stream
            .write_all(&[&length(body.len() + 4)[..], &body].concat())
            .await?;
        let _ = timeout(LIMIT, stream.read(&mut [0])).await;
        Ok(())
    }
}
