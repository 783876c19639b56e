//! The kernel's counter of keepalive probes: `TCPKeepAlive` in /proc/net/netstat, as nstat(8) prints it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// The counter of one network namespace.
pub(super) struct ProbeCounter {
    /// An open file stays with its namespace. `None` if it cannot be opened.
    file: Option<File>,
    last: u64,
}

impl ProbeCounter {
    /// Opens the counter of the network namespace that the calling thread is in.
    pub(super) fn open() -> Self {
        Self { file: File::open("/proc/thread-self/net/netstat").ok(), last: 0 }
    }

    /// Returns the number of probes that the kernel has sent since the last call, or for the first call, since the
    /// namespace was created.
    pub(super) fn more(&mut self) -> u64 {
        let Some(now) = self.file.as_ref().and_then(read) else { return 0 };
        let more = now.saturating_sub(self.last);
        self.last = now;
        more
    }
}

fn read(file: &File) -> Option<u64> {
    let mut text = vec![0; 64 * 1024];
    let mut size = 0;
    // The kernel returns at most a page for each call.
    while let Some(rest) = text.get_mut(size..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, size.try_into().ok()?).ok()? {
            0 => break,
            more => size += more,
        }
    }
    counter(std::str::from_utf8(text.get(..size)?).ok()?, "TcpExt:", "TCPKeepAlive")
}

/// Returns a counter from a text in which a line with the names comes before a line with the values. Both begin with
/// the same title.
fn counter(text: &str, title: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(title));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(found, _)| *found == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text =
            "TcpExt: A TCPKeepAlive B\nTcpExt: 1 18446744073709551615 3\nIpExt: TCPKeepAlive\nIpExt: 4\n";
        assert_eq!(counter(text, "TcpExt:", "TCPKeepAlive"), Some(u64::MAX));
        assert_eq!(counter(text, "TcpExt:", "B"), Some(3));
        assert_eq!(counter(text, "TcpExt:", "TCPKeep"), None);
        assert_eq!(counter("TcpExt: A\n", "TcpExt:", "A"), None);
        assert_eq!(counter("", "TcpExt:", "A"), None);
    }

    #[test]
    fn the_kernel_has_the_counter() {
        let mut counter = ProbeCounter::open();
        assert!(read(counter.file.as_ref().unwrap()).is_some());
        counter.more();
    }
}
