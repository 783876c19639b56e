//! Prints ka's messages while a program runs, without ever blocking on the reader.
//!
//! If standard error is a full pipe or a stopped terminal, a write blocks. ka cannot set `O_NONBLOCK`: the program
//! shares the open file description of standard error, so its writes would change too. So ka queues the lines, and a
//! separate thread writes them. Only this thread may get stuck.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::descriptors;
use crate::escape;
use crate::process::{self, StatusFields};

/// The warnings. Each is printed once for a program's name, once for a process, or once only ([`Log::warn`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Warning {
    /// The program uses io_uring.
    IoUring,
    /// The program makes calls of another architecture.
    OtherArchitecture,
    /// The kernel denies access to the program's sockets or memory.
    NoAccess,
    /// A call was not answered in time.
    Timeout,
    /// The program keeps too many workers waiting.
    TooManyStalls,
    /// No worker is left that may touch a socket.
    NoWorkers,
}

#[derive(Default)]
struct Queue {
    /// The warnings so far, and the name or PID that each is about.
    warned: Vec<(Warning, Vec<u8>)>,
    lines: VecDeque<String>,
    /// Set while a thread writes lines.
    is_writing: bool,
}

/// The lines that ka prints to standard error.
#[derive(Default)]
pub(super) struct Log {
    queue: Mutex<Queue>,
    /// Notified when all lines are written.
    idle: Condvar,
}

impl Log {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, which is written after the next [`Log::start_writing`]. If the queue is full, drops the line.
    pub(super) fn add(&self, line: String) {
        const MOST: usize = 64;
        let mut queue = self.queue();
        if queue.lines.len() < MOST {
            queue.lines.push_back(line);
        }
    }

    /// Queues a warning about a task's program, unless the same warning has been queued before. Returns whether the
    /// warning was queued. The number of warnings is limited, because a program can change its name any number of
    /// times.
    pub(super) fn warn(&self, task: i32, warning: Warning, text: impl FnOnce() -> String) -> bool {
        const MOST: usize = 32;
        if self.queue().warned.len() >= MOST {
            return false;
        }
        // A thread may have its own name, so use the name of its process.
        let pid = StatusFields::read(task).ok().and_then(|status| status.leader()).unwrap_or(task);
        let name = process::comm(pid).unwrap_or_else(|| b"?".to_vec());
        let subject = match warning {
            Warning::IoUring | Warning::OtherArchitecture | Warning::NoAccess => name.clone(),
            Warning::Timeout | Warning::TooManyStalls => pid.to_ne_bytes().to_vec(),
            Warning::NoWorkers => Vec::new(),
        };
        let warned = (warning, subject);
        {
            let mut queue = self.queue();
            if queue.warned.contains(&warned) {
                return false;
            }
            queue.warned.push(warned);
        }
        self.add(format!("ka: run: {pid} ({}) {}", escape::visible(&name), text()));
        true
    }

    /// Starts a thread that writes the queued lines, if none is writing. Does not block.
    pub(super) fn start_writing(&'static self) {
        let mut queue = self.queue();
        if queue.lines.is_empty() || queue.is_writing {
            return;
        }
        // If no thread can be started, the lines stay queued.
        queue.is_writing = thread::Builder::new().spawn(|| self.write()).is_ok();
    }

    fn write(&self) {
        // If this thread gets stuck, it must hold no other file open.
        let _ = descriptors::unshare_table(&[libc::STDERR_FILENO]);
        loop {
            let next = {
                let mut queue = self.queue();
                let next = queue.lines.pop_front();
                queue.is_writing = next.is_some();
                next
            };
            let Some(mut line) = next else { break };
            line.push('\n');
            descriptors::write_all(libc::STDERR_FILENO, line.as_bytes());
        }
        self.idle.notify_all();
    }

    /// Waits at most 200 ms until all lines are written.
    pub(super) fn flush(&'static self) {
        const LONGEST: Duration = Duration::from_millis(200);
        self.start_writing();
        let is_busy = |queue: &mut Queue| queue.is_writing;
        let _ = self.idle.wait_timeout_while(self.queue(), LONGEST, is_busy);
    }
}

/// Prints one line before this process ends. Gives up if the write blocks.
pub(super) fn print(line: String) {
    let log: &'static Log = Box::leak(Box::default());
    log.add(line);
    log.flush();
}
