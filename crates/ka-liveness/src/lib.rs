//! Application-level liveness: which connections have fallen silent, and whether it is a client of yours that speaks.
//!
//! TCP keepalive proves that the peer's kernel lives. A program that is stopped, one that did the handshake and never
//! said a word, and a stranger all answer its probes. Two tools, independent of any event loop, tell more:
//!
//! - [`Reaper`] knows which connections have done no business for a time;
//! - [`Beat`] is a message of 56 bytes that only a client of yours can make, good for one connection and one use.
//!
//! ```
//! use ka_liveness::{Beat, Key, Nonce, Reaper};
//!
//! // A connection that was accepted at 1000 ms on some clock: the server sends a nonce, and waits.
//! let mut reaper = Reaper::new(10_000)?;
//! let fd = 5;
//! reaper.touch(fd, 1000)?;
//! let nonce = Nonce::random()?;
//!
//! // The client signs its first beat with the key that both know.
//! let key = Key::new(b"thirty-two bytes from /dev/random")?;
//! let frame = Beat { client: 7, sequence: 1 }.sign(key, &nonce)?;
//!
//! // The server finds out whose key to take, and believes nothing before it has verified.
//! assert_eq!(Beat::client(&frame)?, 7);
//! let beat = Beat::verify(key, &nonce, 0, &frame)?;
//! reaper.touch(fd, 2500)?;
//! assert!(Beat::verify(key, &nonce, beat.sequence, &frame).is_err(), "the same beat again");
//!
//! // Nothing more comes.
//! assert_eq!(reaper.next_due_ms(2500), Some(10_000));
//! assert_eq!(reaper.expired(12_499).next(), None);
//! assert_eq!(reaper.expired(12_500).next(), Some(fd));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Memory comes from the C library, and running out of it is an error, not an abort. The crate is `no_std` and has no
//! `std` feature: in one workspace that feature would be unified into libka.

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

mod beat;
mod reaper;
pub mod sys;
mod table;

pub use beat::{Beat, BeatError, Frame, Key, Nonce};
pub use reaper::{Expired, Reaper, ReaperError};
