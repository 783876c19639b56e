//! Finds the TCP sockets of running programs on Linux, and sets their keepalive.

#![deny(unsafe_code)] // but in the modules that say why
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]
#![allow(
    clippy::must_use_candidate,
    clippy::implicit_hasher,
    reason = "most results are used at once, by the command"
)]
#![allow(missing_docs, clippy::missing_errors_doc)] // until each public item is documented

pub mod attach;
pub mod bpf;
pub mod brief;
pub mod cgroup;
pub mod class;
pub mod conf;
pub mod diag;
pub mod elf;
mod ends;
mod error;
pub mod escape;
pub mod file;
#[doc(hidden)]
pub mod fuzz;
pub mod listing;
pub mod netns;
mod parallel;
pub mod plural;
pub mod privilege;
pub mod process;
pub mod process_policy;
pub mod reason;
mod record;
pub mod seccomp;
pub mod survey;
mod sys;
pub mod text;
pub mod worker;

use std::os::fd::{AsFd, AsRawFd as _};

pub use error::{Error, Result};
pub use sys::{fork, limits, signal, user, wait};

/// Borrows a descriptor as a socket of ka-core, which reads and writes its keepalive.
///
/// ```
/// use ka_core::Config;
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// ka_reach::socket(&listener).apply(&Config::new(60, 10, 5)?)?;
/// assert_eq!(ka_reach::socket(&listener).settings()?.idle, 60);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn socket<F: AsFd + ?Sized>(fd: &F) -> ka_core::Socket<'_> {
    ka_core::Socket::new(fd.as_fd().as_raw_fd())
}
