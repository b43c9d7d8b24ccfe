//! Messages of the protocol as tests write and read them.

use super::client::Client;

/// A message of a client.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Kinds of the messages up to ReadyForQuery, with its status.
pub async fn answer(client: &mut Client) -> String {
    let mut kinds = String::new();
    loop {
        let (kind, body) = client.message().await;
        kinds.push(char::from(kind));
        if kind == b'Z' {
            kinds.push(char::from(body[0]));
            return kinds;
        }
    }
}
