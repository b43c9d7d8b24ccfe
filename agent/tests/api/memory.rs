//! What is answered while neither PostgreSQL nor the DCS answers anything.

use async_trait::async_trait;
use trunkline_shared::dcs::{Committed, DcsError, LeaseAnswer, LeaseId, Listing, Revision, Watch};

use super::*;

/// A DCS that takes every question and never answers.
struct Hung;

#[async_trait]
impl Dcs for Hung {
    async fn read(&self, _: &str) -> Result<Listing, DcsError> {
        std::future::pending().await
    }

    async fn commit(&self, _: &Txn) -> Result<Committed, DcsError> {
        std::future::pending().await
    }

    async fn watch(&self, _: &str, _: Revision) -> Result<Box<dyn Watch>, DcsError> {
        std::future::pending().await
    }

    async fn grant(&self, _: Duration) -> Result<LeaseAnswer, DcsError> {
        std::future::pending().await
    }

    async fn keep_alive(&self, _: LeaseId) -> Result<LeaseAnswer, DcsError> {
        std::future::pending().await
    }
}

/// The loop does not run at all here: nobody takes its requests, and nothing is published again, as when a turn
/// waits for PostgreSQL.
#[tokio::test]
async fn every_answer_comes_from_memory_while_postgresql_and_the_dcs_hang() {
    let fixture = Fixture::over(Access::default(), None, Arc::new(Hung)).await;
    fixture.publish(as_primary);
    for (path, status) in [
        ("/", 200),
        ("/primary", 200),
        ("/leader", 200),
        ("/replica", 503),
        ("/health", 200),
        ("/liveness", 200),
        ("/readiness", 200),
        ("/patroni", 200),
        ("/cluster", 200),
        ("/metrics", 200),
        ("/trunkline/journal", 200),
        ("/failsafe", 502),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = fixture.send(method, path, Value::Null).await;
            let expected = match (method, path) {
                ("HEAD", "/failsafe") => 200,
                (_, _) => status,
            };
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
    // What only the DCS knows is answered as it was seen last, and not at all where it was never seen.
    for (path, key) in [
        ("/config", FactKey::Settings),
        ("/history", FactKey::History),
    ] {
        let unknown = fixture.get(path).await;
        assert_eq!(unknown.status, 503, "{path}");
        assert!(unknown.text.contains("did not answer"), "{}", unknown.text);
        fixture.seen.lock().unwrap().insert(key, "[1]".into());
        let known = fixture.get(path).await;
        assert_eq!((known.status, known.text.as_str()), (200, "[1]"), "{path}");
    }
}
