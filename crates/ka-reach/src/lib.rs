//! Finds the TCP sockets of running programs on Linux, and sets their keepalive.
//!
//! A process has no business with the sockets of another one, so each way to them has its own kernel interface and its own
//! limits. This crate knows four ways:
//!
//! - [`attach`]: duplicates the sockets of running processes (pidfd_getfd(2)), and sets the duplicates. [`listing`] lists
//!   them first (sock_diag(7), /proc, and eBPF if the kernel allows it).
//! - [`seccomp`]: supervises a program from its start. Each of its sockets gets the policy when it connects or listens.
//! - [`cgroup`]: BPF programs set the sockets of all programs of a cgroup.
//! - A preloaded library, which is not part of this crate. [`elf`] tells whether a program would load one.
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
//! // Calls on other programs' sockets may block. Workers make them, with a deadline.
//! let mut workers = Workers::default();
//! let listing = sockets(&mut workers, &[State::Listen], None)?;
//! let own = listing.sockets.iter().find(|socket| socket.entry.local.port() == port).unwrap();
//! assert_eq!(own.entry.state, State::Listen);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Processes and threads.** [`worker::Workers`] forks. A program that uses it must have one thread at that time, because a
//! forked child may only continue the thread that forked. Functions that enter a network namespace change the namespace of
//! the calling thread.
//!
//! **Errors.** Functions fail with [`Error`], or with `std::io::Error` if only a system call can fail. A socket or process
//! that cannot be reached is part of a result, with its [`Error`]: one program cannot stop the work on the others.

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
