//! Prints ka's messages while a program runs, without ever blocking on the reader.
//!
//! Standard error may be a full pipe or a stopped terminal. A write then blocks. `O_NONBLOCK` would change the
//! program's standard error too, because the two share a file description. So lines are queued, and a separate thread,
//! which may get stuck, writes them.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::sys;
use crate::process::{self, Status};
use crate::text;

/// Messages that are printed once per program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Ring,
    Foreign,
    Refused,
    /// A call was not answered in time.
    Late,
    /// The program keeps too many workers waiting.
    Exceeded,
    /// No worker is left that may touch a socket.
    Untouched,
}

#[derive(Default)]
struct Lines {
    /// The messages so far, and their subjects.
    said: Vec<(Notice, Vec<u8>)>,
    waiting: VecDeque<String>,
    /// A thread is writing.
    is_writing: bool,
}

#[derive(Default)]
pub(super) struct Speaker {
    lines: Mutex<Lines>,
    silence: Condvar,
}

impl Speaker {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, to be written after the next [`Speaker::start`]. If the reader does not read, later lines are
    /// dropped.
    pub(super) fn add(&self, line: String) {
        const MOST: usize = 64;
        let mut lines = self.lines();
        if lines.waiting.len() < MOST {
            lines.waiting.push_back(line);
        }
    }

    /// Queues a message about a program, once. The number of messages is limited, because a program may have any number
    /// of names. Returns whether the message was queued.
    pub(super) fn note(&self, task: i32, notice: Notice, what: impl FnOnce() -> String) -> bool {
        const MOST: usize = 32;
        if self.lines().said.len() >= MOST {
            return false;
        }
        // A thread may have its own name, so use that of its process.
        let pid = Status::read(task).ok().and_then(|status| status.leader()).unwrap_or(task);
        let name = process::comm(pid).unwrap_or_else(|| b"?".to_vec());
        let subject = match notice {
            Notice::Ring | Notice::Foreign | Notice::Refused => name.clone(),
            Notice::Late | Notice::Exceeded => pid.to_ne_bytes().to_vec(),
            Notice::Untouched => Vec::new(),
        };
        let said = (notice, subject);
        {
            let mut lines = self.lines();
            if lines.said.contains(&said) {
                return false;
            }
            lines.said.push(said);
        }
        self.add(format!("ka: run: {pid} ({}) {}", text::visible(&name), what()));
        true
    }

    /// Starts a thread that writes the queued lines, if none is writing. Does not block.
    pub(super) fn start(&'static self) {
        let mut lines = self.lines();
        if lines.waiting.is_empty() || lines.is_writing {
            return;
        }
        // If no thread can be started, the lines stay queued.
        lines.is_writing = thread::Builder::new().spawn(|| self.write()).is_ok();
    }

    fn write(&self) {
        // If this thread gets stuck, it holds no other file open.
        let _ = sys::own_descriptors(&[libc::STDERR_FILENO]);
        loop {
            let next = {
                let mut lines = self.lines();
                let next = lines.waiting.pop_front();
                lines.is_writing = next.is_some();
                next
            };
            let Some(mut line) = next else { break };
            line.push('\n');
            sys::write_all(libc::STDERR_FILENO, line.as_bytes());
        }
        self.silence.notify_all();
    }

    /// Waits at most 200 ms until all lines are written.
    pub(super) fn finish(&'static self) {
        const LONGEST: Duration = Duration::from_millis(200);
        self.start();
        let is_busy = |lines: &mut Lines| lines.is_writing;
        let _ = self.silence.wait_timeout_while(self.lines(), LONGEST, is_busy);
    }
}

/// Prints one line before this process ends. Gives up if the write blocks.
pub(super) fn say(line: String) {
    let speaker: &'static Speaker = Box::leak(Box::default());
    speaker.add(line);
    speaker.finish();
}
