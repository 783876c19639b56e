//! `ka watch --metrics`: the program that serves the metrics, and the address at which it does.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::args;
use crate::failure::{Failure, warn};
use crate::installed;
use ka_reach::process::Process;
use ka_reach::reason::reason;
use ka_reach::version::VERSION;
use ka_reach::wait;
use ka_reach::watch::Metrics;

/// The program that answers the HTTP requests. It is separate so that `ka` reads no byte from a network, and because
/// `ka watch` must not have threads.
const SERVER: &str = "ka-metrics";

/// The program that serves the metrics, while this exists.
pub(crate) struct MetricsServer {
    child: Child,
    updates: Socket,
    /// The metrics that were sent last, as JSON.
    sent: Vec<u8>,
}

/// Opens the listening socket.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "; another program listens there, so choose another port",
            io::ErrorKind::AddrNotAvailable => {
                "; this machine does not have the address (ip address lists them)"
            }
            io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => "",
        };
        Failure::new(format_args!("watch: --metrics {address}: {}{remedy}", reason(&error)))
    })
}

impl MetricsServer {
    /// Starts the program.
    pub(crate) fn start(listener: TcpListener) -> Result<Self, Failure> {
        let failure = |why: &dyn Display| {
            Failure::new(format_args!(
                "watch: --metrics: {why}. {SERVER} is a part of ka: install ka again, by its package or `make install`"
            ))
        };
        let address = listener.local_addr().map_err(|error| failure(&reason(&error)))?;
        let places = installed::candidates(SERVER);
        let path = installed::first(SERVER, &places).map_err(|why| failure(&why))?;
        let start = || {
            // Not a stream: a message that does not fit is not sent at all.
            let (updates, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
            updates.set_nonblocking(true)?;
            let mut command = Command::new(path);
            command
                .arg(VERSION)
                .env_clear()
                .stdin(OwnedFd::from(listener))
                .stdout(OwnedFd::from(other))
                .current_dir("/");
            // Ctrl-C goes to ka alone, which ends this program.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            Ok((command.spawn()?, updates))
        };
        let (child, updates) = start()
            .map_err(|error: io::Error| failure(&format_args!("{}: {}", path.display(), reason(&error))))?;
        warn(format_args!("watch: the metrics are at http://{address}/metrics"));
        Ok(Self { child, updates, sent: Vec::new() })
    }

    /// Sends the metrics if they have changed. If the program does not read, they are sent at a later call.
    pub(crate) fn send(&mut self, metrics: &Metrics) -> Result<(), Failure> {
        let message = serde_json::to_vec(metrics)?;
        if message == self.sent {
            return Ok(());
        }
        match self.updates.send(&message) {
            Ok(_) => self.sent = message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(self.failure(&error)),
        }
        Ok(())
    }

    /// Returns the failure if the program has ended by itself.
    fn failure(&mut self, error: &io::Error) -> Failure {
        let status = self.child.try_wait().ok().flatten();
        let why = status.map_or_else(|| reason(error), |status| status.to_string());
        Failure::new(format_args!("watch: --metrics: {SERVER} has ended ({why})"))
    }

    /// Returns the failure if the program has ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.failure(&io::ErrorKind::BrokenPipe.into())),
            Err(error) => Err(self.failure(&error)),
        }
    }
}

/// Readable when the program has ended.
impl AsFd for MetricsServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.updates.as_fd()
    }
}

impl Drop for MetricsServer {
    /// Ends the program, so that the port is free when ka has ended.
    fn drop(&mut self) {
        let _ = self.updates.shutdown(Shutdown::Both);
        // ka may lack the right to end a process of nobody by a signal. A stopped process does not end.
        let process = i32::try_from(self.child.id()).ok().and_then(|pid| Process::open(pid).ok());
        if let Some(process) = process {
            let _ = wait::poll(&[process.as_fd()], Duration::from_secs(1));
        }
        let _ = self.child.try_wait();
    }
}

/// Reads the address of --metrics: `ADDRESS:PORT`, `:PORT` or `PORT`. Without an address: 127.0.0.1.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let help = "an address and a port are expected, such as 127.0.0.1:9500 or [::1]:9500; a port alone means 127.0.0.1";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    match (host, args::number(port)) {
        ("" | "localhost", Some(port)) => Ok(SocketAddr::new(loopback, port)),
        ("" | "localhost", None) => Err(format!("this is not a port from 0 to 65535: {help}")),
        ("*", Some(port)) => Err(format!("for all addresses, write 0.0.0.0:{port} or [::]:{port}")),
        (host, Some(port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            Err(format!("an IPv6 address needs brackets: [{host}]:{port}"))
        }
        _ => Err(help.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_host_is_loopback() {
        for (text, expected) in [
            ("9500", "127.0.0.1:9500"),
            (":9500", "127.0.0.1:9500"),
            ("localhost:9500", "127.0.0.1:9500"),
            ("0", "127.0.0.1:0"),
            ("0.0.0.0:9500", "0.0.0.0:9500"),
            ("192.0.2.1:65535", "192.0.2.1:65535"),
            ("[::1]:9500", "[::1]:9500"),
            ("[::]:9500", "[::]:9500"),
        ] {
            assert_eq!(address(text), Ok(expected.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_bad_address_is_explained() {
        for (text, part) in [
            ("", "not a port"),
            (":", "not a port"),
            ("65536", "not a port"),
            ("+9500", "not a port"),
            ("-1", "not a port"),
            ("http", "not a port"),
            ("127.0.0.1", "an address and a port are expected"),
            ("127.0.0.1:", "an address and a port are expected"),
            ("example.com:9500", "an address and a port are expected"),
            ("*:9500", "0.0.0.0:9500 or [::]:9500"),
            ("::1:9500", "[::1]:9500"),
        ] {
            let error = address(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
