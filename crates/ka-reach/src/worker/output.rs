//! Reads the output of a worker that writes to a pipe.

use std::fs::File;

use super::frame::{FAILED, FINISHED, Frames};
use super::watch::{MAX_IDLE_TICKS, is_waiting};
use crate::Error;

/// A worker that writes its output to a pipe.
pub(crate) struct PipedWorker {
    pub(super) pid: i32,
    pub(super) pipe: File,
}

impl PipedWorker {
    /// Returns the worker's PID.
    pub(crate) const fn pid(&self) -> i32 {
        self.pid
    }
}

/// A worker whose output is being read.
pub(super) struct Reading {
    pub(super) child: PipedWorker,
    frames: Frames,
    pub(super) data: Vec<u8>,
    /// The number of checks without progress.
    idle: u32,
    pub(super) end: Option<Completion>,
}

impl Reading {
    pub(super) fn new(child: PipedWorker) -> Self {
        Self { child, frames: Frames::default(), data: Vec::new(), idle: 0, end: None }
    }

    /// Reads the available output.
    pub(super) fn read(&mut self) {
        let Self { child, frames, data, end, idle } = self;
        *idle = 0;
        let is_open = frames.read(&mut child.pipe, |about, bytes| match about {
            FINISHED => *end = Some(Completion::Finished),
            FAILED => {
                let error = Error::Worker(String::from_utf8_lossy(bytes).into_owned());
                *end = Some(Completion::Failed(error));
            }
            _ => data.extend_from_slice(bytes),
        });
        if !is_open && end.is_none() {
            *end = Some(Completion::Failed(Error::WorkerDied));
        }
    }

    /// Counts a tick without output, if the worker waits in the kernel. After [`MAX_IDLE_TICKS`] of these in a row, the
    /// worker counts as blocked.
    pub(super) fn count_tick(&mut self) {
        self.idle = if is_waiting(self.child.pid, self.child.pid) { self.idle + 1 } else { 0 };
        if self.idle >= MAX_IDLE_TICKS {
            self.end = Some(Completion::Blocked);
        }
    }
}

/// The output of a worker, complete or not.
pub struct WorkerOutput {
    /// The bytes that the worker wrote before its end.
    pub data: Vec<u8>,
    /// The reason why the output ended.
    pub end: Completion,
}

/// The reason why a worker's output ended.
#[derive(Debug)]
pub enum Completion {
    /// The worker has finished, so the output is complete.
    Finished,
    /// The worker made no progress, because a program holds the lock of a socket.
    Blocked,
    /// The worker failed or died.
    Failed(Error),
}
