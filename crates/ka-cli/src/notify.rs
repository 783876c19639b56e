//! Sends messages to the service manager that started this process. sd_notify(3)

use std::env;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The connection to the service manager, if it requests messages.
pub(crate) struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// Half of the watchdog timeout, if the manager watches this process.
    interval: Option<Duration>,
}

impl Notify {
    /// Reads the address of the service manager and its watchdog timeout from the environment.
    pub(crate) fn from_environment() -> Self {
        Self { manager: manager(), interval: interval() }
    }

    /// Sends variables, one per line, such as `READY=1`. Errors are ignored, because they could not be reported.
    pub(crate) fn send(&self, variables: &str) {
        if let Some((socket, address)) = &self.manager {
            let _ = socket.send_to_addr(variables.as_bytes(), address);
        }
    }

    /// Returns the longest time between two calls of [`Notify::reset_watchdog`], if the manager expects them.
    pub(crate) const fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// Tells the manager that this process is alive, if the manager expects it.
    pub(crate) fn reset_watchdog(&self) {
        if self.interval.is_some() {
            self.send("WATCHDOG=1");
        }
    }
}

fn manager() -> Option<(UnixDatagram, SocketAddr)> {
    let name = env::var_os("NOTIFY_SOCKET")?;
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(&name),
        _ => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    // Other processes can fill the manager's queue. A message then waits for at most this time.
    socket.set_write_timeout(Some(Duration::from_secs(2))).ok()?;
    Some((socket, address.ok()?))
}

/// Returns half of the manager's watchdog timeout. `None` if the variables are missing or name another process.
fn interval() -> Option<Duration> {
    let is_for_this_process =
        env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let micros: u64 = env::var("WATCHDOG_USEC").ok().filter(|_| is_for_this_process)?.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros / 2))
}
