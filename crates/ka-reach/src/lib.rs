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
pub mod cgroup;
pub mod class;
pub mod conf;
pub mod diag;
pub mod elf;
mod error;
pub mod file;
pub mod instructions;
pub mod libraries;
pub mod netns;
pub mod parallel;
pub mod policies;
pub mod privilege;
pub mod process;
pub mod seccomp;
pub mod sockets;
pub mod sys;
pub mod text;
pub mod words;
pub mod worker;

pub use error::{Error, Result};
