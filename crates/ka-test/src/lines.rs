//! The lines that a child process prints, with a limit of time for each.
#![expect(unsafe_code, reason = "poll")]

use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

/// The time that a program has for each line, which is enough on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The lines of a pipe. The test fails if the next line does not come within 60 s.
///
/// A line has no newline at its end. The iterator ends when the program closes the pipe.
pub struct Lines<R> {
    /// The name of the program, for the message of the failure.
    program: String,
    pipe: R,
    /// The bytes after the last line that was returned.
    rest: Vec<u8>,
    last: Option<String>,
}

impl<R: Read + AsFd> Lines<R> {
    /// Returns the lines that a program prints to a pipe.
    pub fn new(program: &str, pipe: R) -> Self {
        Self { program: program.to_owned(), pipe, rest: vec![], last: None }
    }

    /// Returns the next line, which must come.
    ///
    /// `awaited` describes the line for the message of the failure.
    #[track_caller]
    pub fn expect(&mut self, awaited: &str) -> String {
        let Some(line) = self.read_line(awaited) else {
            panic!("{} closed its output before {awaited}{}", self.program, self.after())
        };
        line
    }

    /// Returns all text up to the end of the output, which must come within 60 s.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let end = Instant::now() + LIMIT;
        while self.read(end, "the end of its output") {}
        String::from_utf8(mem::take(&mut self.rest)).unwrap()
    }

    /// Returns the pipe, for output that no test reads.
    pub fn into_pipe(self) -> R {
        self.pipe
    }

    #[track_caller]
    fn read_line(&mut self, awaited: &str) -> Option<String> {
        let end = Instant::now() + LIMIT;
        let length = loop {
            if let Some(length) = self.rest.iter().position(|byte| *byte == b'\n') {
                break length;
            }
            if !self.read(end, awaited) {
                break self.rest.len();
            }
        };
        if self.rest.is_empty() {
            return None;
        }
        let mut line: Vec<u8> = self.rest.drain(..self.rest.len().min(length + 1)).collect();
        line.truncate(length);
        let line = String::from_utf8(line).unwrap();
        self.last = Some(line.clone());
        Some(line)
    }

    /// Waits for more bytes and reads them. Returns false at the end of the output.
    #[track_caller]
    fn read(&mut self, end: Instant, awaited: &str) -> bool {
        // Round up, so that the last wait does not become a busy loop.
        let left = end.saturating_duration_since(Instant::now()).as_millis() + 1;
        let mut pipe = libc::pollfd { fd: self.pipe.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `pipe` is one `struct pollfd` that lives until the call returns.
        match unsafe { libc::poll(&raw mut pipe, 1, left.try_into().unwrap()) } {
            0 => panic!("not in {LIMIT:?}: {} prints {awaited}{}", self.program, self.after()),
            -1 => {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), io::ErrorKind::Interrupted, "poll: {error}");
                return true;
            }
            _ => {}
        }
        let mut bytes = [0; 4096];
        let count = self.pipe.read(&mut bytes).unwrap();
        self.rest.extend_from_slice(&bytes[..count]);
        count > 0
    }

    /// Describes the last line and the beginning of the next one.
    fn after(&self) -> String {
        let last = self.last.as_ref().map_or(String::new(), |last| format!(", after {last:?}"));
        let rest = String::from_utf8_lossy(&self.rest);
        if rest.is_empty() { last } else { format!("{last}, and then only {rest:?}") }
    }
}

impl<R: Read + AsFd> Iterator for Lines<R> {
    type Item = String;

    #[track_caller]
    fn next(&mut self) -> Option<String> {
        self.read_line("a line")
    }
}
