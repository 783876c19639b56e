//! The status of a process, from /proc/PID/status and /proc/PID/stat.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io;

/// The fields of /proc/PID/status, by name. proc_pid_status(5)
#[derive(Debug, Default)]
pub struct StatusFields(BTreeMap<String, String>);

impl StatusFields {
    /// Reads the status of a process or a thread. `pid` is a PID, a thread ID, or `self`.
    ///
    /// # Errors
    ///
    /// The error of reading the file: ENOENT if there is no such process, or /proc hides it.
    pub fn read(pid: impl Display) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/status"))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// Parses the text of /proc/PID/status.
    pub fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        // The process can choose its name. The kernel escapes newlines in it, so the name cannot imitate another field.
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    fn number(&self, name: &str, place: usize, radix: u32) -> Option<u64> {
        u64::from_str_radix(self.0.get(name)?.split_whitespace().nth(place)?, radix).ok()
    }

    /// Returns the effective user ID.
    pub fn user(&self) -> Option<u32> {
        self.number("Uid", 1, 10).and_then(|uid| uid.try_into().ok())
    }

    /// Returns whether the real, the effective and the saved user ID are all this one.
    pub fn has_only_user(&self, user: u32) -> bool {
        (0..3).all(|place| self.number("Uid", place, 10) == Some(user.into()))
    }

    /// Returns whether a capability is in the effective set. capabilities(7)
    pub fn has_capability(&self, number: u32) -> bool {
        self.number("CapEff", 0, 16).is_some_and(|set| set & 1 << number != 0)
    }

    /// Returns the PID of the thread's process.
    pub fn leader(&self) -> Option<i32> {
        self.number("Tgid", 0, 10).and_then(|pid| pid.try_into().ok())
    }

    /// Returns the number of threads. 1 if the number is unknown.
    pub fn threads(&self) -> u64 {
        self.number("Threads", 0, 10).unwrap_or(1)
    }

    /// Returns whether a seccomp filter restricts the process.
    pub(crate) fn is_filtered(&self) -> bool {
        self.number("Seccomp", 0, 10) == Some(libc::SECCOMP_MODE_FILTER.into())
    }

    /// Returns whether the process has ended, with all its threads.
    pub fn is_ended(&self) -> bool {
        self.is_zombie() && self.threads() <= 1
    }

    /// Returns whether the thread has ended, and its parent has not waited for it.
    pub fn is_zombie(&self) -> bool {
        self.0.get("State").is_some_and(|state| state.starts_with('Z'))
    }
}

/// Reads a field of /proc/PID/stat, which every user may read. `field` is its number in proc_pid_stat(5), 3 or more.
pub(super) fn stat(pid: i32, field: usize) -> Option<u64> {
    stat_field(&fs::read(format!("/proc/{pid}/stat")).ok()?, field)
}

/// Parses a field in the text of /proc/PID/stat. `field` is its number in proc_pid_stat(5), 3 or more.
pub fn stat_field(stat: &[u8], field: usize) -> Option<u64> {
    // Field 2 is the name in parentheses. The name may contain parentheses too, so field 3 follows the last one.
    let rest = stat.rsplit(|byte| *byte == b')').next()?;
    std::str::from_utf8(rest).ok()?.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::StatusFields;

    #[test]
    fn a_status_is_read_field_by_field() {
        let status = StatusFields::parse(
            "Name:\tUid: 0\nState:\tZ (zombie)\nUid:\t1\t2\t3\t4\nCapEff:\t0000000000080000\n",
        );
        assert_eq!(status.user(), Some(2));
        assert!(status.is_zombie() && status.has_capability(19) && !status.has_capability(18));
        assert!(!status.has_only_user(1));
    }
}
