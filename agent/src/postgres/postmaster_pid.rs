//! The lock file of a postmaster (pure).

/// What the last line of `postmaster.pid` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostmasterStatus {
    /// Starts, or recovers without accepting connections.
    Starting,
    /// Stops.
    Stopping,
    /// Accepts connections.
    Ready,
    /// In recovery with hot_standby off, so that it accepts none.
    Standby,
    /// Not written yet.
    Unknown,
}

/// The System V segment by which PostgreSQL tells whether an earlier server still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its key.
    pub key: u64,
    /// Its identifier.
    pub id: u64,
}

/// The content of `postmaster.pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostmasterPid {
    /// The postmaster; negative for a single-user server, whose id is its absolute value.
    pub pid: i32,
    /// Start, in seconds since 1970 by the wall clock of then.
    pub started: u64,
    /// Port; absent while it starts.
    pub port: Option<u16>,
    /// Shared memory; absent while it starts.
    pub segment: Option<Segment>,
    /// Status line.
    pub status: PostmasterStatus,
}

impl PostmasterPid {
    /// Reads the text of the file; `None` if even the first line is not there yet.
    pub fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let field = |index: usize| lines.get(index).map(|l| l.trim()).filter(|l| !l.is_empty());
        let pid = field(0)?.parse().ok()?;
        let segment = field(6).and_then(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            match (numbers.next(), numbers.next()) {
                (Some(Ok(key)), Some(Ok(id))) => Some(Segment { key, id }),
                _ => None,
            }
        });
        let status = match field(7) {
            Some("starting") => PostmasterStatus::Starting,
            Some("stopping") => PostmasterStatus::Stopping,
            Some("ready") => PostmasterStatus::Ready,
            Some("standby") => PostmasterStatus::Standby,
            _ => PostmasterStatus::Unknown,
        };
        Some(Self {
            pid,
            started: field(2).and_then(|l| l.parse().ok()).unwrap_or(0),
            port: field(3).and_then(|l| l.parse().ok()),
            segment,
            status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_whole_file_and_one_still_being_written() {
        let whole =
            "4242\n/data\n1700000000\n5432\n/tmp\n127.0.0.1\n  5432001    131074\nready   \n";
        let read = PostmasterPid::parse(whole).unwrap();
        assert_eq!((read.pid, read.port), (4242, Some(5432)));
        assert_eq!(
            read.segment,
            Some(Segment {
                key: 5_432_001,
                id: 131_074
            })
        );
        assert_eq!(read.status, PostmasterStatus::Ready);
        let young = PostmasterPid::parse("4242\n/data\n").unwrap();
        assert_eq!(
            (young.segment, young.status),
            (None, PostmasterStatus::Unknown)
        );
        assert_eq!(PostmasterPid::parse(""), None);
        assert_eq!(PostmasterPid::parse("-77\n").unwrap().pid, -77);
    }
}
