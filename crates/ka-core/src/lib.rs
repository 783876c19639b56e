//! TCP keepalive on Linux sockets.
//!
//! Linux leaves keepalive off. When it is on, the first probe comes after two hours. A policy takes up to six socket
//! options. The order of the writes matters, the kernel does not check every range, and the effect of a write depends
//! on the state of the connection. This crate implements these rules, and libka exports them to C.
//!
//! ```
//! use ka_core::{Config, Socket};
//! use std::os::fd::AsRawFd;
//!
//! let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let socket = Socket::new(listener.as_raw_fd());
//!
//! // The first probe after 60 s idle, then one every 10 s. Five unanswered probes end the connection.
//! socket.apply(&Config::new(60, 10, 5)?)?;
//! assert!(socket.is_enabled()?);
//! assert_eq!(socket.settings()?.idle, 60);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Functions that take a descriptor only make system calls. They do not allocate, log, lock or keep state, and they
//! preserve the thread's `errno`. So any thread, a signal handler, and the child of fork(2) may call them.
//!
//! The crate is `no_std` and has no `std` feature: cargo would unify that feature into libraries of the same workspace
//! that must not use `std`.

#![no_std]
#![deny(unsafe_code)] // except in the modules that say why
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
#[doc(hidden)] // shared with the shim
pub mod direct;
mod error;
mod option;
mod plan;
mod preset;
mod probe;
mod settings;
mod socket;
mod status;
pub mod sys;
mod text;

pub use config::{Config, RtoMax, UserTimeout};
pub use defaults::{Defaults, Retransmission, defaults};
pub use error::{Errno, Error};
pub use option::{SockOpt, Timer};
pub use plan::{Detection, PlanError, plan_detect, plan_path};
pub use preset::{PRESETS, Preset, preset};
pub use probe::{Alive, Probe};
pub use settings::{Settings, Timeout};
pub use socket::Socket;
pub use status::Status;
pub use sys::{Kernel, Libc};
pub use text::{Advice, ParseError, Quantity, Reason, Text, parse, parse_typed};
