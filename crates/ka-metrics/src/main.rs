//! `ka-metrics` answers the HTTP requests for the metrics of `ka watch --metrics`.
//!
//! `ka` opens the listening socket, starts this program with the socket as standard input, and sends the metrics
//! ([`ka_reach::watch::Metrics`], as JSON) on standard output, which is a socket too. The argument is the version of
//! `ka`. When `ka` ends, this program ends.
//!
//! **Reasons for a program of its own.** A client can send any bytes. `ka` has capabilities and holds duplicates of
//! other programs' sockets, so `ka` must not parse these bytes. This program drops all its privileges first, opens no
//! file, and has only the numbers that it serves. `ka` must not wait for a slow client either, because it would miss
//! ends of connections meanwhile.
//!
//! [`server`] has the limits on clients. [`ka_metrics::request`] has the answer to a request, and [`ka_metrics::text`]
//! the formats.

#![deny(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

mod server;

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};

use ka_reach::version;
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::process::{Gid, Uid, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// The user and the group without rights, nobody and nogroup.
const NOBODY: u32 = 65_534;

fn main() {
    const COMMAND: &str = "ka watch --metrics";
    if let Err(why) = version::check(env::args_os().nth(1).as_deref(), env!("CARGO_BIN_NAME"), COMMAND) {
        fail(&why);
    }
    let Some((listener, updates)) = sockets() else {
        fail(&format_args!("standard input and output are not the sockets of ka: use {COMMAND}"));
    };
    if let Err(error) = drop_privileges() {
        fail(&format_args!("cannot drop privileges: {}", ka_reach::reason::reason(&error)));
    }
    if let Err(error) = server::serve(&listener, &updates) {
        fail(&ka_reach::reason::reason(&error));
    }
}

fn fail(why: &dyn std::fmt::Display) -> ! {
    eprintln!("ka-metrics: {why}");
    std::process::exit(2)
}

/// Returns the listening socket and the socket to ka. `None` if ka did not start this program.
fn sockets() -> Option<(TcpListener, OwnedFd)> {
    let listener = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let updates = io::stdout().as_fd().try_clone_to_owned().ok()?;
    let is_listening =
        socket_acceptconn(&listener) == Ok(true) && socket_type(&listener) == Ok(SocketType::STREAM);
    let is_from_ka = socket_type(&updates) == Ok(SocketType::SEQPACKET);
    (is_listening && is_from_ka).then(|| (listener.into(), updates))
}

/// Becomes nobody if this process runs as root, and permanently drops all capabilities.
fn drop_privileges() -> io::Result<()> {
    set_no_new_privs(true)?;
    if getuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        // In a user namespace that does not have this user, root has no rights outside.
        let _ = set_thread_groups(&[])
            .and_then(|()| set_thread_res_gid(group, group, group))
            .and_then(|()| set_thread_res_uid(user, user, user));
    }
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}
