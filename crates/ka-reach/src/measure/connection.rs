//! The socket of a trial: a connection that stays idle and is then probed.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use ka_core::direct::Direct;
use ka_core::{Kernel as _, Probe, SockOpt, Socket, Timer};
use socket2::SockRef;

use super::trial::{IdleTrial, Sample, TrialResult, TrialStep};
use crate::error::{Error, Result};
use crate::reason::socket_reason;

/// The time between two readings of the counters of an idle connection. Only these counters show probes of the peer.
const LOOK: Duration = Duration::from_millis(250);
/// The kernel may delay an acknowledgement by 40 ms. After a packet, the counters are read again soon.
const LOOK_AGAIN: Duration = Duration::from_millis(60);
/// The time between two checks for the answer to a probe.
const AWAIT_ANSWER: Duration = Duration::from_millis(5);
/// The time between two steps of a probe while the settings of the socket are changed.
const AWAIT_PROBE: Duration = Duration::from_millis(1);

/// The number of segments that a connection has sent and received, including keepalive probes and their answers.
type Segments = [u8; 8];

/// A connection with a trial.
#[derive(Debug)]
pub(super) struct IdleConnection {
    // This field is dropped before the stream, because it restores the settings of the socket.
    probe: Option<Probe<'static, Direct>>,
    /// True if `probe` has been counted as sent.
    is_counted: bool,
    stream: TcpStream,
    trial: IdleTrial,
    segments: Segments,
    last_packet: Duration,
}

impl IdleConnection {
    /// Begins a trial on a new connection, and sends `text` first.
    ///
    /// # Errors
    /// [`Error::KeepaliveHeld`], or the error of a system call.
    pub(super) fn begin(stream: TcpStream, rung: Duration, text: &[u8], now: Duration) -> Result<Self> {
        let fd = stream.as_raw_fd();
        let option =
            |option, value| Direct.set(fd, option, value).map_err(|errno| Error::SetSockOpt(errno.0));
        stream.set_nonblocking(true)?;
        // A policy of the system may have turned keepalive on. Its probes would end the idle time.
        option(SockOpt::KeepAlive, 0)?;
        // The probe writes the current value back. A sysctl may hold a value that cannot be written.
        option(SockOpt::Timer(Timer::Idle), *Timer::Idle.range().end())?;
        let socket = Socket::with_kernel(fd, Direct);
        if socket.is_enabled().map_err(|error| unusable(&error))? {
            return Err(Error::KeepaliveHeld);
        }
        if !text.is_empty() {
            (&stream).write_all(text)?;
        }
        let status = socket.status().map_err(|error| unusable(&error))?;
        let trial = IdleTrial::new(rung, Duration::from_micros(status.rtt_us.into()), now);
        let segments = segments(&stream);
        Ok(Self { probe: None, is_counted: true, stream, trial, segments, last_packet: now })
    }

    pub(super) fn trial(&self) -> &IdleTrial {
        &self.trial
    }

    /// Reads data, notices packets, and continues or begins a probe. Returns the record of the trial when it ends.
    ///
    /// # Errors
    /// The error of a system call on the socket.
    pub(super) fn step(&mut self, now: Duration) -> Result<Option<Sample>> {
        if let Some(ended) = self.read() {
            return Ok(Some(self.trial.end(ended, now)));
        }
        let segments = segments(&self.stream);
        if segments != self.segments {
            self.segments = segments;
            self.last_packet = now;
            self.trial.packet_seen(now);
        }
        let mut result = self.step_probe(now)?;
        match self.trial.next(now) {
            TrialStep::End(sample) if result.is_none() => return Ok(Some(sample)),
            // A probe that could not leave yet is tried again by `step_probe`.
            TrialStep::Probe if result.is_none() && self.is_counted => {
                self.probe = Some(Probe::new(Socket::with_kernel(self.stream.as_raw_fd(), Direct), now));
                self.is_counted = false;
                result = self.step_probe(now)?;
            }
            _ => {}
        }
        Ok(result.map(|result| self.trial.end(result, now)))
    }

    /// Continues the probe. Returns the result of the trial if it ends.
    fn step_probe(&mut self, now: Duration) -> Result<Option<TrialResult>> {
        let Some(probe) = &mut self.probe else { return Ok(None) };
        let answer = match probe.step(now) {
            Ok(answer) => answer,
            // The pending error of the socket names the cause of the end.
            Err(ka_core::Error::Ended(_) | ka_core::Error::NotConnected) => {
                return Ok(Some(self.read().unwrap_or(TrialResult::Reset)));
            }
            Err(error) => return Err(unusable(&error)),
        };
        if !self.is_counted && !probe.is_untriggered() {
            self.is_counted = true;
            self.trial.probe_left(now);
        }
        Ok(answer.map(|_| TrialResult::Answered))
    }

    /// Reads and discards data. Returns the result of the trial if the connection has ended.
    fn read(&self) -> Option<TrialResult> {
        discard(&self.stream).map(|end| match end {
            Ok(()) => TrialResult::Closed,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => TrialResult::Silent,
            Err(_) => TrialResult::Reset,
        })
    }

    /// Returns the longest wait before the next step. If the descriptor becomes readable, the step is due earlier.
    pub(super) fn rest(&self, now: Duration) -> Duration {
        match (&self.probe, self.trial.next(now)) {
            (Some(probe), _) if probe.is_leaving() || probe.is_untriggered() => AWAIT_PROBE,
            (Some(_), _) => AWAIT_ANSWER,
            (None, TrialStep::Wait(until)) => {
                let look = if now.saturating_sub(self.last_packet) < LOOK { LOOK_AGAIN } else { LOOK };
                until.saturating_sub(now).min(look)
            }
            (None, _) => Duration::ZERO,
        }
    }

    /// Makes the kernel send RST instead of FIN when the connection is closed. If the path has forgotten the
    /// connection, a FIN would never be acknowledged, and the kernel would send it again and again.
    pub(super) fn abort(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

impl AsFd for IdleConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads and discards the received data. Returns `Ok` if the peer has closed the connection, the error if the
/// connection has failed, and `None` if it is still open.
pub(super) fn discard(mut stream: &TcpStream) -> Option<io::Result<()>> {
    let mut buffer = [0; 1 << 14];
    // A peer that sends without end must not stop the other connections.
    for _ in 0..16 {
        match stream.read(&mut buffer) {
            Ok(0) => return Some(Ok(())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(Err(error)),
        }
    }
    None
}

fn unusable(error: &ka_core::Error) -> Error {
    Error::from(io::Error::other(socket_reason(error)))
}

/// Reads `tcpi_segs_out` and `tcpi_segs_in` of `struct tcp_info`, which Linux 4.2 and later have. The struct of the C
/// library is shorter. On an older kernel, the result is always 0.
fn segments(stream: &TcpStream) -> Segments {
    const SEGS_OUT: usize = 136;
    let mut info = [0; SEGS_OUT + size_of::<Segments>()];
    let size = Direct.get(stream.as_raw_fd(), SockOpt::Info, &mut info).unwrap_or(0);
    info.get(..size).and_then(|info| info.get(SEGS_OUT..)?.first_chunk().copied()).unwrap_or_default()
}
