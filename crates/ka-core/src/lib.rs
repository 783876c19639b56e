//! TCP keepalive on Linux: the rules of ka, once.
//!
//! Linux leaves keepalive off, and when on waits two hours. Turning it on takes four options whose order
//! matters, whose ranges the kernel does not always check, and whose effect depends on what the connection is
//! doing. This crate knows those rules; libka gives them to C.
//!
//! ```
//! use ka_core::{Config, Socket};
//! use std::os::fd::AsRawFd;
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let socket = Socket::new(listener.as_raw_fd());
//!
//! // Idle for 60 s, then a probe every 10 s; the fifth without an answer ends the connection.
//! socket.apply(&Config::new(60, 10, 5)?)?;
//! assert!(socket.is_enabled()?);
//! assert_eq!(socket.settings()?.idle, 60);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Whatever takes a descriptor makes system calls and nothing else: it does not allocate, log, lock or keep
//! state, and it leaves the thread's `errno` as it was. So it may run in any thread, in a signal handler and
//! after fork.
//!
//! The crate is `no_std` and has no `std` feature: in one workspace that feature would be unified into the
//! libraries that must not have it.

#![no_std]
#![deny(unsafe_code)] // but in the modules that say why
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests"))]

mod apply;
#[doc(hidden)] // shared with the other crates of this workspace
pub mod bytes;
mod config;
mod defaults;
mod error;
mod option;
mod plan;
mod preset;
mod settings;
mod socket;
mod status;
pub mod sys;
mod text;

pub use config::{Config, UserTimeout};
pub use defaults::{Defaults, defaults};
pub use error::{Errno, Error};
pub use option::{SockOpt, Timer};
pub use plan::{Detection, PlanError, plan_detect, plan_path};
pub use preset::{PRESETS, Preset, preset};
pub use settings::Settings;
pub use socket::Socket;
pub use status::Status;
pub use sys::{Kernel, Libc};
pub use text::{Advice, ParseError, Quantity, Reason, Text, parse, parse_typed};
