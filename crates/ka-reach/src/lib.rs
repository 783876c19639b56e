//! Finds the TCP sockets of running programs on Linux, and sets their keepalive.
//!
//! Linux has no call that sets an option on another process's socket. There are four ways around this. Each has its own
//! kernel interface and its own limits:
//!
//! - [`attach`]: duplicates the sockets of running processes (pidfd_getfd(2)), and sets the duplicates. [`listing`]
//!   lists sockets with their owners and settings (sock_diag(7), /proc, and eBPF if the kernel allows it).
//!   [`ping`] duplicates sockets in the same way, and probes the peers.
//! - [`seccomp`]: supervises a program from its start. Each of its sockets gets the policy when it connects or listens.
//! - [`cgroup`]: BPF programs set the sockets of all processes of a cgroup.
//! - A preloaded library, which is not part of this crate. [`elf`] finds out whether such a library would see the
//!   sockets of a program.
//!
//! [`watch`] reports each connection that ends abnormally, with its owner and the cause.
//!
//! ```standalone_crate
//! use std::net::TcpListener;
//!
//! use ka_reach::diag::State;
//! use ka_reach::listing::sockets;
//! use ka_reach::worker::Workers;
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let port = listener.local_addr()?.port();
//!
//! // Calls on other programs' sockets may block. Workers make these calls, with a deadline.
//! let mut workers = Workers::default();
//! let listing = sockets(&mut workers, &[State::Listen], None)?;
//! let own = listing.sockets.iter().find(|socket| socket.entry.local.port() == port).unwrap();
//! assert_eq!(own.entry.state, State::Listen);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Processes and threads.** [`worker::Workers`] forks, and the child has only a copy of the calling thread. Another
//! thread may hold a lock at that moment, which the child could then never take. So a program must have only one thread
//! when it uses `Workers`. Functions that enter a network namespace change the namespace of the calling thread.
//!
//! **Errors.** Functions fail with [`Error`], or with `std::io::Error` if only a system call can fail. If one socket
//! or process cannot be reached, the function still succeeds and reports the [`Error`] in its result. So one program
//! cannot stop the work on the others.

#![deny(unsafe_code)] // Each module that allows it gives the reason.
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
pub mod measure;
pub mod netns;
mod parallel;
pub mod ping;
pub mod privilege;
pub mod process;
pub mod process_policy;
pub mod reason;
mod record;
pub mod risk;
pub mod seccomp;
pub mod survey;
mod sys;
pub mod version;
pub mod watch;
pub mod worker;

use std::os::fd::{AsFd, AsRawFd as _};

pub use error::{Error, Result};
pub use sys::{fork, limits, signal, user, wait};

/// Borrows a descriptor as a [`ka_core::Socket`], which reads and writes the keepalive settings.
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
