//! Answers clients. Each of them may be slow, silent or hostile.
//!
//! One thread serves all clients by poll(2), and never waits for one of them. The limits:
//!
//! - at most [`MOST_CLIENTS`] clients at a time. If there are more, the oldest one is disconnected as soon as it has
//!   had [`GRACE`]; until then, new ones wait in the kernel's queue. So clients that send nothing cannot keep out others
//!   for long.
//! - a client has [`LONGEST`] for everything
//! - a request has at most [`request::LARGEST`] bytes
//!
//! Each response closes its connection. If the kernel gets data after close(2), it sends a reset, and the client may
//! lose the response. So the server closes only its own direction first, and reads and ignores what the client still
//! sends.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ka_metrics::request::{self, HttpAnswer};
use ka_metrics::text::text;
use ka_reach::watch::Metrics;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// The largest number of clients at a time.
const MOST_CLIENTS: usize = 64;
/// The time that a client has, from its connection to the end.
const LONGEST: Duration = Duration::from_secs(5);
/// The time that a client has if others wait.
const GRACE: Duration = Duration::from_millis(100);
/// The pause after the kernel could not accept a client, for example because there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// A client.
struct HttpClient {
    stream: TcpStream,
    since: Instant,
    request: Vec<u8>,
    /// The response, and the number of its bytes that are sent. `None` until the request is complete.
    response: Option<(Vec<u8>, usize)>,
}

/// Serves the metrics until ka ends.
pub(crate) fn serve(listener: &TcpListener, updates: &OwnedFd) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // Until ka has listed the connections, clients wait in the kernel's queue.
    let Some(mut metrics) = receive(updates, RecvFlags::empty())? else { return Ok(()) };
    let mut clients: Vec<HttpClient> = Vec::new();
    let mut paused: Option<Instant> = None;
    loop {
        let now = Instant::now();
        clients.retain(|client| now.duration_since(client.since) < LONGEST);
        // The clients are in the order in which they came.
        let oldest = clients.first().map(|client| client.since);
        let full = oldest.filter(|_| clients.len() >= MOST_CLIENTS);
        let pause =
            full.map(|oldest| oldest + GRACE).into_iter().chain(paused).max().filter(|end| *end > now);
        let due = pause.into_iter().chain(oldest.map(|oldest| oldest + LONGEST)).min();
        let ready = wait(listener, pause.is_none(), updates, &clients, due)?;
        if ready.has_updates {
            match receive(updates, RecvFlags::DONTWAIT) {
                Ok(Some(newer)) => metrics = newer,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            // ka may have sent more metrics. Read them before the next response.
            continue;
        }
        let mut is_ready = ready.clients.into_iter();
        clients.retain_mut(|client| !is_ready.next().unwrap_or(false) || client.proceed(&metrics).is_ok());
        if ready.has_client {
            paused = None;
            match listener.accept() {
                Ok((stream, _)) => {
                    if clients.len() >= MOST_CLIENTS {
                        clients.remove(0);
                    }
                    if stream.set_nonblocking(true).is_ok() {
                        clients.push(HttpClient {
                            stream,
                            since: Instant::now(),
                            request: Vec::new(),
                            response: None,
                        });
                    }
                }
                // The client has gone.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => paused = Some(Instant::now() + PAUSE),
            }
        }
    }
}

/// The descriptors that are ready.
struct Ready {
    has_client: bool,
    has_updates: bool,
    clients: Vec<bool>,
}

/// Waits until a descriptor is ready, or until `due`.
fn wait(
    listener: &TcpListener,
    accepts: bool,
    updates: &OwnedFd,
    clients: &[HttpClient],
    due: Option<Instant>,
) -> io::Result<Ready> {
    let mut fds = vec![
        PollFd::new(updates, PollFlags::IN),
        PollFd::new(listener, if accepts { PollFlags::IN } else { PollFlags::empty() }),
    ];
    fds.extend(clients.iter().map(|client| PollFd::new(&client.stream, client.awaited())));
    // Rounded up, so that poll(2) does not return just before `due`.
    let left = due.map(|due| due.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut fds, left.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => fds.iter_mut().for_each(PollFd::clear_revents),
        Err(error) => return Err(error.into()),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let (has_updates, has_client) = (ready.next() == Some(true), ready.next() == Some(true) && accepts);
    Ok(Ready { has_client, has_updates, clients: ready.collect() })
}

/// Receives metrics. `None` if ka has ended.
fn receive(updates: &OwnedFd, flags: RecvFlags) -> io::Result<Option<Metrics>> {
    let mut message = [0; 4096];
    let size = loop {
        match recv(updates, &mut message, flags) {
            Err(Errno::INTR) => {}
            // ka was killed while a message of this program was on its way.
            Err(Errno::CONNRESET) => return Ok(None),
            received => break received?.0,
        }
    };
    if size == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(message.get(..size).unwrap_or_default())?))
}

impl HttpClient {
    /// Returns the event of the connection to wait for.
    fn awaited(&self) -> PollFlags {
        match &self.response {
            Some((response, sent)) if *sent < response.len() => PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }

    /// Reads and writes as much as possible without waiting. The end of the connection is an error. After an error, the
    /// caller closes the connection.
    fn proceed(&mut self, metrics: &Metrics) -> io::Result<()> {
        if self.response.is_none() {
            self.read(metrics)?;
        }
        let Some((response, sent)) = &mut self.response else { return Ok(()) };
        while let Some(rest) = response.get(*sent..).filter(|rest| !rest.is_empty()) {
            let Some(more) = done(self.stream.write(rest))? else { return Ok(()) };
            *sent += more;
            if *sent == response.len() {
                self.stream.shutdown(Shutdown::Write)?;
            }
        }
        // At most this much at a time, so that a client that sends without end does not keep the server from others.
        done(self.stream.read(&mut [0; request::LARGEST])).map(drop)
    }

    /// Reads more of the request, and makes the response if the request is complete.
    fn read(&mut self, metrics: &Metrics) -> io::Result<()> {
        let mut bytes = [0; request::LARGEST];
        let room = bytes.get_mut(self.request.len()..).unwrap_or_default();
        let Some(size) = done(self.stream.read(room))? else { return Ok(()) };
        self.request.extend_from_slice(room.get(..size).unwrap_or_default());
        if let Some(answer) = HttpAnswer::to(&self.request) {
            self.request = Vec::new();
            let body = |format| text(metrics, format).unwrap_or_default();
            self.response = Some((answer.response(body), 0));
        }
        Ok(())
    }
}

/// Returns the number of bytes that were read or written. `None` if the call would block. The end of the data is an
/// error.
fn done(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(size) => Ok(Some(size)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
