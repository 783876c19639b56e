//! Runs a measurement: opens the connections that the ladder needs, and runs their trials.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::connection::{IdleConnection, discard};
use super::ladder::{IdleTimes, Ladder};
use super::protocol::{LineBuffer, Opening, TICK, parse_result, parse_session};
use super::trial::{Sample, TrialResult};
use super::verdict::{Conclusion, Doubt, Measured};
use crate::error::{Error, Result};
use crate::reason::reason;
use crate::sys;

/// The parameters of a measurement.
#[derive(Clone, Debug)]
pub struct MeasureRequest {
    /// The addresses of the server, best first.
    pub addresses: Vec<SocketAddr>,
    /// The idle times.
    pub range: IdleTimes,
    /// The maximum number of connections at a time.
    pub connections: usize,
    /// The text to send on each connection before it becomes idle.
    pub text: Vec<u8>,
    /// The local address to connect from.
    pub bind: Option<IpAddr>,
    /// True if the server sends the probes. The server must be `ka measure --serve`.
    pub from_server: bool,
}

/// An event of a measurement.
#[derive(Clone, Copy, Debug)]
pub enum Notice<'a> {
    /// The server at this address accepts connections.
    Connected(SocketAddr),
    /// A trial has ended.
    Trial(&'a Sample),
    /// The server accepts fewer connections at a time than requested: their number, and the reason.
    Fewer(usize, &'a str),
    /// The measurement goes on.
    Progress {
        /// The time since it began.
        elapsed: Duration,
        /// The estimated time until its end.
        remaining: Duration,
        /// The number of open connections.
        connections: usize,
    },
}

/// The result of a measurement.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The address of the server.
    pub address: SocketAddr,
    /// The verdict.
    pub conclusion: Conclusion,
    /// The numbers.
    pub measured: Measured,
    /// The trials, in the order of their ends.
    pub samples: Vec<Sample>,
    /// The number of connections at a time that the server accepted, and the reason why it accepted no more. `None` if
    /// it accepted all.
    pub fewer: Option<(usize, String)>,
    /// The duration of the measurement.
    pub took: Duration,
}

/// The time in which a connection must be established. Linux sends SYN eight times in it, and Linux before 6.5 five
/// times. So a path that loses 30 % of the packets in each direction rarely exceeds it.
const CONNECT: Duration = Duration::from_secs(20);
/// The time in which the server must answer on the control connection.
const ANSWER: Duration = Duration::from_secs(5);
/// The pause after a refused connection, and the maximum number of refusals in a row.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 3;
/// If a server ends a connection this soon, while others live, it limits the number of connections.
const TURNED_AWAY: Duration = Duration::from_secs(2);
/// The time between two messages on the control connection, and the longest silence of the server on it.
const BEAT: Duration = Duration::from_secs(1);
const LOST: Duration = Duration::from_secs(30);
/// The time in which the server must report the end of a trial, besides three times its idle time. Packets on the path
/// may restart the idle time.
const REPORT: Duration = Duration::from_secs(90);
/// The time between two reports of the progress.
const PROGRESS: Duration = Duration::from_secs(1);

/// Resolves a host name or an address, once.
///
/// # Errors
/// The error of getaddrinfo(3), or [`Error::NoFittingAddress`].
pub fn resolve(
    host: &str,
    port: u16,
    only_v6: Option<bool>,
    bind: Option<IpAddr>,
) -> Result<Vec<SocketAddr>> {
    let all = (host, port).to_socket_addrs().map_err(|error| Error::io(host, error))?;
    let only_v6 = only_v6.or(bind.map(|bind| bind.is_ipv6()));
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in all.filter(|address| only_v6.is_none_or(|v6| address.is_ipv6() == v6)) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        let family = if only_v6 == Some(true) { "IPv6" } else { "IPv4" };
        return Err(Error::io(host, Error::NoFittingAddress { family }.into()));
    }
    Ok(addresses)
}

/// Measures a path. Ends early when `termination` becomes readable.
///
/// # Errors
/// If no connection to the server is possible, the server does not speak the protocol, or a system call fails.
pub fn measure(
    request: &MeasureRequest,
    termination: BorrowedFd<'_>,
    notify: &mut dyn FnMut(Notice<'_>),
) -> Result<Measurement> {
    let begin = Instant::now();
    let Some((address, first)) = connect_first(request, termination)? else {
        return Ok(interrupted(request, begin));
    };
    notify(Notice::Connected(address));
    let mut session = Session {
        request,
        address,
        begin,
        ladder: Ladder::new(request.range, request.connections),
        limit: request.connections.max(1),
        running: Vec::new(),
        control: None,
        samples: Vec::new(),
        fewer: None,
        refusals: 0,
        unanswered: 0,
        pause_until: Duration::ZERO,
        last_id: 0,
    };
    if request.from_server {
        match ControlConnection::open(first, termination)? {
            Some(control) => session.control = Some(control),
            None => return Ok(interrupted(request, begin)),
        }
    } else if let Some(rung) = session.ladder.take() {
        session.establish(first, rung)?;
    }
    let conclusion = session.run(termination, notify)?;
    Ok(session.finish(conclusion))
}

/// Returns the result of a measurement that ended before it began.
fn interrupted(request: &MeasureRequest, begin: Instant) -> Measurement {
    let address = request.addresses.first().copied().unwrap_or_else(|| ([0; 4], 0).into());
    Measurement {
        address,
        conclusion: Conclusion::Unclear(Doubt::Interrupted),
        measured: Ladder::new(request.range, 1).measured(),
        samples: Vec::new(),
        fewer: None,
        took: begin.elapsed(),
    }
}

/// Connects to the first address that accepts a connection. Returns `None` if a signal arrives.
fn connect_first(
    request: &MeasureRequest,
    termination: BorrowedFd<'_>,
) -> Result<Option<(SocketAddr, TcpStream)>> {
    let mut failure = None;
    for address in &request.addresses {
        let end = Instant::now() + CONNECT;
        let result = dial(*address, request.bind).and_then(|stream| {
            loop {
                if is_connected(&stream)? {
                    return Ok(Some(stream));
                }
                if Instant::now() >= end {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if sys::poll(&[termination], Duration::from_millis(5))? == [true] {
                    return Ok(None);
                }
            }
        });
        match result {
            Ok(stream) => return Ok(stream.map(|stream| (*address, stream))),
            Err(error) => {
                failure.get_or_insert(Error::io(address, error));
            }
        }
    }
    Err(failure.unwrap_or(Error::NoFittingAddress { family: "IP" }))
}

/// Begins to connect.
fn dial(address: SocketAddr, bind: Option<IpAddr>) -> io::Result<TcpStream> {
    // Not Multipath TCP, whose connection would have several paths.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(bind) = bind {
        let local = match (bind, address) {
            // A link-local address needs the interface.
            (IpAddr::V6(bind), SocketAddr::V6(to)) => SocketAddrV6::new(bind, 0, 0, to.scope_id()).into(),
            _ => SocketAddr::new(bind, 0),
        };
        socket
            .bind(&local.into())
            .map_err(|error| io::Error::other(format!("cannot connect from {bind}: {}", reason(&error))))?;
    }
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Returns whether a connection is established, or its error.
fn is_connected(stream: &TcpStream) -> io::Result<bool> {
    match stream.take_error()? {
        Some(error) => Err(error),
        None => match stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        },
    }
}

/// A trial that runs.
#[derive(Debug)]
struct RunningTrial {
    rung: Duration,
    /// The time at which ka began to connect. Later, the time at which the connection was established.
    began: Duration,
    socket: TrialSocket,
}

#[derive(Debug)]
enum TrialSocket {
    Connecting(TcpStream),
    /// ka probes the connection.
    Local(Box<IdleConnection>),
    /// The server probes the connection.
    Remote {
        stream: TcpStream,
        id: u64,
    },
}

impl AsFd for TrialSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Connecting(stream) | Self::Remote { stream, .. } => stream.as_fd(),
            Self::Local(connection) => connection.as_fd(),
        }
    }
}

/// The state of a trial after one step.
enum TrialProgress {
    /// It continues.
    Running,
    Ended(Sample),
    /// The server did not accept the connection, for this reason.
    Refused(String),
    /// The connection was not established in time.
    Unanswered,
}

struct Session<'a> {
    request: &'a MeasureRequest,
    address: SocketAddr,
    begin: Instant,
    ladder: Ladder,
    limit: usize,
    running: Vec<RunningTrial>,
    control: Option<ControlConnection>,
    samples: Vec<Sample>,
    /// The reason why the server accepts fewer connections, and true if `notify` has been called with this reason.
    fewer: Option<(String, bool)>,
    /// The number of connections in a row that were refused while no other was open.
    refusals: u32,
    /// The number of connections in a row that were not established in time.
    unanswered: u32,
    /// The time before which no connection is opened.
    pause_until: Duration,
    last_id: u64,
}

impl Session<'_> {
    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn run(&mut self, termination: BorrowedFd<'_>, notify: &mut dyn FnMut(Notice<'_>)) -> Result<Conclusion> {
        let mut reported = Duration::ZERO;
        loop {
            if !self.running.iter().any(|running| self.ladder.awaits(running.rung)) {
                self.ladder.plan();
            }
            if let Some(conclusion) = self.ladder.conclusion() {
                return Ok(conclusion);
            }
            if self.refusals > RETRIES || !self.hear() {
                return Ok(Conclusion::Unclear(Doubt::ServerGone));
            }
            self.open();
            for sample in self.step()? {
                notify(Notice::Trial(&sample));
                self.samples.push(sample);
            }
            let now = self.now();
            if let Some((why, reported @ false)) = &mut self.fewer
                && now >= self.pause_until
            {
                *reported = true;
                notify(Notice::Fewer(self.limit, why));
            }
            if now >= reported + PROGRESS {
                reported = now;
                let remaining = self.ladder.remaining(self.rest_of_round(now));
                notify(Notice::Progress { elapsed: now, remaining, connections: self.running.len() });
            }
            let mut fds = vec![termination];
            fds.extend(self.control.iter().map(|control| control.stream.as_fd()));
            fds.extend(self.running.iter().map(|running| running.socket.as_fd()));
            if sys::poll(&fds, self.rest(now))?.first() == Some(&true) {
                return Ok(Conclusion::Unclear(Doubt::Interrupted));
            }
        }
    }

    /// Opens the connections that the ladder needs.
    fn open(&mut self) {
        while self.running.len() < self.limit && self.now() >= self.pause_until {
            let Some(rung) = self.ladder.take() else { return };
            let began = self.now();
            match dial(self.address, self.request.bind) {
                Ok(stream) => {
                    self.running.push(RunningTrial { rung, began, socket: TrialSocket::Connecting(stream) });
                }
                Err(error) => self.refuse(rung, reason(&error)),
            }
        }
    }

    /// Begins the trial on a connection that is established.
    fn establish(&mut self, stream: TcpStream, rung: Duration) -> Result<()> {
        let began = self.now();
        let socket = self.begin_trial(stream, rung, began)?;
        self.running.push(RunningTrial { rung, began, socket });
        Ok(())
    }

    fn begin_trial(&mut self, stream: TcpStream, rung: Duration, now: Duration) -> Result<TrialSocket> {
        self.refusals = 0;
        self.unanswered = 0;
        let Some(control) = &self.control else {
            let connection = IdleConnection::begin(stream, rung, &self.request.text, now)?;
            return Ok(TrialSocket::Local(Box::new(connection)));
        };
        self.last_id += 1;
        let id = self.last_id;
        (&stream).write_all(Opening::Trial { key: control.key, id, rung }.line().as_bytes())?;
        Ok(TrialSocket::Remote { stream, id })
    }

    /// Records that the server did not accept a connection, and limits the number of connections.
    fn refuse(&mut self, rung: Duration, why: String) {
        self.ladder.put_back(rung);
        let others = self.running.len();
        if others == 0 {
            self.refusals += 1;
        }
        self.limit = others.max(1);
        self.ladder.limit_connections(self.limit);
        self.fewer = Some((why, false));
        self.pause_until = self.now() + RETRY;
    }

    /// Continues all trials. Returns the records of those that have ended.
    fn step(&mut self) -> Result<Vec<Sample>> {
        let mut ended = Vec::new();
        for mut running in std::mem::take(&mut self.running) {
            match self.step_one(&mut running)? {
                TrialProgress::Running => self.running.push(running),
                TrialProgress::Ended(sample) => ended.push((sample, running)),
                TrialProgress::Refused(why) => self.refuse(running.rung, why),
                TrialProgress::Unanswered => self.ladder.put_back(running.rung),
            }
        }
        let mut samples = Vec::new();
        for (sample, running) in ended {
            let age = self.now().saturating_sub(running.began);
            let is_early = sample.after.is_none()
                && matches!(sample.result, TrialResult::Closed | TrialResult::Reset)
                && age < TURNED_AWAY.min(self.request.range.from / 2);
            // If the last connection ends early too, the server ends all of them, and does not limit their number.
            if is_early && (!self.running.is_empty() || self.limit > 1) {
                self.refuse(running.rung, end_name(sample.result).to_owned());
                continue;
            }
            if is_early {
                self.fewer = None;
            }
            if let (TrialSocket::Local(connection), TrialResult::Silent) = (&running.socket, sample.result) {
                connection.abort();
            }
            self.ladder.record(sample);
            samples.push(sample);
        }
        let now = self.now();
        let is_moot =
            |running: &mut RunningTrial| self.ladder.is_moot(running.rung, now.saturating_sub(running.began));
        let stopped: Vec<_> = self.running.extract_if(.., is_moot).collect();
        for running in stopped {
            self.stop(running);
        }
        Ok(samples)
    }

    /// Closes a connection whose trial has become useless.
    fn stop(&self, running: RunningTrial) {
        if let TrialSocket::Local(connection) = running.socket
            && self.ladder.has_failed(connection.trial().idle(self.now()))
        {
            connection.abort();
        }
    }

    fn step_one(&mut self, running: &mut RunningTrial) -> Result<TrialProgress> {
        let now = self.now();
        match &mut running.socket {
            TrialSocket::Connecting(stream) => match is_connected(stream) {
                Ok(true) => {
                    running.socket = match self.begin_trial(stream.try_clone()?, running.rung, now) {
                        // The server has already ended the connection.
                        Err(Error::Io { source, .. }) => return Ok(TrialProgress::Refused(reason(&source))),
                        other => other?,
                    };
                    running.began = now;
                    Ok(TrialProgress::Running)
                }
                Ok(false) if now.saturating_sub(running.began) < CONNECT => Ok(TrialProgress::Running),
                // On a path that loses packets, this happens without a limit of the server.
                Ok(false) if self.unanswered < RETRIES => {
                    self.unanswered += 1;
                    Ok(TrialProgress::Unanswered)
                }
                Ok(false) => Ok(TrialProgress::Refused("it did not answer".to_owned())),
                Err(error) => Ok(TrialProgress::Refused(reason(&error))),
            },
            TrialSocket::Local(connection) => {
                Ok(connection.step(now)?.map_or(TrialProgress::Running, TrialProgress::Ended))
            }
            TrialSocket::Remote { stream, id } => {
                let result = self.control.as_mut().and_then(|control| control.take(*id));
                if let Some((result, idle, after)) = result {
                    return Ok(TrialProgress::Ended(Sample { rung: running.rung, idle, result, after }));
                }
                // The server reports the result, unless it does not accept the connection.
                if now.saturating_sub(running.began) < TURNED_AWAY && discard(stream).is_some() {
                    return Ok(TrialProgress::Refused(end_name(TrialResult::Closed).to_owned()));
                }
                if now.saturating_sub(running.began) > running.rung.saturating_mul(3) + REPORT {
                    return Ok(TrialProgress::Refused("it did not report the end of a trial".to_owned()));
                }
                Ok(TrialProgress::Running)
            }
        }
    }

    /// Reads the messages of the server. Returns whether it still answers.
    fn hear(&mut self) -> bool {
        let now = self.now();
        self.control.as_mut().is_none_or(|control| control.step(now))
    }

    /// Returns the longest wait of the loop.
    fn rest(&self, now: Duration) -> Duration {
        let most = if self.control.is_some() { BEAT / 2 } else { PROGRESS };
        let pause = self.pause_until.saturating_sub(now);
        let rests = self.running.iter().map(|running| match &running.socket {
            // poll(2) reports only the failure of a connection.
            TrialSocket::Connecting(_) if now.saturating_sub(running.began) < BEAT => {
                Duration::from_millis(5)
            }
            TrialSocket::Connecting(_) => Duration::from_millis(50),
            TrialSocket::Local(connection) => connection.rest(now),
            TrialSocket::Remote { .. } => most,
        });
        let rest = rests.min().unwrap_or(most).min(most);
        if pause.is_zero() { rest } else { rest.min(pause) }
    }

    /// Estimates the time until the running trials have ended.
    fn rest_of_round(&self, now: Duration) -> Duration {
        let awaited = self.running.iter().filter(|running| self.ladder.awaits(running.rung));
        let left = awaited.map(|running| {
            let idle = match &running.socket {
                TrialSocket::Local(connection) => connection.trial().idle(now),
                _ => now.saturating_sub(running.began),
            };
            running.rung.saturating_sub(idle)
        });
        left.max().unwrap_or_default()
    }

    /// Closes the connections, and returns the result.
    fn finish(mut self, conclusion: Conclusion) -> Measurement {
        for running in std::mem::take(&mut self.running) {
            self.stop(running);
        }
        Measurement {
            address: self.address,
            conclusion,
            measured: self.ladder.measured(),
            samples: self.samples,
            fewer: self.fewer.map(|(why, _)| (self.limit, why)),
            took: self.begin.elapsed(),
        }
    }
}

/// Describes the end of a connection that the server ended early.
const fn end_name(result: TrialResult) -> &'static str {
    match result {
        TrialResult::Closed => "it closed others at once",
        _ => "it reset others at once",
    }
}

/// The control connection to `ka measure --serve`.
struct ControlConnection {
    stream: TcpStream,
    lines: LineBuffer,
    key: u64,
    /// The reports that have just arrived: number, result, idle time, and time until the answer.
    reports: Vec<(u64, TrialResult, Duration, Option<Duration>)>,
    sent: Duration,
    heard: Duration,
}

impl ControlConnection {
    /// Opens a session. Returns `None` if a signal arrives.
    fn open(stream: TcpStream, termination: BorrowedFd<'_>) -> Result<Option<Self>> {
        let address = stream.peer_addr()?;
        let not_server = |message| {
            let error = Error::NotMeasureServer { message };
            Error::io(address, error.into())
        };
        SockRef::from(&stream).set_tcp_nodelay(true)?;
        (&stream).write_all(Opening::Control.line().as_bytes()).map_err(|_| not_server(None))?;
        let mut control = Self {
            stream,
            lines: LineBuffer::default(),
            key: 0,
            reports: Vec::new(),
            sent: Duration::ZERO,
            heard: Duration::ZERO,
        };
        let end = Instant::now() + ANSWER;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if sys::poll(&[termination, control.stream.as_fd()], left)?.first() == Some(&true) {
                return Ok(None);
            }
            let is_open = control.read();
            match control.lines.line() {
                Ok(Some(line)) => {
                    control.key = parse_session(&line).map_err(not_server)?;
                    return Ok(Some(control));
                }
                Ok(None) if is_open => {}
                _ => break,
            }
        }
        Err(not_server(None))
    }

    /// Reads at most one buffer, because a server that sends without end must not stop the measurement. Returns whether
    /// the connection is still open.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(size) => {
                self.lines.push(buffer.get(..size).unwrap_or_default());
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    /// Sends a message if one is due, and reads the messages of the server. Returns whether the server still answers.
    fn step(&mut self, now: Duration) -> bool {
        if now >= self.sent + BEAT {
            self.sent = now;
            if self.stream.write_all(TICK.as_bytes()).is_err() {
                return false;
            }
        }
        // All running trials have taken their reports. No others will.
        self.reports.clear();
        let is_open = self.read();
        loop {
            match self.lines.line() {
                Ok(Some(line)) => {
                    self.heard = now;
                    self.reports.extend(parse_result(&line));
                }
                Ok(None) => return is_open && now.saturating_sub(self.heard) < LOST,
                Err(()) => return false,
            }
        }
    }

    /// Takes the report of a trial.
    fn take(&mut self, id: u64) -> Option<(TrialResult, Duration, Option<Duration>)> {
        let place = self.reports.iter().position(|report| report.0 == id)?;
        let (_, result, idle, after) = self.reports.swap_remove(place);
        Some((result, idle, after))
    }
}
