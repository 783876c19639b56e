//! Measures the idle time after which a path to a TCP server forgets a connection.
//!
//! [`session::measure`] opens connections to a server, leaves each idle for a different time, and then makes the kernel
//! send keepalive probes. The server needs no program of ka: its kernel answers. Three modules are pure and are tested
//! on simulated paths: `ladder` chooses the idle times, `trial` times the probes of a connection, and `verdict` has the
//! conclusions.
//!
//! A NAT with loose pick-up forgets a connection, but accepts the probe of the client as a new connection. Only a probe
//! from the server finds such a NAT. For this, [`serve`] runs at the other end, and both ends speak `protocol`.

mod connection;
mod ladder;
mod protocol;
mod serve;
mod session;
#[cfg(test)]
mod simulation;
mod trial;
mod verdict;

pub use ladder::IdleTimes;
pub use serve::{ServeNotice, capacity, listen, serve};
pub use session::{MeasureRequest, Measurement, Notice, measure, resolve};
pub use trial::{LEAST_IDLE, Sample, TrialResult};
pub use verdict::{Conclusion, Doubt, Measured};
