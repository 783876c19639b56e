//! The counters of the kernel's network code, as nstat(8) prints them: /proc/net/snmp and /proc/net/netstat.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// A file with the counters of one network namespace. An open file stays with its namespace.
pub(super) struct CounterFile(File);

impl CounterFile {
    /// Opens the file with this name for the network namespace that the calling thread is in.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        File::open(format!("/proc/thread-self/net/{name}")).map(Self)
    }

    /// Reads a counter. `None` if the file cannot be read, or lacks the counter.
    pub(super) fn read(&self, title: &str, name: &str) -> Option<u64> {
        let mut text = vec![0; 64 * 1024];
        let mut size = 0;
        // The kernel returns at most a page for each call.
        while let Some(rest) = text.get_mut(size..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, size.try_into().ok()?).ok()? {
                0 => break,
                more => size += more,
            }
        }
        counter(std::str::from_utf8(text.get(..size)?).ok()?, title, name)
    }
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
    fn the_kernel_has_the_counters() {
        let netstat = CounterFile::open("netstat").unwrap();
        for name in ["TCPKeepAlive", "TCPAbortOnClose"] {
            assert!(netstat.read("TcpExt:", name).is_some(), "{name}");
        }
        assert!(CounterFile::open("snmp").unwrap().read("Tcp:", "EstabResets").is_some());
    }
}
