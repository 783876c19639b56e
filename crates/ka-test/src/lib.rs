//! Code that several test suites of ka share.
//!
//! The suites test the shipped files. libka is always the release build, which [`artifact`] builds again if the sources
//! have changed. [`libka`] loads it with dlopen(3), as a foreign program would. The suites read the effect of a call
//! from the kernel: [`socket`] reads options with getsockopt(2), never through the library.
//!
//! This crate contains only test code, and its functions panic to fail the test that called them. It is a
//! dev-dependency: no shipped crate may depend on it.

#![deny(unsafe_code)] // except in modules that expect it with a reason
#![allow(clippy::missing_panics_doc, reason = "a panic is how a test fails")]
#![allow(
    clippy::must_use_candidate,
    reason = "tests call some functions only for their effect, such as a build"
)]

pub mod artifact;
pub mod child;
pub mod compiler;
pub mod example;
pub mod fault;
pub mod header;
pub mod kernel;
pub mod libka;
pub mod lines;
pub mod log;
pub mod namespace;
pub mod path;
pub mod process;
pub mod server;
pub mod socket;
pub mod wait;
