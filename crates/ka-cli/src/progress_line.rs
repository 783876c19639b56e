//! The line on standard error that shows the progress of a command.

use std::io::{self, IsTerminal as _, Write as _};

use crate::table;

/// A line that each update replaces. It is shown only if standard error is a terminal that can replace a line.
pub(crate) struct ProgressLine {
    is_shown: bool,
    /// The length of the line that the terminal shows.
    length: usize,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal() && !table::is_dumb(), length: 0 }
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.is_shown
    }

    /// Replaces the line.
    pub(crate) fn show(&mut self, line: &str) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r{line:width$}\r{line}", width = self.length);
            self.length = line.len();
        }
    }

    /// Removes the line.
    pub(crate) fn clear(&mut self) {
        if self.length > 0 {
            let _ = write!(io::stderr(), "\r{:width$}\r", "", width = self.length);
            self.length = 0;
        }
    }
}
