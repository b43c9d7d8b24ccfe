//! Tablespaces of real servers: a replica keeps them in places of its own, and is copied anew with them.

use trunkline_agent::postgres::process::StopMode;
use trunkline_agent::postgres::{Postgres, PostgresError};

use super::servers::on_every_major;
use super::{follow_from_start, plan, primary, wait_replayed};

#[test]
fn a_replica_keeps_tablespaces_in_its_own_places_and_is_copied_anew_with_them() {
    on_every_major(
        "tablespaces::a_replica_keeps_tablespaces_in_its_own_places_and_is_copied_anew_with_them",
        async |servers| {
            let first = primary(servers).await;
            let [theirs, own] = ["space-1", "space-2"].map(|name| servers.folder().join(name));
            for place in [&theirs, &own] {
                std::fs::create_dir(place).unwrap();
            }
            let client = servers.client(1).await;
            let made = format!("CREATE TABLESPACE s LOCATION '{}'", theirs.display());
            client.batch_execute(&made).await.unwrap();
            let table = "CREATE TABLE spaced TABLESPACE s AS SELECT generate_series(1, 3) AS i";
            client.batch_execute(table).await.unwrap();

            let mut config = servers.config(2);
            let mapping = format!("{}={}", theirs.display(), own.display());
            config.basebackup = vec![("tablespace-mapping".into(), Some(mapping))];
            let second = Postgres::new(config).unwrap();
            let source = servers.upstream(1);
            second.copy_from(&source, None).await.unwrap();
            let files = || std::fs::read_dir(&own).unwrap().count();
            assert_eq!(files(), 1, "the copy lies where it was mapped to");
            follow_from_start(&second, servers, 1).await;
            wait_replayed(&first, &second).await;

            // Of a source that does not answer nothing can be copied, and nothing is removed for it.
            second.stop(&plan(StopMode::Fast)).await.unwrap();
            let failed = second.copy_from(&servers.upstream(9), None).await;
            assert!(
                matches!(failed, Err(PostgresError::Tool { .. })),
                "{failed:?}"
            );
            assert_eq!(files(), 1);

            second.copy_from(&source, None).await.unwrap();
            follow_from_start(&second, servers, 1).await;
            wait_replayed(&first, &second).await;
            let replica = servers.client(2).await;
            let row = replica.query_one("SELECT sum(i) FROM spaced", &[]).await;
            assert_eq!(row.unwrap().get::<_, i64>(0), 6);
        },
    );
}
