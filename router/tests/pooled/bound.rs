//! PostgreSQL under TLS, as somebody in between would have it: what it may say before, and what SCRAM is bound to.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use trunkline_router::auth::certificate::Binding;
use trunkline_router::auth::scram::Shape;
use trunkline_router::auth::users::{Look, Users};
use trunkline_router::auth::{Beginning, Method, ServerSide, Step};
use trunkline_router::stream::Stream;
use trunkline_shared::service::tls::{self, ClientCertificates};

use super::support::certificates::Certificates;
use super::*;

/// Whatever its connections are, each in a task of its own; a failure ends that one.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    address
}

/// A router before it, with this section `tls.server`.
async fn before(server: SocketAddr, section: &str) -> Stack {
    let pool = ONE.replace("size: 1", "size: 1, query_wait_timeout: 500ms");
    let stack = stack(
        Mode::Transaction,
        &format!("{pool}tls: {{server: {{{section}}}}}\n"),
    )
    .await;
    stack.lead("a", server).await;
    stack
}

#[tokio::test]
async fn what_is_said_in_the_clear_before_tls_is_neither_used_nor_shown() {
    let refusal = message(b'E', b"SFATAL\0VFATAL\0C28000\0Msmuggled\0\0");
    let welcome = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x17in_hot_standby\0off\0Z\0\0\0\x05I";
    for answer in [
        refusal.clone(),
        [b"S", &welcome[..]].concat(),
        [b"S", &refusal[..]].concat(),
    ] {
        let liar = server(move |mut socket| {
            let answer = answer.clone();
            async move {
                socket.read_exact(&mut [0; 8]).await?;
                socket.write_all(&answer).await?;
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest).await.map(|_| ())
            }
        })
        .await;
        let stack = before(liar, "mode: require").await;
        let mut client = stack.client().await;
        client.send(&startup("app")).await;
        assert_eq!(client.message().await.0, b'R');
        let (code, text) = client.fatal().await;
        assert!(code == "57P03" || code == "57014", "{code}");
        assert!(!text.contains("smuggled"), "{text}");
    }
}

/// Offers SCRAM-SHA-256-PLUS and nothing else, and answers each query that comes after it.
async fn serve(
    socket: TcpStream,
    settings: Arc<ServerConfig>,
    binding: Option<Binding>,
) -> io::Result<()> {
    let mut stream = Stream::from(socket);
    stream.read_exact(&mut [0; 8]).await?;
    stream.send(b"S").await?;
    stream.accept(settings, Vec::new(), 1 << 16).await?;
    let length = stream.read_u32().await?;
    stream.read_exact(&mut vec![0; length as usize - 4]).await?;
    let users = Users::parse("\"app\" \"secret\"\n").unwrap();
    let (mut exchange, _) = ServerSide::begin(Beginning {
        method: Method::ScramSha256,
        name: "app",
        user: users.find("app").map(Arc::as_ref),
        look: Look::Scram(Shape::default()),
        random: &[7; 24],
        mock: &[1; 32],
        binding,
        certificate: None,
    });
    let only = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0\0");
    stream.send(&only).await?;
    loop {
        let kind = stream.read_u8().await?;
        let length = stream.read_u32().await?;
        let mut body = vec![0; length as usize - 4];
        stream.read_exact(&mut body).await?;
        if kind == b'Q' {
            stream.send(b"C\0\0\0\x09DONE\0Z\0\0\0\x05I").await?;
            continue;
        }
        match exchange.answer(&body).map_err(io::Error::other)? {
            Step::Ask(more) => stream.send(&more).await?,
            Step::Proven(_, last) => {
                let welcome = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x17in_hot_standby\0off\0Z\0\0\0\x05I";
                stream.send(&[&last[..], welcome].concat()).await?;
            }
            Step::Refused => return Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

#[tokio::test]
async fn scram_is_bound_to_the_certificate_that_postgresql_shows() {
    let ca = Certificates::new();
    let roots = ca.file("ca.crt");
    let verified = format!("mode: verify-full, ca: {}", roots.display());
    for kind in ["P-256", "P-384", "RSA", "Ed25519"] {
        let files = ca.issue_as("server", kind, true);
        let (settings, leaf) = tls::server_and_leaf(&files, ClientCertificates::Ignore).unwrap();
        let (settings, binding) = (Arc::new(settings), Binding::of(&leaf));
        assert!(binding.is_some(), "{kind}");
        let own = {
            let (settings, binding) = (settings.clone(), binding.clone());
            server(move |socket| serve(socket, settings.clone(), binding.clone())).await
        };
        for section in ["mode: prefer", "mode: require", &verified] {
            let stack = before(own, section).await;
            let mut client = stack.session().await;
            assert_eq!(
                ask(&mut client, "select 1").await,
                "CZI",
                "{kind}, {section}"
            );
        }
        // Somebody in between shows another certificate than PostgreSQL has.
        let (_, other) =
            tls::server_and_leaf(&ca.issue("other"), ClientCertificates::Ignore).unwrap();
        let binding = Binding::of(&other);
        let between = server(move |socket| serve(socket, settings.clone(), binding.clone())).await;
        let stack = before(between, "mode: require").await;
        let mut client = stack.client().await;
        client.send(&startup("app")).await;
        assert_eq!(client.message().await.0, b'R');
        let (code, text) = client.fatal().await;
        assert!(
            code == "57P03" || code == "57014" || code == "28000",
            "{code}: {text}"
        );
    }
}
