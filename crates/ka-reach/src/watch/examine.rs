//! Examines sockets of other processes, through duplicates of their descriptors.
//!
//! A worker process makes the calls, because a program can hold the lock of its socket ([`crate::worker`]).

use std::os::fd::AsFd as _;

use ka_core::{Settings, Status};

use super::connections::Connection;
use crate::process::{HeldSocket, Process};
use crate::record::{Reader, Writer};
use crate::sys;
use crate::worker::{JobResult, Reply, Workers};

/// The settings and the state of a socket.
pub(super) struct ExaminedSocket {
    pub(super) settings: Settings,
    pub(super) status: Status,
    /// True if an error is pending on the socket.
    pub(super) has_error: bool,
}

/// Returns the socket of a connection in its owner. `None` if the owner has ended, or ka may not inspect it.
pub(super) fn held(connection: &Connection) -> Option<HeldSocket> {
    let owner = connection.owner.as_ref()?;
    let table = Process::open(owner.pid).ok()?.leader_table();
    Some(HeldSocket { table, fd: owner.fd, inode: connection.inode })
}

/// Examines these sockets. The result of a socket is `None` if its process does not have it any more, or ka may not
/// duplicate it, or a program holds its lock.
pub(super) fn examine(workers: &mut Workers, sockets: &[HeldSocket]) -> Vec<Option<ExaminedSocket>> {
    if sockets.is_empty() {
        return Vec::new();
    }
    let answers = workers.ask(sockets, None, None, |_, target, reply| read(target, reply));
    answers
        .each
        .into_iter()
        .map(|answer| {
            let JobResult::Given(record) = answer else { return None };
            let mut record = Reader::new(&record);
            let has_error = record.word() != 0;
            Some(ExaminedSocket { settings: record.settings()?, status: record.status(), has_error })
        })
        .collect()
}

/// Reads a socket, in a worker.
fn read(target: &HeldSocket, reply: &Reply<'_>) {
    let Ok(duplicate) = target.table.duplicate(target.fd) else { return };
    // The descriptor may be that of another socket by now. An inode is not reused while the socket exists.
    if sys::inode(duplicate.as_fd()).ok() != Some(u64::from(target.inode)) {
        return;
    }
    let socket = crate::socket(&duplicate);
    if let (Ok(settings), Ok(status)) = (socket.settings(), socket.status()) {
        let has_error = u64::from(socket.has_error());
        reply.answer(Writer::new().word(has_error).settings(Some(settings)).status(&status).finish());
    }
}
