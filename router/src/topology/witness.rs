//! The question to the last leader's own agent: do you accept writes, under which epoch, for how long?

use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use trunkline_shared::cluster::{LeaderEpoch, Moment};
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;

use super::routing_table::Question;
use super::transition::{Answer, Testimony};

/// How long an agent has to answer: while it is asked, writes to a leader that may be gone go on.
pub const ANSWER_TIME: Duration = Duration::from_millis(50);
/// How long a good answer of a Patroni leader counts.
const PATRONI_VOUCHES_FOR: Duration = Duration::from_secs(2);
/// The status of a healthy answer.
const OK: u16 = 200;

/// Asks once.
pub async fn ask(question: Question, client: HttpClient) -> Testimony {
    let asked_at = clock::now();
    let path = if question.is_trunkline {
        "patroni"
    } else {
        "primary"
    };
    let url = url_of(&question.api_url, path);
    let answered = client.request(Method::GET, &url, Bytes::new(), ANSWER_TIME);
    let answer = match answered.await {
        Ok(answer) if question.is_trunkline => judge(&answer.body, question.epoch, asked_at),
        Ok(answer) if answer.status == OK => Answer::Writable {
            until: asked_at + PATRONI_VOUCHES_FOR,
        },
        Ok(_) => Answer::Refused,
        Err(_) => Answer::Silent,
    };
    Testimony {
        epoch: question.epoch,
        asked_at,
        answer,
    }
}

/// The same API's other path: records carry `http://host:port/patroni`.
fn url_of(api_url: &str, path: &str) -> String {
    let from = api_url.find("://").map_or(0, |at| at + 3);
    let end = api_url[from..]
        .find('/')
        .map_or(api_url.len(), |at| from + at);
    format!("{}/{path}", &api_url[..end])
}

/// What an agent's `GET /patroni` says, in its field `trunkline`.
fn judge(body: &[u8], epoch: LeaderEpoch, asked_at: Moment) -> Answer {
    // The answer's status follows the member's health; its field is what counts. An agent that was started a
    // moment ago has not looked yet and leaves it out: what was vouched for before runs out by itself.
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(body) else {
        return Answer::Silent;
    };
    let own = &answer["trunkline"];
    if own.is_null() {
        return Answer::Silent;
    }
    let left = own["lease_left_ms"].as_u64().unwrap_or(0);
    let is_writable = own["writable"].as_bool().unwrap_or(false);
    // Its key may have been written anew, or into a store made anew, before the view shows it. Had another led in
    // between, its server would have been stopped, and what is open to it gone.
    let still_leads = read_epoch(&own["epoch"]) >= Some(epoch);
    if is_writable && left > 0 && still_leads {
        Answer::Writable {
            until: asked_at + Duration::from_millis(left),
        }
    } else {
        Answer::Refused
    }
}

/// An epoch as its text (`1.42`) or as its two parts.
fn read_epoch(value: &serde_json::Value) -> Option<LeaderEpoch> {
    let (generation, revision) = match value.as_str() {
        Some(text) => {
            let (generation, revision) = text.split_once('.')?;
            (generation.parse().ok()?, revision.parse().ok()?)
        }
        None => (
            value.get("generation")?.as_u64()?,
            value.get("revision")?.as_i64()?,
        ),
    };
    Some(LeaderEpoch {
        generation,
        revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_put_behind_host_and_port() {
        for url in ["http://h:8008/patroni", "http://h:8008", "http://h:8008/"] {
            assert_eq!(url_of(url, "primary"), "http://h:8008/primary");
        }
    }

    #[test]
    fn only_the_same_epoch_or_a_later_one_and_time_left_vouch() {
        let epoch = LeaderEpoch {
            generation: 0,
            revision: 7,
        };
        let asked = Moment(5_000_000_000);
        let said = |text: &str| judge(text.as_bytes(), epoch, asked);
        let good = Answer::Writable {
            until: asked + Duration::from_millis(900),
        };
        for (text, answer) in [
            (
                r#"{"trunkline":{"epoch":"0.7","writable":true,"lease_left_ms":900}}"#,
                good,
            ),
            (
                r#"{"trunkline":{"epoch":{"generation":0,"revision":7},"writable":true,"lease_left_ms":900}}"#,
                good,
            ),
            (
                r#"{"trunkline":{"epoch":"0.8","writable":true,"lease_left_ms":900}}"#,
                good,
            ),
            (
                r#"{"trunkline":{"epoch":"0.6","writable":true,"lease_left_ms":900}}"#,
                Answer::Refused,
            ),
            (
                r#"{"trunkline":{"epoch":"0.7","writable":false,"lease_left_ms":900}}"#,
                Answer::Refused,
            ),
            (
                r#"{"trunkline":{"epoch":"0.7","writable":true,"lease_left_ms":0}}"#,
                Answer::Refused,
            ),
            (r#"{"state":"running"}"#, Answer::Silent),
            ("<html>", Answer::Silent),
        ] {
            assert_eq!(said(text), answer, "{text}");
        }
    }
}
