//! Waiting for a condition.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

/// Waits until a process listens on a port of 127.0.0.1.
pub fn listening(port: u16) {
    eventually(&format!("a process listens on port {port}"), || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
}

/// Waits until a condition holds. The test fails after 20 s, which is enough on a busy machine.
///
/// `what` describes the condition for the message of the failure.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(20), what, holds);
}

/// Waits until a condition holds, as [`eventually`] does, with another limit of time.
pub fn eventually_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "not in {limit:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
