//! One PostgreSQL alone, with nothing of ours around it.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio_postgres::Config;
use trunkline_shared::service::clock;

use crate::load::append;
use crate::report::Progress;
use crate::stack::place::Place;
use crate::stack::process::{Launch, Process, args};
use crate::stack::programs::Programs;

/// The database of its clients, who are its superuser.
pub const DATABASE: &str = "postgres";
/// How long initdb may take, and the start.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The server; it ends when dropped.
pub struct Control {
    /// How clients reach it.
    pub config: Config,
    _server: Process,
    _place: Place,
}

impl Control {
    /// Makes a data directory and starts a server on it, with the settings that a stack's members have.
    pub async fn start(progress: &Progress) -> Result<Control> {
        progress.step("starting one PostgreSQL");
        let place = Place::take()?;
        let programs = Programs::find(&place, None)?;
        let (data, socket) = (place.folder().join("data"), place.folder().join("s"));
        place.own(&socket)?;
        let launch = |program: &str, words: &[String]| Launch {
            program: programs.of_postgresql(program),
            args: args(words),
            folder: place.folder().to_owned(),
            user: place.owner().user(),
            log: place.folder().join("postgresql.log"),
            ..Launch::default()
        };
        let directory = format!("--pgdata={}", data.display());
        let words = [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
        ];
        let words: Vec<_> = words
            .map(str::to_owned)
            .into_iter()
            .chain([directory])
            .collect();
        launch("initdb", &words).finish(LIMIT).await?;
        let settings = [
            "listen_addresses=".to_owned(),
            format!("unix_socket_directories={}", socket.display()),
            "shared_buffers=64MB".to_owned(),
            "max_wal_size=512MB".to_owned(),
            "dynamic_shared_memory_type=mmap".to_owned(),
        ];
        let settings = settings.into_iter().flat_map(|it| ["-c".to_owned(), it]);
        let words = ["-D".to_owned(), data.display().to_string()];
        let words: Vec<_> = words.into_iter().chain(settings).collect();
        let mut server = launch("postgres", &words).start("PostgreSQL")?;
        let mut config = Config::new();
        config
            .host_path(&socket)
            .port(5432)
            .user("postgres")
            .dbname(DATABASE);
        let deadline = clock::now() + LIMIT;
        while append::connect(&config).await.is_err() {
            server.must_live()?;
            if clock::now() >= deadline {
                bail!(
                    "PostgreSQL took no client within {LIMIT:?}; {}",
                    server.tail()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Control {
            config,
            _server: server,
            _place: place,
        })
    }
}
