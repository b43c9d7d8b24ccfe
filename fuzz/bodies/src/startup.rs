//! Start-up packets: the same in any pieces, and the same again when they are written anew.

use trunkline_router::protocol::messages;
use trunkline_router::protocol::startup::{
    First, MAX_STARTUP_PACKET_LENGTH, NotStartup, Parameters, Progress, parameters, parse,
};

/// Looks at the first bytes of a connection.
pub fn run(data: &[u8]) {
    let whole = parse(data);
    for end in 0..data.len() {
        came_so_far(&data[..end], &whole);
    }
    let Ok(Progress::Whole(first, length)) = whole else {
        return;
    };
    assert!(length <= data.len().min(MAX_STARTUP_PACKET_LENGTH));
    match first {
        First::Startup { .. } => {
            if let Ok(read) = parameters(&data[..length]) {
                written_anew(&read);
            }
        }
        First::Cancel => {
            let process = u32::from_be_bytes([data[8], data[9], data[10], data[11]]);
            assert_eq!(messages::cancel(process, &data[12..length]), data[..length]);
        }
        First::DirectTls => assert_eq!(length, 0),
        First::Ssl | First::Gss | First::OldProtocol { .. } => {}
    }
}

/// A beginning is judged as the whole is, or asks for more than it has.
fn came_so_far(beginning: &[u8], whole: &Result<Progress, NotStartup>) {
    match parse(beginning) {
        Ok(Progress::Need(need)) => {
            assert!(need > beginning.len(), "what is there is asked for");
            match whole {
                // Of TLS nothing is taken, and the first byte tells.
                Ok(Progress::Whole(First::DirectTls, _)) => assert!(beginning.is_empty()),
                Ok(Progress::Whole(_, length)) => assert!(need <= *length),
                Ok(Progress::Need(_)) | Err(_) => {}
            }
        }
        judged @ (Ok(Progress::Whole(..)) | Err(_)) => assert_eq!(&judged, whole),
    }
}

fn written_anew(read: &Parameters) {
    assert!(!read.user.is_empty() && !read.database.is_empty());
    let mut pairs = vec![("user", &*read.user), ("database", &*read.database)];
    if let Some(replication) = read.replication {
        pairs.push(("replication", replication.name()));
    }
    let settings = read.settings.iter();
    pairs.extend(settings.map(|(name, value)| (name.as_str(), value.as_str())));
    let packet = messages::startup(&pairs);
    let again = parameters(&packet);
    let expected = Parameters {
        unknown_options: Vec::new(),
        ..read.clone()
    };
    assert_eq!(again, Ok(expected));
}
