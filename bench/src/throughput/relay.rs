//! The null relay: the least that a relay in user space can do for a connection. Each thread waits, receives and sends,
//! and looks at nothing. What it costs is the floor for every router on the same machine.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use clap::Args;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};

/// The options of `relay`.
#[derive(Args, Debug)]
pub struct RelayOptions {
    /// Where it listens
    listen: SocketAddr,
    /// Where it connects to
    to: SocketAddr,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// What is read at once, bytes: as much as the router reads.
const BUFFER: usize = 64 * 1024;
/// Events taken at once.
const EVENTS: usize = 256;
/// The listening socket among the events.
const LISTENER: u64 = 0;

/// Relays until it is killed.
pub fn run(options: &RelayOptions) -> Result<()> {
    let threads: Vec<_> = (0..options.threads.max(1))
        .map(|_| {
            let listener = listen(options.listen)?;
            let to = options.to;
            Ok(std::thread::spawn(move || relay(&listener, to)))
        })
        .collect::<Result<_>>()?;
    for thread in threads {
        match thread.join() {
            Ok(ended) => ended?,
            Err(_) => anyhow::bail!("a thread of the relay has panicked"),
        }
    }
    Ok(())
}

/// A socket per thread on one port: the kernel spreads the clients.
fn listen(at: SocketAddr) -> Result<TcpListener> {
    let family = match at {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &at).with_context(|| format!("cannot bind {at}"))?;
    rustix::net::listen(&socket, 1024)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Both ends of the connections of a thread, by a number each; the peer of 2n is 2n + 1.
#[derive(Default)]
struct Ends {
    next: u64,
    streams: BTreeMap<u64, TcpStream>,
}

fn relay(listener: &TcpListener, to: SocketAddr) -> Result<()> {
    let waits = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &waits,
        listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut ends = Ends {
        next: 2,
        streams: BTreeMap::new(),
    };
    let mut buffer = vec![0; BUFFER];
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        epoll::wait(&waits, spare_capacity(&mut events), None)?;
        for event in &events {
            match event.data.u64() {
                LISTENER => {
                    // One that went away, or that the other thread took.
                    if let Ok((client, _)) = listener.accept() {
                        connect(&waits, &mut ends, client, to)?;
                    }
                }
                end => pass_on(&mut ends, end, &mut buffer),
            }
        }
    }
}

fn connect(waits: impl AsFd, ends: &mut Ends, client: TcpStream, to: SocketAddr) -> Result<()> {
    let server = TcpStream::connect(to)?;
    for stream in [client, server] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(
            &waits,
            &stream,
            EventData::new_u64(ends.next),
            EventFlags::IN,
        )?;
        ends.streams.insert(ends.next, stream);
        ends.next += 1;
    }
    Ok(())
}

fn pass_on(ends: &mut Ends, end: u64, buffer: &mut [u8]) {
    let (Some(mut from), Some(to)) = (ends.streams.get(&end), ends.streams.get(&(end ^ 1))) else {
        return;
    };
    let is_over = match from.read(buffer) {
        Ok(0) => true,
        Ok(count) => send(to, &buffer[..count]).is_err(),
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    if is_over {
        ends.streams.remove(&end);
        ends.streams.remove(&(end ^ 1));
    }
}

/// Sends all of it, and waits where the peer does not read.
fn send(mut to: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
