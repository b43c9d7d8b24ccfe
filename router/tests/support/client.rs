//! A client that reads as PostgreSQL's own do.

use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use trunkline_router::stream::Stream;

use super::stack::{DEADLINE, Stack, startup};

impl Stack {
    /// A client that has sent nothing.
    pub async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Client {
            stream: stream.into(),
        }
    }

    /// The same from another address of this machine: the last number of it.
    pub async fn client_from(&self, host: u8) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, host], 0).into()).unwrap();
        let stream = socket.connect(self.address).await.unwrap();
        Client {
            stream: stream.into(),
        }
    }

    /// A client that is logged in.
    pub async fn session(&self) -> Client {
        let mut client = self.client().await;
        client.send(&startup("app")).await;
        client.ready().await;
        client
    }
}

/// A request for TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A client.
pub struct Client {
    /// Its connection.
    pub stream: Stream,
}

impl Client {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.send(bytes).await.unwrap();
    }

    /// Sends a simple query.
    pub async fn query(&mut self, text: &str) {
        let mut bytes = vec![b'Q'];
        bytes.extend_from_slice(&u32::try_from(text.len() + 5).unwrap().to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.send(&bytes).await;
    }

    /// Reads one message.
    pub async fn message(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let kind = self.stream.read_u8().await.unwrap();
            let length = self.stream.read_u32().await.unwrap() as usize;
            let mut body = vec![0; length - 4];
            self.stream.read_exact(&mut body).await.unwrap();
            (kind, body)
        };
        tokio::time::timeout(DEADLINE, read).await.unwrap()
    }

    /// Reads until the server is ready.
    pub async fn ready(&mut self) {
        while self.message().await.0 != b'Z' {}
    }

    /// Reads exactly these bytes.
    pub async fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        let reading = self.stream.read_exact(&mut read);
        tokio::time::timeout(DEADLINE, reading)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read, bytes);
    }

    /// Reads a FATAL and the end after it; returns its code and message.
    pub async fn fatal(&mut self) -> (String, String) {
        let (kind, body) = self.message().await;
        assert_eq!(kind, b'E');
        let field = |code: u8| {
            body.split(|b| *b == 0)
                .find(|f| f.first() == Some(&code))
                .map(|f| String::from_utf8_lossy(&f[1..]).into_owned())
                .unwrap_or_default()
        };
        assert_eq!(field(b'S'), "FATAL");
        assert_eq!(self.rest().await, b"");
        (field(b'C'), field(b'M'))
    }

    /// Everything until the connection ends, by close or by reset.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let reading = async {
            // A reset ends the bytes as well as a close.
            let _ = self.stream.read_to_end(&mut rest).await;
        };
        tokio::time::timeout(DEADLINE, reading).await.unwrap();
        rest
    }
}
