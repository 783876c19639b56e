//! Application-level liveness: finds silent connections, and verifies that a client is genuine.
//!
//! TCP keepalive proves that the peer's kernel runs. The kernel answers probes even if the program is stopped, has sent
//! nothing since the handshake, or is not one of your clients. This crate has two tools for that. Both work with any
//! event loop.
//!
//! - [`Reaper`] finds the connections that were silent for longer than a given time.
//! - [`Beat`] is a heartbeat of 56 bytes that only your clients can sign. Each frame is valid for one connection and
//!   only once.
//!
//! ```
//! use ka_liveness::{Beat, Key, Nonce, Reaper};
//!
//! // A connection is accepted at 1000 ms. The server sends a nonce, and waits.
//! let mut reaper = Reaper::new(10_000)?;
//! let fd = 5;
//! reaper.touch(fd, 1000)?;
//! let nonce = Nonce::random()?;
//!
//! // The client signs its first beat with the shared key.
//! let key = Key::new(b"16 or more random bytes")?;
//! let frame = Beat { client: 7, sequence: 1 }.sign(key, &nonce)?;
//!
//! // The server reads the client's number to find the key, and verifies the frame.
//! assert_eq!(Beat::client(&frame)?, 7);
//! let beat = Beat::verify(key, &nonce, 0, &frame)?;
//! reaper.touch(fd, 2500)?;
//! assert!(Beat::verify(key, &nonce, beat.sequence, &frame).is_err(), "a replayed frame is rejected");
//!
//! // The client is silent from now on.
//! assert_eq!(reaper.next_due_ms(2500), Some(10_000));
//! assert_eq!(reaper.expired(12_499).next(), None);
//! assert_eq!(reaper.expired(12_500).next(), Some(fd));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Memory comes from malloc(3), and a failed allocation is an error, not an abort. The crate is `no_std` and has no
//! `std` feature: cargo would unify that feature into libka, which is in the same workspace.

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

mod beat;
mod reaper;
pub mod sys;
mod table;

pub use beat::{Beat, BeatError, Frame, Key, Nonce};
pub use reaper::{Expired, Reaper, ReaperError};
